"""PIL's resize, hue shift and Gaussian blur, on a batch in which each image has its own parameters.

All are computed in integers, as PIL does for images of 8 bits, so they equal Pillow 13 bit for bit. The exception is
the blur: PIL computes the weights of its box in float32, and their last bit depends on how the device divides. It may
change a pixel by one level.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from data.augment import pixels
from data.augment.ops import divide

FILTERS = {'bilinear': 2, 'bicubic': 4}  # number of source pixels of an enlarged one, along an axis
_BITS = 22  # of the fraction of a resize weight
MAX_SIGMA = 2.0  # of the blur, in pixels: its boxes then reach less than _REACH pixels to each side
_REACH = 2
_PASSES = 3  # box blurs that make a Gaussian one


def resized_crop(words: jax.Array, box: jax.Array, flip: jax.Array, channels: int, interpolation: str) -> jax.Array:
    """Returns a part of each image, resized to the size of the image and then mirrored, int32 [B, C, H, W].

    Args:
        words: int32 [B, H, W], see pixels.py.
        box: int32 [B, 4], top, left, height and width of the part in pixels.
        flip: bool [B, 2], whether to mirror it vertically and horizontally.
        channels: 1 or 3.
        interpolation: One of FILTERS. A part is never larger than the image, so no antialiasing is needed.
    """
    for axis in (2, 1):  # PIL resizes rows first and rounds in between.
        size = words.shape[axis]
        side, place = box[:, axis + 1, None], jnp.arange(size)
        place = jnp.where(flip[:, axis - 1, None], size - 1 - place, place)
        first, weights = (jnp.asarray(table)[side, place] for table in _enlarge(size, interpolation))
        total = jnp.int32(1 << (_BITS - 1))
        for tap in range(FILTERS[interpolation]):
            index = jnp.expand_dims(jnp.minimum(box[:, axis - 1, None] + first + tap, size - 1), 3 - axis)
            moved = jnp.take_along_axis(words, index, axis, mode='promise_in_bounds')
            total += pixels.split(moved, channels) * jnp.expand_dims(weights[..., tap], (1, 4 - axis))
        planes = jnp.clip(total >> _BITS, 0, 255)
        words = pixels.join(planes, pixels.OPAQUE)
    return planes


def _enlarge(size: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights with which PIL resizes up to `size` pixels to `size` pixels.

    Args:
        size: Number of pixels after resizing.
        interpolation: One of FILTERS.

    Returns:
        The first source pixel of each pixel, int32 [size + 1, size], and the weights of that and the following ones, in
        units of 2^-22, int32 [size + 1, size, taps]. The first axis is the number of pixels before resizing.
    """
    taps = FILTERS[interpolation]
    there = np.maximum(np.arange(size + 1), 1)[:, None, None]
    centre = (np.arange(size)[:, None] + 0.5) * (there / size)
    first = np.floor(centre + (1 - taps) / 2).astype(int)
    source = first + np.arange(taps)
    x = np.abs(source + 0.5 - centre)
    if interpolation == 'bilinear':
        weights = 1 - x
    else:  # Keys's with a = -1/2
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5)
    weights = np.where((source >= 0) & (source < there), weights, 0)
    weights = weights / weights.sum(-1, keepdims=True)
    weights = np.trunc(weights * 2**_BITS + np.copysign(0.5, weights)).astype(np.int32)
    below = np.maximum(-first, 0)  # pixels before the first of the image, whose weights are zero
    weights = np.take_along_axis(np.pad(weights, ((0, 0), (0, 0), (0, taps))), below + np.arange(taps), -1)
    return (first + below)[..., 0].astype(np.int32), weights


def shift_hue(planes: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns planes converted to HSV, shifted in hue and converted back, as PIL does.

    Args:
        planes: int32 [B, 3, H, W].
        shift: int32 [B], in levels of the hue, which has 256. 0 is not the identity: HSV has fewer colours than RGB.
    """
    red, green, blue = planes[:, 0], planes[:, 1], planes[:, 2]
    high = planes.max(1)
    span = high - planes.min(1)
    turn = jnp.where(  # in sixths of a turn, times span
        red == high,
        green - blue,
        jnp.where(green == high, 2 * span + blue - red, 4 * span + red - green),
    )
    turn = 85 * jnp.where(turn < 0, turn + 6 * span, turn)
    hue = divide(turn, 2 * span)
    exact = hue * (2 * span) == turn
    hue -= exact & jnp.asarray(_short_hues()).at[hue].get(mode='promise_in_bounds')
    saturation = divide(255 * span, high)
    hue = hue + shift[:, None, None] & 255
    # How far each of red, green and blue lies below the value, as a fraction of the saturation, in 1/255.
    turn = (6 * hue)[:, None] + 255 * jnp.asarray([5, 3, 1])[:, None, None]
    turn = jnp.where(turn >= 1530, turn - 1530, turn)
    below = jnp.clip(jnp.minimum(turn, 1020 - turn), 0, 255)
    return high[:, None] - lax.div((high * saturation)[:, None] * below + 32512, 65025)


def _short_hues() -> np.ndarray:
    """Returns the hue levels at which PIL's mixture of float32 and double gives one less than an exact integer."""
    level = np.arange(256)
    sector = (level + 42) // 85 * 2  # the primary colour that is nearest, in sixths of a turn
    difference = (2 * level - 85 * sector) / 85
    rest = (1 - np.abs(difference)).astype(np.float32).astype(float)
    hue = (sector % 6 + np.where(difference < 0, rest - 1, 1 - rest)).astype(np.float32)
    turn = np.fmod(hue.astype(float) / 6 + 1, 1).astype(np.float32)
    return np.trunc(turn.astype(float) * 255) < level % 255


def gaussian_blur(planes: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns planes int32 [B, C, H, W] after a Gaussian blur of standard deviation sigma, [B], in 0..MAX_SIGMA.

    As in PIL it is three extended box blurs along each axis (Gwosdek et al. 2011), with rounding after each.
    """
    variance = jnp.square(sigma) / _PASSES
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    whole = whole.astype(jnp.int32)
    inside = (2**24 / (2 * (whole + part) + 1)).astype(jnp.uint32)
    edge = (2**24 - (2 * whole + 1).astype(jnp.uint32) * inside) // 2
    distance = jnp.arange(_REACH + 1)[:, None]
    weights = jnp.where(distance <= whole, inside, jnp.where(distance == whole + 1, edge, 0))

    def box(lines, _):
        """Blurs along the first axis. Images are the last axis, so that summands and weights are contiguous."""
        size = len(lines)
        padded = jnp.concatenate([lines[:1]] * _REACH + [lines] + [lines[-1:]] * _REACH)
        total = 2**23 + lines * weights[0]
        for k in range(1, _REACH + 1):
            total += (padded[_REACH - k :][:size] + padded[_REACH + k :][:size]) * weights[k]
        return total >> 24, None

    lines = planes.astype(jnp.uint32).transpose(3, 2, 1, 0)
    for _ in range(2):
        lines = lax.scan(box, lines, length=_PASSES)[0].swapaxes(0, 1)
    return lines.transpose(3, 2, 1, 0).astype(jnp.int32)
