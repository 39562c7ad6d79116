"""The layers of all networks: plain Flax with explicit names and PyTorch's or TensorFlow's padding.

Two layers do more than Flax's own, for the needs of methods, without changes to any network. `models.Model` passes them
their inputs in the variable collection 'given', under the name of the layer:

- `BatchNorm` normalises with the given moments, or with those of its batch, which it stores in the collection
  'moments'. So images that need no gradient can pass the network separately, normalised with another batch's moments.
- `Dropout` takes a random key for each image, so that the dropped units depend neither on the composition of the batch
  nor on the number of devices. Without keys it drops nothing.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import precision
from models.conv import conv


class Conv(nn.Module):
    """2-D convolution, kernel `[k, k, C_in / groups, features]`.

    Attributes:
        same: Pad as TensorFlow does, not by `(k - 1) // 2` on every side as PyTorch does.
        standardize: Subtract from each filter its mean and divide it by its standard deviation, with 1e-10 added to the
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
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param('kernel', self.kernel_init, shape)
        if self.standardize:
            mean, var = kernel.mean((0, 1, 2)), kernel.var((0, 1, 2))
            kernel = (kernel - mean) * jax.lax.rsqrt(var + 1e-10)
        y = conv(*precision.factors(x, kernel), self.stride, self.same).astype(x.dtype)
        return y + self.param('bias', nn.initializers.zeros, (self.features,)) if self.bias else y


class Dense(nn.Module):
    """Maps `[N, C_in]` to `[N, features]`: a kernel `[C_in, features]` and a bias."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', nn.initializers.glorot_normal(), (x.shape[-1], self.features))
        return precision.matmul(x, kernel) + self.param('bias', nn.initializers.zeros, (self.features,))


def block(layers: Callable[[jax.Array], Any], x: jax.Array, module: nn.Module, remat: bool) -> Any:
    """Runs some layers of a network.

    Args:
        layers: The layers, as a function of their input.
        x: Their input.
        module: The network.
        remat: Keep nothing of them but their input and output; the backward pass runs them again, which takes less
            memory and up to a third more time (rematerialisation: Chen et al. 2016, arXiv:1604.06174).
    """
    if not remat or module.is_initializing():
        return layers(x)
    return nn.remat(lambda _, x: layers(x))(module, x)


class Moments(NamedTuple):
    """Mean and variance of each channel, with a first axis of 2 if source and target domain are separate.

    Attributes:
        mean: float32 `[C]` or `[2, C]`.
        var: The biased variance, of the same shape.
        count: Number of values in a channel, float32 `[]` or `[2, 1]`.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # type: ignore[assignment] # a tuple has a method of that name


class BatchNorm(nn.Module):
    """Batch norm with the statistics of the whole (global) batch, or with given ones.

    In training the collection 'given' holds one of these, or nothing:

    - `Moments` of another batch: The layer normalises with them, and its own images enter the running statistics only,
      which are then over both batches. No gradient of a loss may flow through the layer then: with the moments as
      constants it would be wrong and let the scale of the network grow without bound.
    - A mean and a variance without count, those of a frozen layer: The layer runs as in evaluation.

    With 'domains', 0 for images of the source and 1 for those of the target, int32 `[N]`, this holds for each domain
    separately, and 'shares' `[2]` weights the domains in the running statistics. If the layer has the parameters
    'scale_target' and 'bias_target', target images and evaluation use those.

    Attributes:
        momentum: Decay of the running statistics (0.9 here is 0.1 in PyTorch). The running variance is the unbiased
            one, as in PyTorch and in TensorFlow's fused kernel.
        epsilon: Added to the variance.
    """

    momentum: float
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,))
        source = scale, bias
        scale, bias = (
            self.get_variable('params', f'{name}_target', value) for name, value in (('scale', scale), ('bias', bias))
        )
        given: Any = self.variables.get('given', {})
        domains = given.get('domains') if train else None
        if not train:
            mean, var = running_mean.value, running_var.value
        elif 'mean' in given and 'count' not in given:
            mean, var = given['mean'], given['var']
        else:
            own = _moments(x) if domains is None else _moments_by_domain(x, domains)
            if 'mean' in given:
                batch = Moments(given['mean'], given['var'], given['count'])
                pooled = _pool(batch, own)
            else:
                batch = pooled = own
                if self.is_mutable_collection('moments'):
                    for name, value in own._asdict().items():
                        self.put_variable('moments', name, value)
            mean, var = batch.mean, batch.var
            new_mean, new_var = pooled.mean, pooled.var * (pooled.count / jnp.maximum(pooled.count - 1, 1))
            if domains is not None:
                with precision.used('float32'):
                    new_mean, new_var = given['shares'] @ new_mean, given['shares'] @ new_var
            decay = self.momentum
            running_mean.value = decay * running_mean.value + (1 - decay) * new_mean
            running_var.value = decay * running_var.value + (1 - decay) * new_var
        if domains is not None:
            scale, bias = jnp.stack([source[0], scale]), jnp.stack([source[1], bias])
        slope = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = bias - mean * slope
        if domains is not None:
            slope, shift = (a[domains].reshape(len(x), *[1] * (x.ndim - 2), channels) for a in (slope, shift))
        return x * slope + shift


class GroupNorm(nn.Module):
    """Group norm (Wu & He 2018, arXiv:1803.08494): each image and group of channels by its own moments."""

    groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        grouped = x.reshape(*x.shape[:3], self.groups, channels // self.groups)
        mean, var = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (jnp.mean, jnp.var))
        return ((grouped - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(x.shape) * scale + bias


class Dropout(nn.Module):
    """Sets units to zero with probability `rate` in training and divides the others by 1 - rate.

    Attributes:
        whole: '' drops each unit independently (dropout), 'channel' whole feature maps, 'image' all units of an image
            or none (stochastic depth, Huang et al. 2016, arXiv:1603.09382).
    """

    rate: float
    whole: str = ''

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        if self.is_mutable_collection('drops'):  # tells `models.Model` that this layer takes keys
            self.put_variable('drops', 'rate', jnp.float32(self.rate))
        given: Any = self.variables.get('given', {})
        if 'keys' not in given:
            return x
        shape = {'': x.shape[1:], 'channel': x.shape[-1:], 'image': ()}[self.whole]
        number = zlib.crc32(str(self.name).encode())  # distinct for each layer

        def drop(key: jax.Array, x: jax.Array) -> jax.Array:
            keep = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - self.rate, shape)
            return jnp.where(keep, x / (1 - self.rate), 0)

        return jax.vmap(drop)(given['keys'], x)


def _moments(x: jax.Array) -> Moments:
    """Returns the moments of `[N, ..., C]`, in one pass over x."""
    axes = tuple(range(1, x.ndim - 1))
    n = x.size // x.shape[-1]
    # Over each image first: short sums are exact enough for E[x^2] - E[x]^2, and twice as fast on XLA:CPU.
    mean = x.sum(axes).sum(0) / n
    square = jnp.square(x).sum(axes).sum(0) / n
    return Moments(mean, jnp.maximum(square - jnp.square(mean), 0), jnp.asarray(n, x.dtype))


def _moments_by_domain(x: jax.Array, domains: jax.Array) -> Moments:
    """Returns the moments of the images of each domain."""
    axes = tuple(range(1, x.ndim - 1))
    members = jax.nn.one_hot(domains, 2, axis=0, dtype=x.dtype)
    count = members.sum(1, keepdims=True) * (x.size / len(x) / x.shape[-1])
    known = jnp.maximum(count, 1)  # a domain may have no image
    with precision.used('float32'):
        mean = members @ x.sum(axes) / known
        square = members @ jnp.square(x).sum(axes) / known
    return Moments(mean, jnp.maximum(square - jnp.square(mean), 0), count)


def _pool(a: Moments, b: Moments) -> Moments:
    """Returns the moments of two batches together."""
    count = a.count + b.count
    share = a.count / jnp.maximum(count, 1)
    mean = share * a.mean + (1 - share) * b.mean
    between = share * (1 - share) * jnp.square(a.mean - b.mean)
    return Moments(mean, share * a.var + (1 - share) * b.var + between, count)
