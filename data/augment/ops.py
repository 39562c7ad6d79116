"""RandAugment's fourteen operations on a batch in which each image has its own, computed as PIL computes them.

Geometry follows PIL's 16.16 fixed-point nearest sampling, colours its integer and truncating arithmetic.
Against Pillow 13: TODO

Two ideas make it fast. Pixels are packed into words (pixels.py). And instead of computing all operations for
all images and choosing afterwards, `apply` sorts the images by operation and loops over small chunks that
share one, so that an operation costs only the images that drew it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from data.augment import pixels


def apply(words: jax.Array, op: jax.Array, magnitude: jax.Array, channels: int, outside: int) -> jax.Array:
    """Returns the batch with operation OPS[op[i]] applied to image i.

    Args:
        words: int32 [B, H, W], see pixels.py.
        op: int32 [B], index into OPS.
        magnitude: float32 [B] in PIL's units: degrees counter-clockwise, shear as pixels a pixel, translation
            in pixels, bits kept, solarize threshold (0..256), enhancement factor. Ignored by the other three.
        channels: 1 or 3.
        outside: the word of pixels that geometry pulls in from outside the image.
    """
    batch = len(words)
    # One operation of fourteen gets about this share; smaller chunks mean more trips, larger ones idle slots.
    chunk = min(batch, max(8, batch // 16))
    order = jnp.argsort(-op)  # Identity, which is 0, comes last and is never visited
    words, op, magnitude = words[order], op[order], magnitude[order]
    position = jnp.arange(batch)
    end = jnp.sum(op > 0)
    functions = [_on_words(name, channels, outside) for name in OPS[1:]]

    def trip(state):
        start, words = state
        first = jnp.minimum(start, batch - chunk)
        op_, magnitude_, position_, before = (
            lax.dynamic_slice_in_dim(x, first, chunk) for x in (op, magnitude, position, words)
        )
        mine = (op_ == op[start]) & (position_ >= start)
        after = lax.switch(op[start] - 1, functions, before, magnitude_)
        after = jnp.where(mine[:, None, None], after, before)
        return start + jnp.sum(mine), lax.dynamic_update_slice_in_dim(words, after, first, 0)

    _, words = lax.while_loop(lambda state: state[0] < end, trip, (jnp.zeros_like(end), words))
    return words[jnp.argsort(order)]


def _on_words(name: str, channels: int, outside: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the operation as a function of words int32 [N, H, W] and magnitudes float32 [N]."""

    def move(words, magnitude):
        return _affine(words, *_GEOMETRY[name](magnitude, *words.shape[1:]), outside)

    def recolour(words, magnitude):
        planes = _COLOUR[name](pixels.split(words, channels), magnitude[:, None, None, None])
        return pixels.join(planes, pixels.OPAQUE if name in _FLATTENING else words & pixels.OPAQUE)

    return move if name in _GEOMETRY else recolour


# Geometry. Each function returns (xx, xy, yx, yy), (x, y): the affine map from an output pixel to its source in
# pixels, less the identity, with which float32 would lose digits that PIL has. Entries are numbers or float32 [N].


def _rotate(degrees, height, width):
    angle = jnp.radians(degrees)
    sine, versine = jnp.sin(angle), 2 * jnp.sin(angle / 2) ** 2  # versine = 1 - cosine
    x, y = width / 2, height / 2
    return (-versine, -sine, sine, -versine), (versine * x + sine * y, versine * y - sine * x)


def _shear_x(factor, height, width):
    return (0.0, factor, 0.0, 0.0), (0.0, 0.0)


def _shear_y(factor, height, width):
    return (0.0, 0.0, factor, 0.0), (0.0, 0.0)


def _translate_x(shift, height, width):
    return (0.0, 0.0, 0.0, 0.0), (jnp.floor(shift + 0.5), 0.0)


def _translate_y(shift, height, width):
    return (0.0, 0.0, 0.0, 0.0), (0.0, jnp.floor(shift + 0.5))


def _affine(words: jax.Array, matrix: tuple, shift: tuple, outside: int) -> jax.Array:
    """Returns words [N, H, W] resampled from their nearest pixels, as PIL's transform does: in units of 1/65536."""
    count, height, width = words.shape

    def fixed(value):
        value = jnp.floor(value * 65536 + 0.5).astype(jnp.int32)
        return jnp.broadcast_to(value, count)[:, None, None]

    (xx, xy, yx, yy), (x0, y0) = matrix, shift
    y, x = jnp.mgrid[:height, :width]
    # The source of a pixel's centre (0.5, 0.5), rounded down.
    from_x = x + (fixed(x0 + 0.5 + 0.5 * xx + 0.5 * xy) + fixed(xx) * x + fixed(xy) * y >> 16)
    from_y = y + (fixed(y0 + 0.5 + 0.5 * yx + 0.5 * yy) + fixed(yx) * x + fixed(yy) * y >> 16)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    moved = pixels.gather(words, jnp.where(inside, from_y, 0), jnp.where(inside, from_x, 0))
    return jnp.where(inside, moved, outside)


# Colour. Each function takes planes int32 [N, C, H, W] in 0..255 and a magnitude float32 [N, 1, 1, 1].


def _auto_contrast(planes, _):
    low = jnp.min(planes, axis=(2, 3), keepdims=True)
    span = jnp.max(planes, axis=(2, 3), keepdims=True) - low
    return jnp.where(span > 0, _divide(255 * (planes - low), span), planes)


def _equalize(planes, _):
    count, channels, height, width = planes.shape
    levels = planes.reshape(count * channels, height * width)
    # One flat array of counts: XLA's CPU scatter is slower with two index dimensions.
    row = 256 * jnp.arange(count * channels)[:, None]
    histogram = jnp.zeros(256 * count * channels, jnp.int32).at[levels + row].add(1, mode='promise_in_bounds')
    histogram = histogram.reshape(count * channels, 256)
    below = jnp.cumsum(histogram, axis=1) - histogram
    brightest = jnp.take_along_axis(histogram, jnp.max(levels, axis=1, keepdims=True), axis=1)
    step = (height * width - brightest) // 255
    rank = jnp.take_along_axis(below, levels, axis=1, mode='promise_in_bounds')
    equalized = jnp.minimum(_divide(rank + step // 2, step), 255)
    return jnp.where(step > 0, equalized, levels).reshape(planes.shape)


def _posterize(planes, bits):
    dropped = 8 - bits.astype(jnp.int32)
    return planes >> dropped << dropped


def _solarize(planes, threshold):
    return jnp.where(planes < threshold, planes, 255 - planes)


def _brightness(planes, factor):
    return _blend(0, planes, factor)


def _color(planes, factor):
    return _blend(_luma(planes), planes, factor)


def _contrast(planes, factor):
    luma = _luma(planes)
    area = luma.shape[2] * luma.shape[3]
    mean = (2 * jnp.sum(luma, axis=(2, 3), keepdims=True) + area) // (2 * area)  # rounded, half up
    return _blend(mean, planes, factor)


def _sharpness(planes, factor):
    _, _, height, width = planes.shape
    padded = jnp.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    columns = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    box = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]
    y, x = jnp.mgrid[:height, :width]
    border = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    smooth = jnp.where(border, planes, ((box + 4 * planes) / 13 + 0.5).astype(jnp.int32))
    return _blend(smooth, planes, factor)


def _blend(degenerate, planes, factor):
    """Returns PIL's blend: from degenerate (factor 0) through planes (factor 1) and beyond, clipped, rounded down."""
    return jnp.clip(degenerate + factor * (planes - degenerate), 0, 255).astype(jnp.int32)


def _luma(planes):
    """Returns PIL's conversion to mode L, [N, 1, H, W]."""
    return planes if planes.shape[1] == 1 else pixels.luma(*jnp.split(planes, 3, axis=1))


def _divide(dividend, divisor):
    """Returns dividend // divisor for small non-negative integers (0 // 0 is 0), in float32, which vectorizes.

    The half keeps quotients of multiples clear of the rounding of any hardware's division.
    """
    return ((dividend + 0.5) / jnp.maximum(divisor, 1)).astype(jnp.int32)


_GEOMETRY = {
    'Rotate': _rotate,
    'ShearX': _shear_x,
    'ShearY': _shear_y,
    'TranslateX': _translate_x,
    'TranslateY': _translate_y,
}
_COLOUR = {
    'AutoContrast': _auto_contrast,
    'Brightness': _brightness,
    'Color': _color,
    'Contrast': _contrast,
    'Equalize': _equalize,
    'Posterize': _posterize,
    'Sharpness': _sharpness,
    'Solarize': _solarize,
}
# The official FixMatch code takes these through PIL's RGB mode and back, which makes transparent pixels opaque.
_FLATTENING = ('AutoContrast', 'Equalize', 'Posterize', 'Solarize')

OPS = ('Identity', *sorted([*_GEOMETRY, *_COLOUR]))
