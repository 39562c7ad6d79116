"""Dash (Xu et al. 2021, ICML): FixMatch with a threshold on the loss that falls during training."""

import dataclasses

import jax.numpy as jnp

from errors import unknown
from methods.base import (
    JOINT,
    LABELED,
    STRONG,
    WEAK,
    DataSpec,
    Inputs,
    Loss,
    Method,
    PseudoLabels,
    View,
    weak_and_strong,
)
from methods.terms import cross_entropy, push, sharpen, targets

_C = 1.0001  # of equation 8


@dataclasses.dataclass(frozen=True)
class Dash(Method):
    """The losses l = H(label of the weak view, p(strong)) of the unlabeled images that a threshold rho selects.

    rho is divided by gamma `decays` times in training, from rho_0 down to rho_min. Labels are sharpened, and hard once
    rho_min is reached. The authors' code (github.com/idstcv/Dash) and the paper's text differ in the rest. The code is
    the default, since the text's version learns next to nothing here (results/README.md):

    - code: 0.9 times the mean of l over the selected images, those where H(argmax q, q) of the weak view is below rho.
      Until the warm-up ends, all images are selected. Then rho = gamma^-i rho_0 from i = 1 on; rho_0 is the mean of l
      over the last N images of the warm-up, for N unlabeled images. The defaults are those of its script for SVHN.
    - paper, Algorithm 1: the mean of 1(l <= rho) l over all unlabeled images. Until the warm-up ends, no image is
      selected. Then rho = C gamma^-i rho_0 from i = 0 on (equation 8); rho_0 is the mean loss over the last N labeled
      images of the warm-up, for N labeled images.

    USB is between the two: the loss of the weak view with its soft label, the mean over all images, C, rho_0 from its
    evaluation split (which is the test set), and a decay every 10 of 1024 epochs.
    """

    weight: float = 1.0
    temperature: float = 0.5
    gamma: float = 1.27
    rho_min: float = 0.05
    decays: float = 1024 / 9  # times that rho is divided by gamma: every 9 of 1024 epochs
    warm_up: float = 10 / 1024  # fraction of training before rho is used
    variant: str = 'code'  # 'code' or 'paper'
    statistics: str = JOINT  # of batch norm: 'joint', 'no_grad' or 'separate', see methods/base.py

    def __post_init__(self):
        if self.variant not in ('code', 'paper'):
            raise unknown('variant of Dash', self.variant, ('code', 'paper'))

    def views(self) -> dict[View, str]:
        weak, strong = weak_and_strong(self.statistics)
        return {LABELED: JOINT, WEAK: weak, STRONG: strong}

    def init_state(self, data: DataSpec) -> dict:
        """Returns the queue of the last losses of the warm-up, one for each image, and the number of its entries."""
        images = data.num_unlabeled if self.variant == 'code' else len(data.labels)
        stream = 'unlabeled' if self.variant == 'code' else 'labeled'
        return {'losses': jnp.zeros(max(images, data.batch_sizes[stream])), 'count': jnp.float32(0)}

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        paper = self.variant == 'paper'
        weak, strong = (inputs.outputs[view]['logits'] for view in (WEAK, STRONG))
        q = targets(weak)
        warm = inputs.progress >= self.warm_up

        count = state['count']
        knowing_nothing = jnp.log(jnp.float32(q.shape[-1]))  # cross-entropy of a uniform prediction, without warm-up
        rho_0 = jnp.where(count > 0, state['losses'].sum() / jnp.maximum(count, 1), knowing_nothing)
        falls = jnp.floor(jnp.maximum(inputs.progress - self.warm_up, 0) * self.decays)
        rho = (_C if paper else 1 / self.gamma) * self.gamma**-falls * rho_0
        label = jnp.where(warm & (rho <= self.rho_min), sharpen(q, 0), sharpen(q, self.temperature))
        rho = jnp.maximum(rho, self.rho_min)

        losses = cross_entropy(label, strong)
        if paper:
            mask = (warm & (losses <= rho)).astype(losses.dtype)
            loss = (mask * losses).mean()
            observed = cross_entropy(inputs.labels, inputs.outputs[LABELED]['logits'])
        else:
            mask = (~warm | (-jnp.log(q.max(-1)) < rho)).astype(losses.dtype)
            loss = 0.9 * (mask * losses).sum() / jnp.maximum(mask.sum(), 1)
            observed = losses
        state = {
            'losses': jnp.where(warm, state['losses'], push(state['losses'], observed)),
            'count': jnp.where(warm, count, jnp.minimum(count + len(observed), len(state['losses']))),
        }
        guess = PseudoLabels(q.argmax(-1), mask)
        return Loss(self.weight * loss, state, {'loss': loss, 'threshold': rho}, guess)
