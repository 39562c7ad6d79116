"""RandAugment's fourteen operations on a batch in which each image has its own operation, computed as PIL does.

Geometry is PIL's nearest sampling in 16.16 fixed point, colour PIL's truncating arithmetic on 0..255.

Two things make it fast. A pixel is one number (pixels.py). And `apply` does not compute every operation for every
image: it sorts the images by operation and loops over small chunks with the same one, so an operation runs only on
the images that drew it.

Every operation equals Pillow 13 bit for bit, with two exceptions. AutoContrast: where a stretched level is an
exact integer, PIL's double precision may give the level below (0.4 % of all cases). Rotate: where the source lies
on the edge of two pixels, float32 may choose the other one (about one pixel in a million).
"""

import jax
import jax.numpy as jnp
from jax import lax

from data.augment import pixels

GEOMETRY = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')
ENHANCEMENTS = ('Brightness', 'Color', 'Contrast', 'Sharpness')
# The official FixMatch code takes these through RGB and back, which makes transparent pixels opaque.
POINTWISE = ('AutoContrast', 'Equalize', 'Posterize', 'Solarize')
OPS = ('Identity', *sorted(GEOMETRY + ENHANCEMENTS + POINTWISE))


def apply(words: jax.Array, op: jax.Array, magnitude: jax.Array, channels: int, outside: int) -> jax.Array:
    """Returns the batch with operation OPS[op[i]] applied to image i.

    Args:
        words: int32 [B, H, W], see pixels.py.
        op: int32 [B], index into OPS.
        magnitude: float32 [B] in PIL's units: degrees counter-clockwise, shear in pixels a pixel, translation
            in pixels, bits that Posterize keeps, Solarize's threshold in 0..256, enhancement factor; the
            others ignore it.
        channels: 1 or 3.
        outside: The word for pixels that geometry takes from outside the image.
    """
    batch = len(words)
    # About the share of one operation of fourteen: smaller chunks need more trips, larger ones waste more work.
    chunk = min(batch, max(8, batch // 16))
    order = jnp.argsort(-op)  # Identity, which is 0, comes last and is never visited.
    words, op, magnitude = words[order], op[order], magnitude[order]
    end = jnp.sum(op > 0)
    functions = [_on_words(name, channels, outside) for name in OPS[1:]]

    def trip(state):
        start, words = state
        first = jnp.minimum(start, batch - chunk)
        ops, magnitudes, before = (lax.dynamic_slice_in_dim(x, first, chunk) for x in (op, magnitude, words))
        mine = (ops == op[start]) & (first + jnp.arange(chunk) >= start)
        after = lax.switch(op[start] - 1, functions, before, magnitudes)
        after = jnp.where(mine[:, None, None], after, before)
        return start + jnp.sum(mine), lax.dynamic_update_slice_in_dim(words, after, first, 0)

    _, words = lax.while_loop(lambda state: state[0] < end, trip, (jnp.zeros_like(end), words))
    return words[jnp.argsort(order)]


def _on_words(name: str, channels: int, outside: int):
    """Returns an operation as a function of words int32 [N, H, W] and magnitudes float32 [N]."""

    def move(words, magnitude):
        return _resample(words, *_source(name, magnitude, *words.shape[1:]), outside)

    def recolour(words, magnitude):
        planes = _recolour(name, pixels.split(words, channels), magnitude[:, None, None, None])
        return pixels.join(planes, pixels.OPAQUE if name in POINTWISE else words & pixels.OPAQUE)

    return move if name in GEOMETRY else recolour


def _source(name: str, m: jax.Array, height: int, width: int) -> tuple[tuple, tuple]:
    """Returns PIL's affine map from an output point (x, y) to its source, as a displacement.

    The map is (xx, xy, yx, yy) and a constant (x, y), in pixels; entries are numbers or float32 [N]. With the
    identity added, float32 would lose digits that PIL's double precision has.
    """
    match name:
        case 'Rotate':
            angle = jnp.radians(m)
            sin, versin = jnp.sin(angle), 2 * jnp.sin(angle / 2) ** 2  # versin = 1 - cos
            x, y = width / 2, height / 2
            return (-versin, -sin, sin, -versin), (versin * x + sin * y, versin * y - sin * x)
        case 'ShearX':
            return (0, m, 0, 0), (0, 0)
        case 'ShearY':
            return (0, 0, m, 0), (0, 0)
        case 'TranslateX':
            return (0, 0, 0, 0), (jnp.floor(m + 0.5), 0)
        case 'TranslateY':
            return (0, 0, 0, 0), (0, jnp.floor(m + 0.5))
    raise ValueError(f'{name} is not one of {GEOMETRY}.')


def _resample(words: jax.Array, matrix: tuple, constant: tuple, outside: int) -> jax.Array:
    """Returns words [N, H, W] moved by a map of _source, in PIL's fixed point of 1/65536 pixel."""
    count, height, width = words.shape

    def fixed(value):
        value = jnp.floor(jnp.float32(value) * 65536 + 0.5).astype(jnp.int32)
        return jnp.broadcast_to(value, count)[:, None, None]

    (xx, xy, yx, yy), (x0, y0) = matrix, constant
    y, x = jnp.mgrid[:height, :width]
    from_x = x + (fixed(x0 + 0.5 + (xx + xy) / 2) + fixed(xx) * x + fixed(xy) * y >> 16)
    from_y = y + (fixed(y0 + 0.5 + (yx + yy) / 2) + fixed(yx) * x + fixed(yy) * y >> 16)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    moved = pixels.gather(words, jnp.where(inside, from_y, 0), jnp.where(inside, from_x, 0))
    return jnp.where(inside, moved, outside)


def _recolour(name: str, planes: jax.Array, m: jax.Array) -> jax.Array:
    """Returns planes int32 [N, C, H, W] in 0..255 after an operation of magnitude m, [N, 1, 1, 1]."""
    match name:
        case 'AutoContrast':
            return _auto_contrast(planes)
        case 'Equalize':
            return _equalize(planes)
        case 'Posterize':
            dropped = 8 - m.astype(jnp.int32)
            return planes >> dropped << dropped
        case 'Solarize':
            return jnp.where(planes < m, planes, 255 - planes)
        case 'Brightness':
            return blend(0, planes, m)
        case 'Color':
            return blend(luma(planes), planes, m)
        case 'Contrast':
            return blend(mean(luma(planes)), planes, m)
        case 'Sharpness':
            return blend(_smooth(planes), planes, m)
    raise ValueError(f'{name} is not one of {ENHANCEMENTS + POINTWISE}.')


def _auto_contrast(planes):
    low = jnp.min(planes, axis=(2, 3), keepdims=True)
    span = jnp.max(planes, axis=(2, 3), keepdims=True) - low
    return jnp.where(span > 0, divide(255 * (planes - low), span), planes)


def _equalize(planes):
    count, channels, _, _ = planes.shape
    index = planes + 256 * jnp.arange(count * channels).reshape(count, channels, 1, 1)
    # All histograms in one flat array, which is the fastest form of the scatter and gather that dominate the cost.
    histogram = jnp.zeros(256 * count * channels, jnp.int32)
    histogram = histogram.at[index.reshape(-1)].add(1, mode='promise_in_bounds').reshape(-1, 256)
    darker = (jnp.cumsum(histogram, axis=1) - histogram).reshape(-1)
    rank = darker.at[index].get(mode='promise_in_bounds')  # number of pixels darker than this one
    step = jnp.max(rank, axis=(2, 3), keepdims=True) // 255
    equalized = jnp.minimum(divide(rank + step // 2, step), 255)
    return jnp.where(step > 0, equalized, planes)


def blend(degenerate, planes, factor):
    """Returns PIL's blend: degenerate at factor 0, planes at 1, extrapolated beyond 1, clipped and truncated."""
    # The bound is never reached. It prevents the compiler from fusing product and sum, which PIL rounds separately.
    change = jnp.maximum(factor * (planes - degenerate), -1024)
    return jnp.clip(degenerate + change, 0, 255).astype(jnp.int32)


def luma(planes):
    """Returns the grey levels of planes `[N, C, H, W]`, `[N, 1, H, W]`."""
    return planes if planes.shape[1] == 1 else pixels.luma(*jnp.split(planes, 3, axis=1))


def mean(levels):
    """Returns the mean of planes over each image, rounded, `[N, C, 1, 1]`."""
    area = levels.shape[2] * levels.shape[3]
    return (2 * jnp.sum(levels, axis=(2, 3), keepdims=True) + area) // (2 * area)


def _smooth(planes):
    """Returns PIL's SMOOTH filter: (1 1 1; 1 5 1; 1 1 1) / 13, rounded; the border stays as it is."""
    _, _, height, width = planes.shape
    padded = jnp.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    y, x = jnp.mgrid[:height, :width]
    border = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    return jnp.where(border, planes, divide(box + 4 * planes + 6, 13))


def divide(dividend, divisor):
    """Returns dividend // divisor of small integers >= 0 (0 // 0 is 0), computed in float32, which vectorizes.

    Adding one half makes exact multiples safe from the rounding of any hardware's division.
    """
    return ((dividend + 0.5) / jnp.maximum(divisor, 1)).astype(jnp.int32)
