"""Mean Teacher (Tarvainen & Valpola 2017, arXiv:1703.01780): the averaged network teaches the one in training."""

import dataclasses
from typing import ClassVar

import jax

from methods.base import IMAGES, WEAK, WEAK2, Inputs, Loss, Method, View
from methods.terms import ramp, squared_difference, targets


@dataclasses.dataclass(frozen=True)
class MeanTeacher(Method):
    """Equation of section 2: weight * ramp * mean over images and classes of (p(weak; EMA) - p(weak2))^2.

    The teacher is the exponential moving average that the run keeps and evaluates (setting ema_decay, 0.999 in the
    paper). The paper's weight is 100 with a sigmoid ramp over 80 epochs; weight and linear ramp are those of the
    MixMatch and FixMatch codebases. Both networks normalise with the statistics of the batch, which do not enter the
    running ones.
    """

    teacher: ClassVar[bool] = True
    separable = True

    weight: float = 50.0
    ramp: float = 0.4  # fraction of training over which the weight rises

    def views(self) -> dict[View, str]:
        return {WEAK: IMAGES, WEAK2: IMAGES}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        teacher = inputs.forward(inputs.ema_params, inputs.images[WEAK], draw='teacher')[0]['logits']
        student = inputs.forward(inputs.params, inputs.images[WEAK2], draw='student')[0]['logits']
        loss = squared_difference(targets(teacher), jax.nn.softmax(student)).mean()
        return Loss(self.weight * ramp(inputs.progress, self.ramp) * loss, metrics={'loss': loss})
