"""Cross-entropy on the labeled images: alone the baseline, beside other methods their labeled term."""

import dataclasses

import jax
import jax.numpy as jnp

from errors import unknown
from methods.base import JOINT, LABELED, Inputs, Loss, Method, View
from methods.terms import cross_entropy

# Schedules of training signal annealing, from progress in [0, 1] (UDA, arXiv:1904.12848v2, section 3.2).
ANNEALING = {
    'linear': lambda t: t,
    'log': lambda t: 1 - jnp.exp(-5 * t),
    'exp': lambda t: jnp.exp(5 * (t - 1)),
}


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """Mean cross-entropy of the weakly augmented labeled images (FixMatch, equation 3).

    With training signal annealing (UDA) the mean is over the images whose true class has a probability of at most eta,
    which rises from 1 / C to 1: eta = alpha(progress) (1 - 1 / C) + 1 / C. The official scripts for CIFAR-10 and SVHN
    do not use it. TorchSSL and USB compare the largest probability, and average over all labeled images.
    """

    weight: float = 1.0  # factor of this term in the total loss
    annealing: str = ''  # schedule alpha of training signal annealing: 'linear', 'log', 'exp' or '' for none

    def __post_init__(self):
        if self.annealing and self.annealing not in ANNEALING:
            raise unknown('schedule of training signal annealing', self.annealing, ANNEALING)

    @property
    def separable(self) -> bool:
        return not self.annealing

    def views(self) -> dict[View, str]:
        return {LABELED: JOINT}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        logits = inputs.outputs[LABELED]['logits']
        losses = cross_entropy(inputs.labels, logits)
        metrics = {'accuracy': (logits.argmax(-1) == inputs.labels).mean()}
        if self.annealing:
            chance = 1 / logits.shape[-1]
            eta = ANNEALING[self.annealing](inputs.progress) * (1 - chance) + chance
            kept = (jax.lax.stop_gradient(jnp.exp(-losses)) <= eta).astype(losses.dtype)
            loss = (kept * losses).sum() / jnp.maximum(kept.sum(), 1)
            metrics |= {'threshold': eta, 'kept': kept.mean()}
        else:
            loss = losses.mean()
        return Loss(self.weight * loss, metrics={'loss': loss, **metrics})
