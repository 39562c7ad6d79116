"""SimCLR (Chen et al. 2020, arXiv:2002.05709): two views of an image are more alike than views of two images."""

import dataclasses

import jax.numpy as jnp

from methods.base import DISTORTED, DISTORTED2, JOINT, Inputs, Loss, Method, View
from methods.terms import cross_entropy, spread, unit
from models.mlp import MLP


@dataclasses.dataclass(frozen=True)
class SimCLR(Method):
    """Equation 1 (NT-Xent): cross-entropy of classifying an image's other view among the 2n - 1 other views of a batch.

    The views are the paper's. Their strengths are in configs/rotation.py, for CIFAR-10 those of appendix B.9 (no blur,
    jitter of strength 0.5). The projection has the paper's two layers; that of the official code has three, and batch
    norm after the last one.
    """

    weight: float = 1.0
    temperature: float = 0.5  # tau
    hidden: int = 2048  # width of the projection's hidden layer, with batch norm
    width: int = 128  # of the projection

    def views(self) -> dict[View, str]:
        return {DISTORTED: JOINT, DISTORTED2: JOINT}

    def mlps(self) -> dict[str, MLP]:
        return {'projection': MLP((self.hidden, self.width), batch_norm=True)}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        features = jnp.concatenate([inputs.outputs[view]['features'] for view in self.views()])
        projections = inputs.mlp(inputs.params, 'projection', features)
        z = unit(projections)
        n = len(z) // 2
        similarity = z @ z.T / self.temperature
        similarity = jnp.where(jnp.eye(2 * n, dtype=bool), -1e9, similarity)
        other = jnp.roll(jnp.arange(2 * n), n)
        loss = cross_entropy(other, similarity).mean()
        accuracy = (similarity.argmax(-1) == other).mean()
        return Loss(self.weight * loss, state, {'loss': loss, 'pair_accuracy': accuracy, **spread(projections)})
