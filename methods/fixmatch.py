"""FixMatch (Sohn et al. 2020, arXiv:2001.07685): confident labels of the weak view teach the strong view.

The unlabeled term of the total loss l_s + lambda_u l_u; l_s is methods/supervised.py, and configs/fixmatch.py
puts the two together.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from methods.base import JOINT, Inputs, Loss, Method, PseudoLabels


@dataclasses.dataclass(frozen=True)
class FixMatch(Method):
    """Equation 4: the mean over ALL unlabeled images of 1(max q >= threshold) H(argmax q, p(strong)).

    In the official code labeled, weak and strong images pass the network as one batch, so batch norm takes its
    statistics from all of them: weak_batch_norm 'joint'. With 'no_grad' it takes them from the labeled and the
    strong images, and the weak ones, which are only looked at, need no backward pass.
    """

    threshold: float = 0.95  # tau: confidence from which a pseudo-label is used
    weight: float = 1.0  # lambda_u
    weak_batch_norm: str = JOINT  # 'joint' (the official code's) or 'no_grad' (a third less work)

    def views(self) -> dict[str, str]:
        return {'unlabeled.weak': self.weak_batch_norm, 'unlabeled.strong': JOINT}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        weak = jax.lax.stop_gradient(inputs.outputs['unlabeled.weak']['logits'])
        strong = inputs.outputs['unlabeled.strong']['logits']
        labels = weak.argmax(-1)
        mask = (jax.nn.softmax(weak).max(-1) >= self.threshold).astype(jnp.float32)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(strong, labels)
        loss = (mask * cross_entropy).mean()
        return Loss(self.weight * loss, metrics={'loss': loss}, pseudo_labels=PseudoLabels(labels, mask))
