"""Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230): embeddings equal across views, with uncorrelated dimensions."""

import dataclasses

import jax.numpy as jnp

from methods.base import DISTORTED, DISTORTED2, JOINT, Inputs, Loss, Method, View
from methods.terms import spread
from models.mlp import EPSILON, MLP


@dataclasses.dataclass(frozen=True)
class BarlowTwins(Method):
    """Equation 1: sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2, C the correlation of the views' projections.

    C is over the batch, of dimensions normalised by their mean and biased variance, as in the official code
    (facebookresearch/barlowtwins, main.py). `weight` is the option scale-loss of an early version of that code (0.024;
    0.1 in solo-learn for CIFAR): LARS divides it out, SGD does not. Each view has its own pass through the projection.
    The views are those of methods/byol.py.
    """

    weight: float = 1.0
    off_diagonal: float = 0.0051  # lambda
    hidden: int = 8192  # width of the projection's two hidden layers
    width: int = 8192  # of the projection

    def views(self) -> dict[View, str]:
        return {DISTORTED: JOINT, DISTORTED2: JOINT}

    def mlps(self) -> dict[str, MLP]:
        return {'projection': MLP((self.hidden, self.hidden, self.width), batch_norm=True)}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        views = [inputs.mlp(inputs.params, 'projection', inputs.outputs[view]['features']) for view in self.views()]
        z1, z2 = ((z - z.mean(0)) / jnp.sqrt(z.var(0) + EPSILON) for z in views)
        c = z1.T @ z2 / len(z1)
        same = jnp.eye(self.width, dtype=bool)
        loss = jnp.where(same, jnp.square(1 - c), self.off_diagonal * jnp.square(c)).sum()
        metrics = {'loss': loss, 'correlation': jnp.diagonal(c).mean(), **spread(jnp.concatenate(views))}
        return Loss(self.weight * loss, state, metrics)
