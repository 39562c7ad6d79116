"""VICReg (Bardes et al. 2022, arXiv:2105.04906): variance, invariance and covariance regularisation of embeddings."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import DISTORTED, DISTORTED2, JOINT, Inputs, Loss, Method, View
from methods.terms import spread
from models.mlp import MLP

_EPSILON = 1e-4  # of the standard deviation


@dataclasses.dataclass(frozen=True)
class VICReg(Method):
    """Equation 6: invariance * s(Z, Z') + variance * (v(Z) + v(Z')) + covariance * (c(Z) + c(Z')).

    As in the official code (facebookresearch/vicreg, main_vicreg.py), s is the mean squared difference over images and
    dimensions (the paper sums over dimensions), and v(Z) + v(Z') is halved (the paper and solo-learn do not). Variances
    and covariances are the unbiased ones. Each view has its own pass through the projection. The views are those of
    methods/byol.py.
    """

    weight: float = 1.0
    invariance: float = 25.0  # lambda
    variance: float = 25.0  # mu
    covariance: float = 1.0  # nu
    hidden: int = 8192  # width of the projection's two hidden layers
    width: int = 8192  # of the projection

    def views(self) -> dict[View, str]:
        return {DISTORTED: JOINT, DISTORTED2: JOINT}

    def mlps(self) -> dict[str, MLP]:
        return {'projection': MLP((self.hidden, self.hidden, self.width), batch_norm=True)}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        views = [inputs.mlp(inputs.params, 'projection', inputs.outputs[view]['features']) for view in self.views()]
        covariances = jnp.stack([jnp.cov(z, rowvar=False) for z in views])
        deviations = jnp.sqrt(jnp.diagonal(covariances, axis1=1, axis2=2) + _EPSILON)
        s = jnp.square(views[0] - views[1]).mean()
        v = jax.nn.relu(1 - deviations).mean()
        same = jnp.eye(self.width, dtype=bool)
        c = jnp.where(same, 0, jnp.square(covariances)).sum() / self.width
        loss = self.invariance * s + self.variance * v + self.covariance * c
        metrics = {'loss': loss, 'invariance': s, 'variance': v, 'covariance': c, **spread(jnp.concatenate(views))}
        return Loss(self.weight * loss, state, metrics)
