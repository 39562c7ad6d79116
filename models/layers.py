"""The layers of all networks, over a batch of which one part may need no gradient.

A consistency method labels its weak view with the network and trains on the strong one. The weak view needs no
backward pass, which is a third of the step's work. So every layer here maps a `Batch` to a `Batch`: two arrays,
one with and one without gradient.
"""

from collections.abc import Callable, Mapping
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

    def map(self, f: Callable[..., jax.Array], *others: 'Batch') -> 'Batch':
        """Applies f, which must not use parameters, to both parts of this batch and of others."""
        return Batch(*(None if part[0] is None else f(*part) for part in zip(self, *others, strict=True)))


class Mode(NamedTuple):
    """How a forward pass treats what is not the same in training and in evaluation.

    train: batch norm takes its statistics from the batch and updates the running ones; units are dropped.
    frozen: layers that in training, too, are as in evaluation.
    keys: a random key for each image, for what drops units or blocks; None where nothing does.
    frozen_statistics: all batch norms use their running statistics in training, too, and keep them.
    batch_norm: one of DOMAIN_POLICIES.
    domains: 0 for each image of the source domain and 1 for the target's, int32 `[N]`; None for one domain only.
    """

    train: bool
    frozen: frozenset[str] = frozenset()
    keys: Batch | None = None
    frozen_statistics: bool = False
    batch_norm: str = 'joint'
    domains: Batch | None = None


# What batch norm makes of two domains, as shares of each (source, target) in the running statistics of evaluation.
DOMAIN_POLICIES = {
    'joint': None,  # one batch: statistics of all images together (TLlib)
    'separate': (0.5, 0.5),  # each domain by its own statistics; evaluation by their average (Dassl, DeepDA)
    'adabn': (0.0, 1.0),  # each by its own, evaluation by the target's (Li et al. 2016, arXiv:1603.04779)
    # With scale and bias of their own, too (Chang et al. 2019, arXiv:1906.03950). Images that a method passes by itself
    # (`Inputs.forward`), and those in frozen layers, take the target's.
    'domain_specific': (0.0, 1.0),
}


class Conv(nn.Module):
    """2-D convolution, kernel `[k, k, C_in / groups, features]`.

    same: pad as TensorFlow does, instead of by `(k - 1) // 2` on every side as PyTorch does.
    standardize: subtract from each filter its mean and divide it by its standard deviation, with 1e-10 added to the
        variance (weight standardisation, Qiao et al. 2019, arXiv:1903.10520, as in BiT).
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    same: bool = False
    standardize: bool = False
    bias: bool = False
    kernel_init: Callable = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

    @nn.compact
    def __call__(self, x: Batch) -> Batch:
        shape = (self.kernel_size, self.kernel_size, x.grad.shape[-1] // self.groups, self.features)
        kernel = self.param('kernel', self.kernel_init, shape)
        if self.standardize:
            mean, var = kernel.mean((0, 1, 2)), kernel.var((0, 1, 2))
            kernel = (kernel - mean) * jax.lax.rsqrt(var + 1e-10)
        constant = jax.lax.stop_gradient(kernel)
        y = Batch(
            conv(x.grad, kernel, self.stride, self.same),
            None if x.no_grad is None else conv(x.no_grad, constant, self.stride, self.same),
        )
        if not self.bias:
            return y
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        return Batch(y.grad + bias, None if y.no_grad is None else y.no_grad + jax.lax.stop_gradient(bias))


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

    With `Mode.domains` all this is done for each domain by itself.
    """

    momentum: float
    epsilon: float

    @nn.compact
    def __call__(self, x: Batch, mode: Mode) -> Batch:
        channels = x.grad.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,))
        source = scale, bias
        if mode.batch_norm == 'domain_specific':
            scale = self.param('scale_target', nn.initializers.ones, (channels,))
            bias = self.param('bias_target', nn.initializers.zeros, (channels,))
        if mode.train and not mode.frozen_statistics and self.name not in mode.frozen:
            if mode.domains is not None:
                (mean, var), (pooled_mean, pooled_var) = _moments_by_domain(x, mode.domains)
                shares, decay = jnp.asarray(DOMAIN_POLICIES[mode.batch_norm]), self.momentum
                running_mean.value = decay * running_mean.value + (1 - decay) * shares @ pooled_mean
                running_var.value = decay * running_var.value + (1 - decay) * shares @ pooled_var
                slope = jnp.stack([source[0], scale]) * jax.lax.rsqrt(var + self.epsilon)
                shift = jnp.stack([source[1], bias]) - mean * slope
                each = (mode.domains.map(lambda d, a=a: _per_image(a, d, x.grad.ndim)) for a in (slope, shift))
                return _scale_and_shift(x, *each)
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
        return _scale_and_shift(x, Batch(slope, slope), Batch(bias - mean * slope, bias - mean * slope))


class GroupNorm(nn.Module):
    """Group norm (Wu & He 2018, arXiv:1803.08494): each image and group of channels by its own moments."""

    groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Batch) -> Batch:
        channels = x.grad.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))

        def normalise(x: jax.Array) -> jax.Array:
            grouped = x.reshape(*x.shape[:3], self.groups, channels // self.groups)
            mean, var = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (jnp.mean, jnp.var))
            return ((grouped - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(x.shape)

        return _scale_and_shift(x.map(normalise), Batch(scale, scale), Batch(bias, bias))


def _scale_and_shift(x: Batch, slope: Batch, shift: Batch) -> Batch:
    if x.no_grad is None:
        return Batch(x.grad * slope.grad + shift.grad)
    constant = x.no_grad * jax.lax.stop_gradient(slope.no_grad) + jax.lax.stop_gradient(shift.no_grad)
    return Batch(x.grad * slope.grad + shift.grad, constant)


def _per_image(values: jax.Array, domains: jax.Array, rank: int) -> jax.Array:
    """Returns values `[2, C]` of each image's domain, `[N, 1, ..., C]` of that rank."""
    each = values[domains]
    return each.reshape(len(each), *[1] * (rank - 2), -1)


def drop(x: Batch, mode: Mode, rate: float, layer: int, whole: str = '') -> Batch:
    """Sets units of x to zero with probability `rate` in training and divides the others by 1 - rate.

    layer: another number for every place where a network drops something.
    whole: '' drops each unit by itself (dropout), 'channel' whole feature maps, 'image' all units of an image or none
        (stochastic depth, Huang et al. 2016, arXiv:1603.09382).
    """
    if not mode.train or rate == 0:
        return x

    def one(key: jax.Array, x: jax.Array) -> jax.Array:
        shape = {'': x.shape, 'channel': x.shape[-1:], 'image': ()}[whole]
        keep = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, shape)
        return jnp.where(keep, x / (1 - rate), 0)

    return mode.keys.map(jax.vmap(one), x)


def add(x: Batch, y: Batch) -> Batch:
    """Returns x + y."""
    return x.map(jnp.add, y)


def classify(features: Batch, num_classes: int, heads: Mapping[str, tuple[int, ...]], slope: float) -> dict[str, Batch]:
    """Adds everything on top of the features `[N, D]`, within a network: layers whose names begin with 'head'.

    heads: {name of an output beside 'features' and 'logits': widths of its layers}.
    slope: of the leaky ReLU between a head's layers.
    """
    outputs = {'features': features, 'logits': Dense(num_classes, name='head')(features)}
    for head, widths in heads.items():
        y = features
        for i, width in enumerate(widths):
            if i > 0:
                y = y.map(lambda y: nn.leaky_relu(y, slope))
            y = Dense(width, name=f'head_{head}{i + 1}')(y)
        outputs[head] = y
    return outputs


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and (biased) variance of `[N, ..., C]` per channel, in one pass over x."""
    axes = tuple(range(1, x.ndim - 1))
    n = x.size // x.shape[-1]
    # Image by image first: short sums are exact enough for E[x^2] - E[x]^2, and XLA:CPU is twice as fast at them.
    mean = x.sum(axes).sum(0) / n
    square = jnp.square(x).sum(axes).sum(0) / n
    return mean, jnp.maximum(square - jnp.square(mean), 0)


def _moments_by_domain(x: Batch, domains: Batch) -> tuple:
    """Returns (mean, biased variance) of the part with gradient and (mean, unbiased variance) of all, `[2, C]` each."""

    def sums(x: jax.Array, domains: jax.Array) -> tuple[jax.Array, ...]:
        axes = tuple(range(1, x.ndim - 1))
        members = jax.nn.one_hot(domains, 2, axis=0)
        count = members.sum(1, keepdims=True) * (x.size / len(x) / x.shape[-1])
        return count, members @ x.sum(axes), members @ jnp.square(x).sum(axes)

    def moments(count, total, squares):
        count = jnp.maximum(count, 1)
        mean = total / count
        var = jnp.maximum(squares / count - jnp.square(mean), 0)
        return mean, var, var * count / jnp.maximum(count - 1, 1)

    parts = sums(x.grad, domains.grad)
    mean, var, unbiased = moments(*parts)
    if x.no_grad is None:
        return (mean, var), (mean, unbiased)
    both = map(jnp.add, parts, sums(x.no_grad, domains.no_grad))
    pooled_mean, _, pooled_var = moments(*both)
    return (mean, var), (pooled_mean, pooled_var)


def _pool(mean: jax.Array, var: jax.Array, x: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array, float]:
    """Returns mean, variance and number of values per channel of x, whose moments are given, and other together."""
    n, m = (a.size / a.shape[-1] for a in (x, other))
    other_mean, other_var = _moments(other)
    share = n / (n + m)
    pooled = share * var + (1 - share) * other_var + share * (1 - share) * jnp.square(mean - other_mean)
    return share * mean + (1 - share) * other_mean, pooled, n + m
