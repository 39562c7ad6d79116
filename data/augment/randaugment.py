"""The strong view: RandAugment and Cutout, in the two variants of published results."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data.augment import ops as ops_lib
from data.augment import pixels
from data.augment.ops import OPS
from data.augment.weak import Weak
from errors import UserError, check_range, unknown

_SLOTS = {'google': 2, 'torchssl': 3}  # number of operations per image, drawn with replacement
_LEVELS = (*range(-9, 0), *range(1, 10))  # google's integer levels, with the sign for geometry
_CIFAR10_MEAN = (125, 123, 114)  # the colour of torchssl's cutout, on every data set


@dataclasses.dataclass(frozen=True)
class Strong:
    """The weak view, then random operations (RandAugment, arXiv:1909.13719), then Cutout (arXiv:1708.04552).

    The protocol is one of

    - 'google', the official code of FixMatch (arXiv:2001.07685, its `d.d.rac`): 2 operations, each applied with
      probability 1/2, at an integer level of 1..9, then a square cutout around a uniform pixel. The cutout is
      grey (0.5), and so are pixels from outside the image, unless a later operation made them opaque.
    - 'torchssl', TorchSSL and USB: 3 operations, always applied, at a continuous magnitude, then a cutout up to
      half as wide as the image, in CIFAR-10's mean colour. Pixels from outside the image are black.
    """

    flip: bool = True  # as in Weak
    vertical_flip: bool = False  # as in Weak
    pad: int = 4  # as in Weak
    min_area: float = 0.0  # as in Weak
    protocol: str = 'google'
    translate: int = 10  # google: translation at level 10, in pixels
    cutout: int = 16  # google: side of the cutout, in pixels
    ops: tuple[str, ...] = OPS  # the operations to draw from

    def __post_init__(self):
        check_range('data.strong.translate', self.translate, 0)
        check_range('data.strong.cutout', self.cutout, 0)
        if not self.ops:
            raise UserError('data.strong.ops must name at least one operation.')
        if self.protocol not in _SLOTS:
            raise unknown('augmentation protocol', self.protocol, _SLOTS)
        for name in self.ops:
            if name not in OPS:
                raise unknown('augmentation operation', name, OPS)

    @property
    def weak(self) -> Weak:
        """The weak part, which comes first."""
        return Weak(self.flip, self.vertical_flip, self.pad, self.min_area)

    def draw(self, key: jax.Array, shape: tuple[int, ...], number: int = 1) -> dict:
        """Returns the random choices for images of shape (B, H, W, C).

        Returns:
            A dict:
            - weak: The draws of Weak.
            - op: int32 [B, 2 or 3], index into OPS; Identity where google skips the operation.
            - magnitude: float32 [B, 2 or 3], in the units of ops.apply.
            - centre: float32 [B, 2], (y, x) of the cutout in pixels.
            - side: float32 [B], of the cutout in pixels.

        Raises:
            UserError: As in Weak.draw.
        """
        del number
        batch, height, width, _ = shape
        weak_key, op_key, cutout_key = jax.random.split(key, 3)
        which, strength, coin = _uniform(op_key, (batch, _SLOTS[self.protocol], 3))
        y, x, size = _uniform(cutout_key, (batch, 3))
        op = jnp.asarray([OPS.index(name) for name in self.ops])[_below(len(self.ops), which)]
        if self.protocol == 'google':
            op = jnp.where(coin < 0.5, op, OPS.index('Identity'))
            magnitude = _google_magnitudes(self.translate)[op, _below(len(_LEVELS), strength)]
            centre = jnp.stack([_below(height, y), _below(width, x)], axis=1).astype(jnp.float32)
            side = jnp.full(batch, self.cutout, jnp.float32)
        else:
            low, high = jnp.moveaxis(_torchssl_bounds(height, width)[op], -1, 0)
            magnitude = low + (high - low) * strength
            magnitude = jnp.where(op == OPS.index('Posterize'), jnp.floor(magnitude), magnitude)
            centre = jnp.stack([y * height, x * width], axis=1)
            side = size * (width / 2)
        weak = self.weak.draw(weak_key, shape)
        return {'weak': weak, 'op': op, 'magnitude': magnitude, 'centre': centre, 'side': side}

    def apply(self, draws: dict, images: jax.Array) -> jax.Array:
        """Returns uint8 images [B, H, W, C], augmented as drawn, as float32 in [0, 1]."""
        _, height, width, channels = images.shape
        if self.protocol == 'google':
            outside = fill = pixels.TRANSPARENT
        else:
            outside, fill = pixels.OPAQUE, pixels.constant(_CIFAR10_MEAN, channels)
        words = pixels.pack(self.weak.move(draws['weak'], images))

        def slot(words, drawn):
            return ops_lib.apply(words, *drawn, channels, outside), None

        words, _ = jax.lax.scan(slot, words, (draws['op'].T, draws['magnitude'].T))  # compiled once for all slots
        rows = self._cut(height, draws['centre'][:, 0], draws['side'])
        columns = self._cut(width, draws['centre'][:, 1], draws['side'])
        return pixels.unpack(jnp.where(rows[:, :, None] & columns[:, None, :], fill, words), channels)

    def _cut(self, size: int, centre: jax.Array, side: jax.Array) -> jax.Array:
        """Returns which of the pixels along an axis the cutout covers, bool [B, size]."""
        pixel, centre, side = jnp.arange(size), centre[:, None], side[:, None]
        if self.protocol == 'google':
            first = centre - side // 2
            return (pixel >= first) & (pixel < first + side)
        # A rectangle of PIL has its last row and column inside.
        first = jnp.floor(jnp.maximum(centre - side / 2, 0))
        return (pixel >= first) & (pixel <= first + side)


def _google_magnitudes(translate: int) -> jax.Array:
    """Returns the operations' magnitudes at each of _LEVELS, float32 [len(OPS), len(_LEVELS)]."""
    signed = np.array(_LEVELS)
    level = np.abs(signed)
    rows = {
        'Rotate': 3 * signed,
        **dict.fromkeys(('ShearX', 'ShearY'), 0.03 * signed),
        **dict.fromkeys(('TranslateX', 'TranslateY'), np.trunc(signed * translate / 10)),
        'Posterize': 4 - level * 4 // 10,
        'Solarize': 256 - level * 256 // 10,
        **dict.fromkeys(ops_lib.ENHANCEMENTS, level * 1.8 / 10 + 0.1),
    }
    return _table(rows)


def _torchssl_bounds(height: int, width: int) -> jax.Array:
    """Returns the bounds of the operations' uniform magnitudes, float32 [len(OPS), 2]."""
    rows = {
        'Rotate': (-30, 30),
        **dict.fromkeys(('ShearX', 'ShearY'), (-0.3, 0.3)),
        'TranslateX': (-0.3 * width, 0.3 * width),
        'TranslateY': (-0.3 * height, 0.3 * height),
        'Posterize': (4, 8),
        'Solarize': (0, 256),
        **dict.fromkeys(ops_lib.ENHANCEMENTS, (0.05, 0.95)),
    }
    return _table(rows)


def _table(rows: dict) -> jax.Array:
    """Returns the rows in the order of OPS. Operations without a magnitude ignore their row, so it may be any."""
    return jnp.asarray([rows.get(name, rows['Rotate']) for name in OPS], jnp.float32)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns numbers in [0, 1), the last axis of `shape` first."""
    return jnp.moveaxis(jax.random.uniform(key, shape), -1, 0)


def _below(count: int, uniform: jax.Array) -> jax.Array:
    """Returns integers in 0..count-1 from numbers in [0, 1)."""
    return (uniform * count).astype(jnp.int32)
