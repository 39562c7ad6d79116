"""DAN and JAN (Long et al. 2015, arXiv:1502.02791, and 2017, arXiv:1605.06636): the same features by maximum mean
discrepancy, alone or together with the predictions."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import JOINT, LABELED, WEAK, Inputs, Loss, Method, View
from methods.terms import predictions


@dataclasses.dataclass(frozen=True)
class MMD(Method):
    """The squared maximum mean discrepancy between source and target, without bias.

    mean k(s, s') + mean k(t, t') - 2 mean k(s, t) over pairs of different examples (DAN: equation 1 with the kernels
    of section 4.1). k is a mean of Gaussians whose variances are `scales` times the mean squared distance of the batch,
    as in TLlib. With `joint` k is the product of such a kernel of the features and a Gaussian of the
    predicted probabilities (JAN: equation 9), of standard deviation 0.92 as in TLlib.
    """

    weight: float = 1.0
    joint: bool = False  # JAN instead of DAN
    scales: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)

    def views(self) -> dict[View, str]:
        return {LABELED: JOINT, WEAK: JOINT}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        source, target = inputs.outputs[LABELED], inputs.outputs[WEAK]
        distance = _squared_distances(jnp.concatenate([source['features'], target['features']]))
        mean = jnp.maximum(jax.lax.stop_gradient(distance.mean()), 1e-12)
        kernel = jnp.stack([jnp.exp(-distance / (2 * scale * mean)) for scale in self.scales]).mean(0)
        if self.joint:
            p = jax.nn.softmax(jnp.concatenate([source['logits'], target['logits']]))
            kernel *= jnp.exp(-_squared_distances(p) / (2 * 0.92**2))
        n, m = len(source['features']), len(target['features'])
        within = [
            (part.sum() - jnp.trace(part)) / (k * (k - 1)) for part, k in ((kernel[:n, :n], n), (kernel[n:, n:], m))
        ]
        loss = sum(within) - 2 * kernel[:n, n:].mean()
        return Loss(self.weight * loss, state, {'loss': loss}, predictions(target['logits']))


def _squared_distances(x: jax.Array) -> jax.Array:
    """Between all pairs of `[n, D]`: `[n, n]`."""
    square = jnp.square(x).sum(-1)
    return jnp.maximum(square[:, None] + square - 2 * x @ x.T, 0)
