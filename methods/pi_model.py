"""Pi-Model (Laine & Aila 2017, arXiv:1610.02242): two augmentations of an image should give the same probabilities."""

import dataclasses

import jax

from methods.base import IMAGES, WEAK, WEAK2, Inputs, Loss, Method, View
from methods.terms import ramp, squared_difference, targets


@dataclasses.dataclass(frozen=True)
class PiModel(Method):
    """Algorithm 1: weight * ramp * mean over images and classes of (p(weak) - p(weak2))^2.

    The gradient flows through one of the two, as in the MixMatch and FixMatch codebases (in the paper through both,
    which doubles it). Each view is normalised with its own statistics, which do not enter the running ones. The paper
    ramps up exp(-5 (1 - t)^2) over 80 of 300 epochs and has a weight of 100 times the share of labels; here as in
    FixMatch's codebase and USB the ramp is linear.
    """

    weight: float = 10.0
    ramp: float = 0.4  # fraction of training over which the weight rises

    separable = True

    def views(self) -> dict[View, str]:
        return {WEAK: IMAGES, WEAK2: IMAGES}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        constant = jax.lax.stop_gradient(inputs.params)
        teacher = inputs.forward(constant, inputs.images[WEAK], draw='teacher')[0]['logits']
        student = inputs.forward(inputs.params, inputs.images[WEAK2], draw='student')[0]['logits']
        loss = squared_difference(targets(teacher), jax.nn.softmax(student)).mean()
        return Loss(self.weight * ramp(inputs.progress, self.ramp) * loss, metrics={'loss': loss})
