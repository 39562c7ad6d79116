"""The convolution under every network: XLA's own, with faster ways on CPUs where it is slow."""

import functools

import jax
import jax.numpy as jnp

# Pixels in one product.
_BLOCK_ROWS = 1024
# Up to here XLA:CPU's convolution falls to a tenth of its speed, and a matrix product keeps it.
_FEW_PIXELS = 16
_FEW_CHANNELS = 8


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves `[N, H, W, C]` with `[k, k, C, F]`, zero-padded by `(k - 1) // 2` on every side.

    The explicit padding is PyTorch's; XLA's 'SAME' would shift strided convolutions by a pixel.
    """
    if jax.default_backend() != 'cpu':
        return xla_conv(x, kernel, stride)
    pixels = -(-x.shape[1] // stride) * -(-x.shape[2] // stride)
    few = pixels <= _FEW_PIXELS or x.shape[3] < _FEW_CHANNELS
    return (matmul_conv if few else blocked_conv)(x, kernel, stride)


def xla_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same, with XLA's own gradients."""
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def matmul_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same, as one matrix product with all patches: fast where they are few or short."""
    size, _, channels, features = kernel.shape
    pad = (size - 1) // 2
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    patches = [
        x[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(size * size * channels, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def blocked_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same, with `weight_gradient` where it applies."""
    return xla_conv(x, kernel, stride)


def _forward(x, kernel, stride):
    return xla_conv(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, gradient):
    x, kernel = residuals
    _, vjp = jax.vjp(lambda x, kernel: xla_conv(x, kernel, stride), x, kernel)
    if stride > 1:
        return vjp(gradient)
    return vjp(gradient)[0], weight_gradient(x, gradient, kernel.shape[0])


blocked_conv.defvjp(_forward, _backward)


def weight_gradient(x: jax.Array, gradient: jax.Array, kernel_size: int) -> jax.Array:
    """The gradient of `conv` with stride 1 in its kernel, as a sum of cache-sized matrix products.

    XLA:CPU makes it a convolution whose kernel is the whole feature map, at a fraction of the speed of others.
    A matrix product needs k * k shifted copies of the images. Shifting the images sideways and the gradient up and
    down takes k copies of each instead, and makes both sides of the product wide.

    x: `[N, H, W, C]`; gradient: `[N, H, W, F]`. Returns `[k, k, C, F]`.
    """
    local = functools.partial(_local_weight_gradient, kernel_size=kernel_size)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(x, gradient)
    # Each device sums over its own images: a scan over a sharded axis would gather them all first.
    (axis,) = mesh.axis_names
    return jax.shard_map(
        lambda x, g: jax.lax.psum(local(x, g), axis),
        in_specs=jax.P(axis),
        out_specs=jax.P(),
        check_vma=False,  # the scan starts from zeros that do not vary over devices
    )(x, gradient)


def _local_weight_gradient(x, gradient, kernel_size):
    n, height, width, features = gradient.shape
    channels = x.shape[-1]
    pad = (kernel_size - 1) // 2
    # A few images at a time, so that their copies are still in cache when they are multiplied.
    block = max(b for b in range(1, n + 1) if n % b == 0 and (b == 1 or b * height * width <= _BLOCK_ROWS))

    def add(total, images):
        x, g = images
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        sideways = [x[:, :, j : j + width] for j in range(kernel_size)]
        up_and_down = [jnp.pad(g, ((0, 0), (i, 2 * pad - i), (0, 0), (0, 0))) for i in range(kernel_size)]
        x = jnp.concatenate(sideways, axis=-1).reshape(-1, kernel_size * channels)
        g = jnp.concatenate(up_and_down, axis=-1).reshape(-1, kernel_size * features)
        return total + x.T @ g, None

    blocks = (x.reshape(-1, block, *x.shape[1:]), gradient.reshape(-1, block, *gradient.shape[1:]))
    total, _ = jax.lax.scan(add, jnp.zeros((kernel_size * channels, kernel_size * features), x.dtype), blocks)
    return total.reshape(kernel_size, channels, kernel_size, features).transpose(2, 0, 1, 3)
