"""SoftMatch (Chen et al. 2023, arXiv:2301.10921): every pseudo-label counts, weighted by its confidence."""

import dataclasses

import jax.numpy as jnp

from methods.base import JOINT, STRONG, WEAK, DataSpec, Inputs, Loss, Method, PseudoLabels, View, weak_and_strong
from methods.terms import align, cross_entropy, ema, targets, uniform


@dataclasses.dataclass(frozen=True)
class SoftMatch(Method):
    """Equations 4-11: the mean of lambda(q) H(argmax q, p(strong)), with a truncated Gaussian as the weight lambda.

    lambda(q) = exp(-(max UA(q) - mu)^2 / (2 var / sigmas^2)) below mu and 1 above. mu and var are moving averages of
    the mean and the unbiased variance of max q. UA, uniform alignment, multiplies q by (1/C) / (moving average of q)
    and normalises; it is used for the weight only, and the label is argmax q. The paper and TorchSSL compute mu and var
    before alignment, USB after it. TorchSSL aligns to a moving average of labeled predictions instead of 1/C.
    """

    weight: float = 1.0
    sigmas: float = 2.0  # the Gaussian is narrower by this factor, in TorchSSL and USB
    decay: float = 0.999  # m of the moving averages
    alignment: bool = True  # UA
    statistics: str = JOINT  # of batch norm: 'joint', 'no_grad' or 'separate', see methods/base.py

    def views(self) -> dict[View, str]:
        weak, strong = weak_and_strong(self.statistics)
        return {WEAK: weak, STRONG: strong}

    def init_state(self, data: DataSpec) -> dict:
        return {'mean': jnp.float32(1 / data.num_classes), 'var': jnp.float32(1), 'q': uniform(data.num_classes)}

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        q = targets(inputs.outputs[WEAK]['logits'])
        confidence = q.max(-1)
        state = {
            'mean': ema(state['mean'], confidence.mean(), self.decay),
            'var': ema(state['var'], confidence.var(ddof=1), self.decay),
            'q': ema(state['q'], q.mean(0), self.decay),
        }
        if self.alignment:
            confidence = align(q, 1 / q.shape[-1], state['q']).max(-1)
        below = jnp.minimum(confidence - state['mean'], 0)
        guess = PseudoLabels(
            q.argmax(-1), jnp.exp(-jnp.square(below) / (2 * jnp.maximum(state['var'], 1e-12) / self.sigmas**2))
        )
        loss = (guess.mask * cross_entropy(guess.labels, inputs.outputs[STRONG]['logits'])).mean()
        return Loss(self.weight * loss, state, {'loss': loss, 'threshold': state['mean']}, guess)
