"""The strong view: RandAugment and Cutout, as the two code families that published results come from do it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data.augment import ops, pixels
from data.augment.weak import Weak
from errors import unknown

_SLOTS = {'google': 2, 'torchssl': 3}  # operations an image gets, drawn with replacement
_LEVELS = (*range(-9, 0), *range(1, 10))  # google's magnitudes, with the sign that geometry takes
_TORCHSSL_FILL = (125, 123, 114)  # the colour of its cutout


@dataclasses.dataclass(frozen=True)
class Strong:
    """The weak view, then a few random operations (RandAugment, arXiv 1909.13719), then Cutout (arXiv 1708.04552).

    Protocols:
        google: the official FixMatch code (arXiv 2001.07685, its `d.d.rac`): 2 operations, each with probability
            1/2, at an integer level of 1..9; a square cutout around a uniform pixel. Grey (0.5) fills the cutout,
            and the pixels that geometry pulls in from outside unless a later operation made them opaque black.
        torchssl: TorchSSL and USB: 3 operations, always, at a continuous magnitude; a cutout with a side of up to
            half the width. Black fills the outside, the mean colour of ImageNet the cutout.

    Raises UserError for an unknown protocol or operation.
    """

    flip: bool = True  # as in Weak
    pad: int = 4  # as in Weak
    protocol: str = 'google'  # or 'torchssl'
    translate: int = 10  # google: pixels of translation at level 10
    cutout: int = 16  # google: side of the cutout in pixels
    ops: tuple[str, ...] = ops.OPS  # the pool that operations are drawn from

    def __post_init__(self):
        if self.protocol not in _SLOTS:
            raise unknown('augmentation protocol', self.protocol, _SLOTS)
        for name in self.ops:
            if name not in ops.OPS:
                raise unknown('augmentation operation', name, ops.OPS)

    @property
    def weak(self) -> Weak:
        """The weak part, which comes first."""
        return Weak(flip=self.flip, pad=self.pad)

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> dict:
        """Returns all random choices for images of shape (B, H, W, C); raises ValueError as Weak.draw does.

        weak: the draws of Weak. op: int32 [B, 2 or 3], index into ops.OPS, 0 (Identity) where none applies.
        magnitude: float32, same shape, in the units of ops.apply. The cutout: centre float32 [B, 2] (y, x) and
        side float32 [B], in pixels.
        """
        batch, height, width, _ = shape
        weak_key, op_key, cutout_key = jax.random.split(key, 3)
        which, strength, chance = jnp.moveaxis(
            jax.random.uniform(op_key, (batch, _SLOTS[self.protocol], 3)), -1, 0
        )
        op = jnp.asarray([ops.OPS.index(name) for name in self.ops])[_below(len(self.ops), which)]
        y, x, size = jax.random.uniform(cutout_key, (batch, 3)).T
        if self.protocol == 'google':
            op = jnp.where(chance < 0.5, op, ops.OPS.index('Identity'))
            table = [
                [_google_magnitude(name, level, self.translate) for level in _LEVELS] for name in ops.OPS
            ]
            magnitude = jnp.asarray(table, jnp.float32)[op, _below(len(_LEVELS), strength)]
            centre = jnp.stack([jnp.floor(y * height), jnp.floor(x * width)], axis=1)
            side = jnp.full(batch, self.cutout, jnp.float32)
        else:
            table = [_torchssl_range(name, height, width) for name in ops.OPS]
            low, high = jnp.moveaxis(jnp.asarray(table, jnp.float32)[op], -1, 0)
            magnitude = low + (high - low) * strength
            magnitude = jnp.where(op == ops.OPS.index('Posterize'), jnp.floor(magnitude), magnitude)
            centre = jnp.stack([y * height, x * width], axis=1)
            side = size * (0.5 * width)
        weak = self.weak.draw(weak_key, shape)
        return {'weak': weak, 'op': op, 'magnitude': magnitude, 'centre': centre, 'side': side}

    def apply(self, draws: dict, images: jax.Array) -> jax.Array:
        """Returns uint8 images [B, H, W, C], augmented as drawn, as float32 in [0, 1]."""
        _, height, width, channels = images.shape
        google = self.protocol == 'google'
        outside = pixels.TRANSPARENT if google else pixels.OPAQUE
        words = self.weak.move(draws['weak'], pixels.pack(images))
        for op, magnitude in zip(draws['op'].T, draws['magnitude'].T, strict=True):
            words = ops.apply(words, op, magnitude, channels, outside)
        rows = self._cut(draws['centre'][:, 0], draws['side'], height)
        columns = self._cut(draws['centre'][:, 1], draws['side'], width)
        hole = rows[:, :, None] & columns[:, None, :]
        fill = pixels.TRANSPARENT if google else pixels.constant(_TORCHSSL_FILL, channels)
        return pixels.unpack(jnp.where(hole, fill, words), channels)

    def _cut(self, centre: jax.Array, side: jax.Array, size: int) -> jax.Array:
        """Returns which of an axis's pixels the cutout covers, bool [B, size]."""
        pixel, centre, side = jnp.arange(size), centre[:, None], side[:, None]
        if self.protocol == 'google':
            first = centre - side // 2
            return (pixel >= first) & (pixel < first + side)
        # PIL's rectangle, which includes its last pixel.
        first = jnp.floor(jnp.maximum(centre - side / 2, 0))
        return (pixel >= first) & (pixel <= first + side)


def _below(count: int, uniform: jax.Array) -> jax.Array:
    """Returns integers in 0..count-1 from numbers in [0, 1)."""
    return (uniform * count).astype(jnp.int32)


def _google_magnitude(name: str, level: int, translate: int) -> float:
    """Returns an operation's magnitude at a level of -9..-1 or 1..9; only geometry has use for the sign."""
    size = abs(level)
    match name:
        case 'Rotate':
            return 3 * level
        case 'ShearX' | 'ShearY':
            return 0.03 * level
        case 'TranslateX' | 'TranslateY':
            return int(level * translate / 10)
        case 'Posterize':
            return 4 - int(size * 4 / 10)
        case 'Solarize':
            return 256 - int(size * 256 / 10)
        case 'Brightness' | 'Color' | 'Contrast' | 'Sharpness':
            return size * 1.8 / 10 + 0.1
    return 0


def _torchssl_range(name: str, height: int, width: int) -> tuple[float, float]:
    """Returns the bounds of an operation's uniform magnitude."""
    match name:
        case 'Rotate':
            return -30, 30
        case 'ShearX' | 'ShearY':
            return -0.3, 0.3
        case 'TranslateX':
            return -0.3 * width, 0.3 * width
        case 'TranslateY':
            return -0.3 * height, 0.3 * height
        case 'Posterize':
            return 4, 8
        case 'Solarize':
            return 0, 256
        case 'Brightness' | 'Color' | 'Contrast' | 'Sharpness':
            return 0.05, 0.95
    return 0, 0
