"""BYOL (Grill et al. 2020, arXiv:2006.07733): each view predicts the EMA teacher's projection of the other."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from methods.base import DISTORTED, DISTORTED2, JOINT, Inputs, Loss, Method, View
from methods.terms import spread, unit
from models.mlp import MLP


@dataclasses.dataclass(frozen=True)
class BYOL(Method):
    """Equation 2, symmetrised: the mean over views of ||unit(prediction) - unit(teacher's projection of the other)||^2.

    The teacher's decay is the run's `ema_decay`, a constant (in the paper it rises to 1 by a cosine). The teacher sees
    both views in one batch, normalised with the statistics of that batch. The two views differ in blur and solarization
    (table 6, and byol/utils/augmentations.py of the official code), as set in configs/rotation.py.
    """

    teacher: ClassVar[bool] = True

    weight: float = 1.0
    hidden: int = 4096  # width of the hidden layers of projection and predictor
    width: int = 256  # of the projection

    def views(self) -> dict[View, str]:
        return {DISTORTED: JOINT, DISTORTED2: JOINT}

    def mlps(self) -> dict[str, MLP]:
        return {
            'projection': MLP((self.hidden, self.width), batch_norm=True),
            'predictor': MLP((self.hidden, self.width), lambda *_: self.width, batch_norm=True),
        }

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        features, images = (
            jnp.concatenate(parts)
            for parts in zip(
                *((inputs.outputs[view]['features'], inputs.images[view]) for view in self.views()), strict=True
            )
        )
        z = inputs.mlp(inputs.params, 'projection', features)
        p = inputs.mlp(inputs.params, 'predictor', z)
        teacher = jax.lax.stop_gradient(inputs.ema_params)
        teacher_z = inputs.mlp(teacher, 'projection', inputs.forward(teacher, images)[0]['features'])
        other = jnp.roll(unit(teacher_z), len(z) // 2, axis=0)
        loss = jnp.square(unit(p) - other).sum(-1).mean()
        return Loss(self.weight * loss, state, {'loss': loss, **spread(z)})
