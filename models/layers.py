"""Convolution, dense layer and batch norm over a batch of which one part may need no gradient.

A consistency method labels its weak view with the network and trains on the strong one. The weak view needs no
backward pass, which is a third of the step's work. So every layer here maps a `Batch` to a `Batch`: two arrays,
one with and one without gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.conv import conv


class Batch(NamedTuple):
    """Images or activations `[N, ...]` of one joint forward pass.

    grad: the part that gradients flow through, and that batch norm takes its statistics from.
    no_grad: the part that is only looked at, normalised with the statistics of the other; or None.
    """

    grad: jax.Array
    no_grad: jax.Array | None = None

    def map(self, f: Callable[[jax.Array], jax.Array]) -> 'Batch':
        """Applies f, which must not use parameters, to both parts."""
        return Batch(*(None if x is None else f(x) for x in self))


class Conv(nn.Module):
    """2-D convolution, kernel `[k, k, C_in, features]`, padded by `(k - 1) // 2` on every side as in PyTorch."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    kernel_init: Callable = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Batch) -> Batch:
        shape = (self.kernel_size, self.kernel_size, x.grad.shape[-1], self.features)
        kernel = self.param('kernel', self.kernel_init, shape)
        constant = jax.lax.stop_gradient(kernel)
        return Batch(
            conv(x.grad, kernel, self.stride),
            None if x.no_grad is None else conv(x.no_grad, constant, self.stride),
        )


class Dense(nn.Module):
    """Maps `[N, C_in]` to `[N, features]`: a kernel `[C_in, features]` and a bias."""

    features: int

    @nn.compact
    def __call__(self, x: Batch) -> Batch:
        kernel = self.param('kernel', nn.initializers.glorot_normal(), (x.grad.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        constant = None if x.no_grad is None else jax.lax.stop_gradient(x.no_grad @ kernel + bias)
        return Batch(x.grad @ kernel + bias, constant)


class BatchNorm(nn.Module):
    """Batch norm with the statistics of the whole (global) batch that has a gradient.

    The part without gradient is normalised with them as well, and must not enter them: as a constant there it
    would make the gradient wrong, which follows the network's scale and so trains it to grow without bound.
    Running statistics, used in evaluation, are over both parts. momentum is their decay (0.9 here is 0.1 in
    PyTorch); the running variance is the unbiased one, as in PyTorch and in TensorFlow's fused kernel.
    """

    momentum: float
    epsilon: float

    @nn.compact
    def __call__(self, x: Batch, train: bool) -> Batch:
        channels = x.grad.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,))
        if train:
            mean, var = _moments(x.grad)
            pooled_mean, pooled_var, n = mean, var, x.grad.size / channels
            if x.no_grad is not None:
                pooled_mean, pooled_var, n = _pool(mean, var, x.grad, x.no_grad)
            decay = self.momentum
            running_mean.value = decay * running_mean.value + (1 - decay) * pooled_mean
            running_var.value = decay * running_var.value + (1 - decay) * pooled_var * (n / max(n - 1, 1))
        else:
            mean, var = running_mean.value, running_var.value
        slope = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = bias - mean * slope
        grad = x.grad * slope + shift
        if x.no_grad is None:
            return Batch(grad)
        return Batch(grad, x.no_grad * jax.lax.stop_gradient(slope) + jax.lax.stop_gradient(shift))


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and (biased) variance of `[N, ..., C]` per channel, in one pass over x."""
    axes = tuple(range(1, x.ndim - 1))
    n = x.size // x.shape[-1]
    # Image by image first: short sums are exact enough for E[x^2] - E[x]^2, and XLA:CPU is twice as fast at them.
    mean = x.sum(axes).sum(0) / n
    square = jnp.square(x).sum(axes).sum(0) / n
    return mean, jnp.maximum(square - jnp.square(mean), 0)


def _pool(mean: jax.Array, var: jax.Array, x: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array, float]:
    """Returns mean, variance and number of values per channel of x, whose moments are given, and other together."""
    n, m = (a.size / a.shape[-1] for a in (x, other))
    other_mean, other_var = _moments(other)
    share = n / (n + m)
    pooled = share * var + (1 - share) * other_var + share * (1 - share) * jnp.square(mean - other_mean)
    return share * mean + (1 - share) * other_mean, pooled, n + m
