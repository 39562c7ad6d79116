"""Dash (Xu et al. 2021, ICML): FixMatch with a threshold on the loss that falls during training."""

import dataclasses

import jax
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
from methods.terms import cross_entropy, ema, sharpen, targets


@dataclasses.dataclass(frozen=True)
class Dash(Method):
    """Algorithm 1: the mean of 1(l <= rho) l over unlabeled images, l = H(label of the weak view, p(strong)).

    rho = C gamma^-i rho_0 (equation 8), at least rho_min. rho_0 is the loss on labeled images after a warm-up that
    learns from nothing else (a moving average over its batches; USB: of its evaluation split); i
    grows by one `decays` times in training, every 10 of 1024 epochs there. Labels are sharpened, and hard once rho is
    at rho_min. USB selects by the loss of the weak view instead: select 'weak' (results/README.md has both).
    """

    weight: float = 1.0
    temperature: float = 0.5
    C: float = 1.0001
    gamma: float = 1.27
    rho_min: float = 0.05
    decays: float = 102.4  # how often the threshold falls by gamma
    warm_up: float = 1 / 512  # fraction of training before: 2048 of 2^20 steps
    select: str = 'strong'  # view whose loss is compared with rho: 'strong' (paper) or 'weak'
    statistics: str = JOINT  # of batch norm: 'joint', 'no_grad' or 'separate', see methods/base.py

    def __post_init__(self):
        if self.select not in ('strong', 'weak'):
            raise unknown('view that Dash selects by', self.select, ('strong', 'weak'))

    def views(self) -> dict[View, str]:
        weak, strong = weak_and_strong(self.statistics)
        return {LABELED: JOINT, WEAK: weak, STRONG: strong}

    def init_state(self, data: DataSpec) -> dict:
        return {'rho_0': jnp.log(jnp.float32(data.num_classes))}  # the loss of knowing nothing

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        warm = inputs.progress >= self.warm_up
        labeled = cross_entropy(inputs.labels, jax.lax.stop_gradient(inputs.outputs[LABELED]['logits'])).mean()
        rho_0 = jnp.where(warm, state['rho_0'], ema(state['rho_0'], labeled, 0.9))
        decays = jnp.floor(jnp.maximum(inputs.progress - self.warm_up, 0) * self.decays)
        rho = jnp.maximum(self.C * self.gamma**-decays * rho_0, self.rho_min)

        weak, strong = (inputs.outputs[view]['logits'] for view in (WEAK, STRONG))
        q = targets(weak)
        label = jnp.where(rho <= self.rho_min, sharpen(q, 0), sharpen(q, self.temperature))
        losses = cross_entropy(label, strong)
        compared = jax.lax.stop_gradient({'strong': losses, 'weak': cross_entropy(label, weak)}[self.select])
        guess = PseudoLabels(q.argmax(-1), (warm & (compared <= rho)).astype(jnp.float32))
        loss = (guess.mask * losses).mean()
        return Loss(self.weight * loss, {'rho_0': rho_0}, {'loss': loss, 'threshold': rho}, guess)
