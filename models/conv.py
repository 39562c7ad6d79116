"""The convolution of all networks: XLA's own, and faster implementations where XLA is slow on CPUs.

All `*_conv` have, up to rounding, the same result, and but for `pointwise_conv` the same arguments. The choice depends
on the shapes and the machine, so results are bitwise equal on one machine but not on different kinds of CPU.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

# Pixels in one product, and in one sum, but at least an image.
_BLOCK_ROWS = 1024
_SUMMED_ROWS = 64
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
    # The faster ones sum in the type of the images.
    mode = 'plain' if x.dtype == jnp.bfloat16 else _modes[-1]
    if mode == 'portable':  # each platform gets its own when the program is lowered for it
        fast = functools.partial(_cpu_conv, stride=stride, padding=padding)
        plain_one = functools.partial(xla_conv, stride=stride, padding=padding)
        return jax.lax.platform_dependent(x, kernel, cpu=fast, default=plain_one)
    if mode == 'plain' or jax.default_backend() != 'cpu':
        return xla_conv(x, kernel, stride, padding)
    return _cpu_conv(x, kernel, stride, padding)


def _cpu_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    kernel, padding = _without_padding_only(kernel, stride, padding, x.shape[1:3])
    if kernel.shape[2] == 1 < x.shape[3] == kernel.shape[3]:
        return depthwise_conv(x, kernel, stride, padding)
    if kernel.shape[2] != x.shape[3]:
        return xla_conv(x, kernel, stride, padding)
    pixels = -(-x.shape[1] // stride) * -(-x.shape[2] // stride)
    if kernel.shape[0] == stride == 1:
        return pointwise_conv(x, kernel)
    if pixels <= _FEW_PIXELS or x.shape[3] < _FEW_CHANNELS:
        return matmul_conv(x, kernel, stride, padding)
    # The weight gradient of `blocked_conv` is for kernels with a centre.
    fast = has_avx512() or kernel.shape[0] % 2 == 0
    return (xla_conv if fast else blocked_conv)(x, kernel, stride, padding)


_modes = ['']


@contextlib.contextmanager
def traced_as(mode: str) -> Iterator[None]:
    """Changes how convolutions are traced, for export.

    Args:
        mode: 'plain' for XLA's own, which other compilers know; 'portable' for the fastest on the platform that the
            program is lowered for.
    """
    _modes.append(mode)
    try:
        yield
    finally:
        _modes.pop()


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


def _without_padding_only(kernel, stride: int, padding: Padding, shape: tuple[int, ...]) -> tuple[jax.Array, Padding]:
    """Returns the kernel without rows and columns that only ever meet padding, as on maps smaller than the kernel."""
    size, first, last = kernel.shape[0], kernel.shape[0] - 1, 0
    for (before, after), length in zip(padding, shape, strict=True):
        outputs = (before + length + after - size) // stride + 1
        first = min(first, max(0, before - stride * (outputs - 1)))
        last = max(last, min(size - 1, before + length - 1))
    (top, bottom), (left, right) = padding
    trimmed = (top - first, bottom - (size - 1 - last)), (left - first, right - (size - 1 - last))
    return kernel[first : last + 1, first : last + 1], trimmed


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
    return pointwise_conv(patches, kernel.reshape(1, 1, -1, kernel.shape[3]))


@jax.custom_vjp
def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves with `[1, 1, C, F]` by a matrix product: XLA:CPU's own gradient takes up to 8 times as long."""
    return x @ kernel[0, 0]


def _pointwise_forward(x, kernel):
    return pointwise_conv(x, kernel), (x, kernel)


def _pointwise_backward(residuals, gradient):
    # XLA would transpose both in memory, together with what they are computed from.
    x, gradient = jax.lax.optimization_barrier((residuals[0], gradient))
    kernel = residuals[1]
    to_kernel = x.reshape(-1, x.shape[-1]).T @ gradient.reshape(-1, gradient.shape[-1])
    return gradient @ kernel[0, 0].T, to_kernel[None, None]


pointwise_conv.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves with `[k, k, 1, C]` by a sum of shifted images: XLA:CPU's own takes 10 to 60 times as long."""
    patches = _patches(x, kernel.shape[0], stride, padding)
    return sum(patch * weight for patch, weight in zip(patches, kernel.reshape(len(patches), -1), strict=True))


def _depthwise_forward(x, kernel, stride, padding):
    return depthwise_conv(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride, padding, residuals, gradient):
    x, kernel = residuals
    # XLA would compute the gradient anew for every shift of it.
    gradient = jax.lax.optimization_barrier(gradient)
    to_x = _depthwise_input_gradient(gradient, kernel, stride, padding, x.shape[1:3])

    def local(x, gradient):
        n, height, width, channels = gradient.shape
        # A few images at a time: their patches stay in cache. A product with ones is XLA:CPU's fastest sum.
        block = _block(n, height * width, _SUMMED_ROWS)
        ones = jnp.ones((1, block * height * width), x.dtype)

        def add(total, images):
            x, g = images
            patches = _patches(x, kernel.shape[0], stride, padding)
            return total + jnp.concatenate([ones @ (patch * g).reshape(-1, channels) for patch in patches]), None

        blocks = (x.reshape(-1, block, *x.shape[1:]), gradient.reshape(-1, block, *gradient.shape[1:]))
        return jax.lax.scan(add, jnp.zeros((kernel.shape[0] ** 2, channels), x.dtype), blocks)[0]

    return to_x, _sum_over_devices(local)(x, gradient).reshape(kernel.shape)


def _depthwise_input_gradient(gradient, kernel, stride, padding, shape):
    """Returns the gradient in the images: for each residue of their rows and columns by the stride, a sum of shifts."""
    size = kernel.shape[0]
    # An output o reads the pixel stride * o + i - padding with the element i of the kernel. So the pixel stride * q + r
    # has a part in the outputs q + (r + padding - i) / stride, for every i with which that is an integer.
    taps = [
        [[(i, (r + before - i) // stride) for i in range((r + before) % stride, size, stride)] for r in range(stride)]
        for before, _ in padding
    ]
    height, width = (-(-n // stride) for n in shape)
    gradient = jnp.pad(gradient, ((0, 0), (size, size), (size, size), (0, 0)))

    def pixels(rows, columns):
        terms = [
            gradient[:, size + a : size + a + height, size + b : size + b + width] * kernel[i, j, 0]
            for i, a in rows
            for j, b in columns
        ]
        return sum(terms, jnp.zeros((len(gradient), height, width, gradient.shape[3]), gradient.dtype))

    parts = jnp.stack([jnp.stack([pixels(rows, columns) for columns in taps[1]], 3) for rows in taps[0]], 2)
    merged = parts.reshape(len(gradient), height * stride, width * stride, -1)
    return merged[:, : shape[0], : shape[1]]


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


def _block(images: int, pixels: int, most: int) -> int:
    """Returns how many of the images to take at a time: a divisor, with at most so many pixels if possible."""
    return max(b for b in range(1, images + 1) if images % b == 0 and (b == 1 or b * pixels <= most))


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
    block = _block(n, height * width, _BLOCK_ROWS)

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
