"""SimSiam (Chen & He 2021, arXiv:2011.10566): each view predicts the other one, with a stop-gradient."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import DISTORTED, DISTORTED2, JOINT, Inputs, Loss, Method, View
from methods.terms import spread, unit
from models.mlp import MLP


@dataclasses.dataclass(frozen=True)
class SimSiam(Method):
    """Equations 1 to 4: the mean of -cos(predictor(z1), z2) and -cos(predictor(z2), z1), from -1 to 1.

    The views are weaker ones of SimCLR's kind, with the strengths of the official code (main_simsiam.py), set in
    configs/rotation.py, and without blur on CIFAR (appendix D). The projection's last layer has no batch norm here (the
    paper's table 3: 67.4 % on ImageNet instead of 68.1 %).
    """

    weight: float = 1.0
    hidden: int = 2048  # width of the projection's hidden layer
    width: int = 2048  # of the projection
    predictor: int = 512  # width of the predictor's hidden layer

    def views(self) -> dict[View, str]:
        return {DISTORTED: JOINT, DISTORTED2: JOINT}

    def mlps(self) -> dict[str, MLP]:
        return {
            'projection': MLP((self.hidden, self.width), batch_norm=True),
            'predictor': MLP((self.predictor, self.width), lambda *_: self.width, batch_norm=True),
        }

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        features = jnp.concatenate([inputs.outputs[view]['features'] for view in self.views()])
        z = inputs.mlp(inputs.params, 'projection', features)
        p = inputs.mlp(inputs.params, 'predictor', z)
        other = jnp.roll(unit(jax.lax.stop_gradient(z)), len(z) // 2, axis=0)
        loss = -(unit(p) * other).sum(-1).mean()
        return Loss(self.weight * loss, state, {'loss': loss, **spread(z)})
