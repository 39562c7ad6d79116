"""The convolution of all networks: XLA's own, and faster implementations where XLA is slow on CPUs.

All `*_conv` have the same arguments and, up to rounding, the same result. The choice depends on the shapes and the
machine, so results are bitwise equal on one machine but not on different kinds of CPU.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Pixels in one product.
_BLOCK_ROWS = 1024
# Up to here XLA:CPU's convolution has a tenth of its usual speed, and a matrix product all of it.
_FEW_PIXELS = 16
_FEW_CHANNELS = 8

Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros above and below, left and right


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, same: bool = False) -> jax.Array:
    """Convolves images with a kernel, zero-padded as in PyTorch or TensorFlow.

    PyTorch's padding is `(k - 1) // 2` on every side. TensorFlow's 'SAME' pads as much as the last output needs, an odd
    pixel at the end, which differs for stride 2. The number of groups follows from the shapes.

    Args:
        x: Images, `[N, H, W, C]`.
        kernel: `[k, k, C / groups, F]`.
        stride: Pixels from one output to the next.
        same: Pad as TensorFlow's 'SAME' does.

    Returns:
        Feature map, `[N, H_out, W_out, F]`.
    """
    size = kernel.shape[0]
    height, width = (_same(n, size, stride) if same else ((size - 1) // 2, (size - 1) // 2) for n in x.shape[1:3])
    padding = height, width
    if jax.default_backend() != 'cpu':
        return xla_conv(x, kernel, stride, padding)
    if kernel.shape[2] == 1 < x.shape[3] == kernel.shape[3]:
        return depthwise_conv(x, kernel, stride, padding)
    if kernel.shape[2] != x.shape[3]:
        return xla_conv(x, kernel, stride, padding)
    pixels = -(-x.shape[1] // stride) * -(-x.shape[2] // stride)
    few = pixels <= _FEW_PIXELS or x.shape[3] < _FEW_CHANNELS
    if few:
        return matmul_conv(x, kernel, stride, padding)
    return (xla_conv if has_avx512() else blocked_conv)(x, kernel, stride, padding)


@functools.cache
def has_avx512() -> bool:
    """Returns whether the CPU has AVX-512, without which XLA:CPU's own gradient is slow; False if it is not known."""
    try:
        with open('/proc/cpuinfo') as lines:
            return 'avx512f' in next((line for line in lines if line.startswith('flags')), '').split()
    except OSError:
        return False


def _same(length: int, size: int, stride: int) -> tuple[int, int]:
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def xla_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves as XLA does, with its own gradients."""
    groups = x.shape[3] // kernel.shape[2]
    names = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=names, feature_group_count=groups
    )


def _patches(x: jax.Array, size: int, stride: int, padding: Padding) -> list[jax.Array]:
    """Returns the pixels under every element of a kernel: size * size arrays `[N, H_out, W_out, C]`."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    return [x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]


def matmul_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves by one matrix product with all patches: fast where they are few or short."""
    patches = jnp.concatenate(_patches(x, kernel.shape[0], stride, padding), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves with `[k, k, 1, C]` by a sum of shifted images: XLA:CPU's own takes 10 to 60 times as long."""
    patches = _patches(x, kernel.shape[0], stride, padding)
    return sum(patch * weight for patch, weight in zip(patches, kernel.reshape(len(patches), -1), strict=True))


def _depthwise_forward(x, kernel, stride, padding):
    return depthwise_conv(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride, padding, residuals, gradient):
    x, kernel = residuals
    # Of a function without this rule: the gradient in the images is fast already.
    (to_x,) = jax.vjp(lambda x: depthwise_conv.__wrapped__(x, kernel, stride, padding), x)[1](gradient)

    def local(x, gradient):
        def add(total, image):
            x, g = image
            patches = _patches(x[None], kernel.shape[0], stride, padding)
            return total + jnp.stack([jnp.sum(patch * g, axis=(0, 1, 2)) for patch in patches]), None

        # One image at a time: its patches stay in cache, and XLA:CPU is slow at long sums.
        zeros = jnp.zeros((kernel.shape[0] ** 2, kernel.shape[3]), x.dtype)
        return jax.lax.scan(add, zeros, (x, gradient))[0]

    return to_x, _sum_over_devices(local)(x, gradient).reshape(kernel.shape)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def blocked_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves as XLA does, with `weight_gradient` where it applies."""
    return xla_conv(x, kernel, stride, padding)


def _forward(x, kernel, stride, padding):
    return xla_conv(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, gradient):
    x, kernel = residuals
    _, vjp = jax.vjp(lambda x, kernel: xla_conv(x, kernel, stride, padding), x, kernel)
    if stride > 1:
        return vjp(gradient)
    return vjp(gradient)[0], weight_gradient(x, gradient, kernel.shape[0])


blocked_conv.defvjp(_forward, _backward)


def weight_gradient(x: jax.Array, gradient: jax.Array, kernel_size: int) -> jax.Array:
    """Computes the gradient of `conv` with stride 1 in its kernel, as a sum of cache-sized matrix products.

    XLA:CPU computes it as a convolution whose kernel is the whole feature map, which without AVX-512 is much slower
    than other convolutions. A matrix product needs k * k shifted copies of the images. Shifting the images horizontally
    and the gradient vertically needs k copies of each instead, and makes both sides of the product wide.

    Args:
        x: Images, `[N, H, W, C]`.
        gradient: Gradient in the output, `[N, H, W, F]`.
        kernel_size: k.

    Returns:
        Gradient in the kernel, `[k, k, C, F]`.
    """
    return _sum_over_devices(functools.partial(_local_weight_gradient, kernel_size=kernel_size))(x, gradient)


def _sum_over_devices(local: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable:
    """Returns `local(images, gradient)` applied to the images of each device, with the results summed."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local
    # A scan over a sharded axis would gather all images first.
    (axis,) = mesh.axis_names
    return jax.shard_map(
        lambda x, g: jax.lax.psum(local(x, g), axis),
        in_specs=jax.P(axis),
        out_specs=jax.P(),
        check_vma=False,  # the scan starts from zeros that do not vary over devices
    )


def _local_weight_gradient(x, gradient, kernel_size):
    n, height, width, features = gradient.shape
    channels = x.shape[-1]
    pad = (kernel_size - 1) // 2
    # A few images at a time, so that their copies are still in cache for the product.
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
