"""The format of a batch during augmentation: one int32 per pixel, red | green << 8 | blue << 16 | opaque << 24.

Moving a pixel is then a gather of one number instead of three, and an image is a plain [H, W] array, which
vectorizes. Grey images use the lowest byte only. Opaque is PIL's alpha channel as one bit.
"""

import jax
import jax.numpy as jnp

TRANSPARENT = 0
OPAQUE = 1 << 24  # Also opaque black.


def pack(images: jax.Array) -> jax.Array:
    """Returns uint8 images [B, H, W, C] as opaque words [B, H, W].

    Raises:
        ValueError: C is neither 1 nor 3.
    """
    if images.shape[-1] not in (1, 3):
        raise ValueError(f'Images must have 1 or 3 channels, not shape {images.shape}.')
    return join(jnp.moveaxis(images, -1, 1).astype(jnp.int32), OPAQUE)


def unpack(words: jax.Array, channels: int) -> jax.Array:
    """Returns words [B, H, W] as float32 [B, H, W, C] in [0, 1]; transparent pixels are 0.5, mid-grey."""
    levels = jnp.stack([words >> 8 * c & 255 for c in range(channels)], axis=-1)
    return jnp.where((words >= OPAQUE)[..., None], levels.astype(jnp.float32) / 255, 0.5)


def split(words: jax.Array, channels: int) -> jax.Array:
    """Returns the colours of words [B, H, W] as planes int32 [B, C, H, W] in 0..255."""
    return words[:, None] >> 8 * jnp.arange(channels)[:, None, None] & 255


def join(planes: jax.Array, alpha: jax.Array | int) -> jax.Array:
    """Returns the words [B, H, W] of planes [B, C, H, W] and alpha: OPAQUE, TRANSPARENT or [B, H, W]."""
    words = planes[:, 0] | alpha
    for c in range(1, planes.shape[1]):
        words = words | planes[:, c] << 8 * c
    return words


def luma(red, green, blue):
    """Returns the grey level of a colour, integers or integer arrays in 0..255, as PIL's mode L rounds it."""
    return 19595 * red + 38470 * green + 7471 * blue + 32768 >> 16


def constant(colour: tuple[int, int, int], channels: int) -> int:
    """Returns the opaque word of a colour, or of its luma if channels is 1."""
    red, green, blue = colour
    return OPAQUE | (luma(*colour) if channels == 1 else red | green << 8 | blue << 16)


def gather(images: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Returns images[b, y[b, i, j], x[b, i, j]] for images [B, H, W, ...]; y and x must lie inside."""
    batch, height, width = images.shape[:3]
    index = jnp.broadcast_to(y * width + x, (batch, height, width)).reshape(batch, height * width, 1)
    flat = images.reshape(batch, height * width, -1)
    return jnp.take_along_axis(flat, index, axis=1, mode='promise_in_bounds').reshape(images.shape)
