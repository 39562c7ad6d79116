"""DAN and JAN (Long et al. 2015, arXiv:1502.02791, and 2017, arXiv:1605.06636): maximum mean discrepancy.

DAN minimises it between the features of both domains, JAN between features and predictions jointly.
"""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import JOINT, LABELED, WEAK, Inputs, Loss, Method, View
from methods.terms import predictions


@dataclasses.dataclass(frozen=True)
class MMD(Method):
    """The squared maximum mean discrepancy between source and target, E k(s, s') + E k(t, t') - 2 E k(s, t).

    DAN: equation 1 with the kernels of section 4.1. Its estimate of linear complexity is the default: the mean over i
    of k(s_i, s_i+1) + k(t_i, t_i+1) - k(s_i, t_i+1) - k(s_i+1, t_i) over the batch, where the last example is followed
    by the first. TLlib's scripts and the authors' code (thuml/Xlearn) do the same; in the paper no example is in two
    pairs. If a domain has fewer examples than the other, they are repeated. Without `linear` the estimate is the mean
    over all pairs of different examples, TLlib's default for JAN. The 2 / (n - 1) that TLlib adds is left out: it has
    no gradient.

    k is the sum of Gaussians whose variances are `scales` times the mean squared distance of the batch (TLlib; in the
    authors' code the mean leaves out an example's distance to itself). With `joint` k is the product of that sum for
    the features and one Gaussian of the predicted probabilities (JAN: equation 9), of standard deviation 0.92 (TLlib;
    2 * 0.92^2 is about the authors' 1.68).
    """

    weight: float = 1.0
    joint: bool = False  # JAN instead of DAN
    linear: bool = True  # neighbours in the batch instead of all pairs
    scales: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)

    def views(self) -> dict[View, str]:
        return {LABELED: JOINT, WEAK: JOINT}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        source, target = inputs.outputs[LABELED], inputs.outputs[WEAK]
        distance = _squared_distances(jnp.concatenate([source['features'], target['features']]))
        mean = jnp.maximum(jax.lax.stop_gradient(distance.mean()), 1e-12)
        kernel = jnp.stack([jnp.exp(-distance / (2 * scale * mean)) for scale in self.scales]).sum(0)
        if self.joint:
            p = jax.nn.softmax(jnp.concatenate([source['logits'], target['logits']]))
            kernel *= jnp.exp(-_squared_distances(p) / (2 * 0.92**2))
        estimate = _neighbours if self.linear else _all_pairs
        loss = estimate(kernel, len(source['features']))
        return Loss(self.weight * loss, state, {'loss': loss}, predictions(target['logits']))


def _neighbours(kernel: jax.Array, n: int) -> jax.Array:
    """Returns the estimate from neighbouring pairs.

    Args:
        kernel: k for all pairs of n source and then m target examples, `[n + m, n + m]`.
        n: Number of source examples.
    """
    m = len(kernel) - n
    i = jnp.arange(max(n, m))
    s, next_s, t, next_t = i % n, (i + 1) % n, n + i % m, n + (i + 1) % m
    return (kernel[s, next_s] + kernel[t, next_t] - kernel[s, next_t] - kernel[next_s, t]).mean()


def _all_pairs(kernel: jax.Array, n: int) -> jax.Array:
    """Returns the unbiased estimate from all pairs of different examples; arguments as for `_neighbours`."""
    domains = kernel[:n, :n], kernel[n:, n:]
    within = [(part.sum() - jnp.trace(part)) / (len(part) * (len(part) - 1)) for part in domains]
    return sum(within) - 2 * kernel[:n, n:].mean()


def _squared_distances(x: jax.Array) -> jax.Array:
    """Returns the squared distances between all pairs of x `[n, D]`, `[n, n]`."""
    square = jnp.square(x).sum(-1)
    return jnp.maximum(square[:, None] + square - 2 * x @ x.T, 0)
