"""The distorted view of contrastive learning: SimCLR's random crop, colour jitter, blur and solarization."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from data.augment import ops, pil, pixels
from errors import UserError, check_range, unknown

_RATIO = 4 / 3  # of the longer to the shorter side of a crop, at most
_ATTEMPTS = 10  # number of crops drawn, of which the first that fits into the image is taken
_ORDERS = list(itertools.permutations(range(3)))
_MIN_SIGMA = 0.1  # of the blur, in pixels
_SOLARIZED_FROM = 128


@dataclasses.dataclass(frozen=True)
class Distorted:
    """A random resized crop and flip, colour jitter, grayscale, Gaussian blur and solarization, in this order.

    From SimCLR (Chen et al. 2020, arXiv:2002.05709). The defaults are those of CoMatch's code for CIFAR
    (datasets/cifar.py of github.com/salesforce/CoMatch) and of SimSiam on CIFAR (arXiv:2011.10566, appendix D). The
    arithmetic is that of torchvision's transforms on PIL images, which the codes of CoMatch, SimSiam, Barlow Twins and
    VICReg use. The codes of SimCLR and BYOL differ in detail: they compute in floating point and blur with a Gaussian
    cut off at 5 % of the image's side instead of PIL's box filters, and SimCLR's crops have a uniform instead of a
    log-uniform ratio. Gray images have no saturation and no hue.
    """

    flip: bool = True  # as in Weak
    vertical_flip: bool = False  # as in Weak
    scale: tuple[float, ...] = (0.2, 1.0)  # the least and the greatest area of a crop, as fractions of the image
    interpolation: str = 'bilinear'  # or 'bicubic'
    jitter: float = 0.8  # probability of the next four changes, in random order
    brightness: float = 0.4  # greatest change of the factor, around 1
    contrast: float = 0.4  # as brightness
    saturation: float = 0.4  # as brightness
    hue: float = 0.1  # greatest shift, as a fraction of the circle
    gray: float = 0.2  # probability of grayscale
    blur: tuple[float, ...] = (0.0, 0.0)  # probability in the first and in any further view of an image
    solarize: tuple[float, ...] = (0.0, 0.0)  # as blur

    def __post_init__(self):
        for name in ('scale', 'blur', 'solarize'):
            if len(pair := getattr(self, name)) != 2:
                raise UserError(f'data.distorted.{name} needs two numbers, such as (0.1,1.0), not {pair}.')
        least, greatest = self.scale
        if not 0 < least <= greatest <= 1:
            raise UserError(f'data.distorted.scale must rise from above 0 to at most 1, not {self.scale}.')
        if self.interpolation not in pil.FILTERS:
            raise unknown('interpolation', self.interpolation, pil.FILTERS)
        for name in ('jitter', 'gray', 'blur', 'solarize'):
            value = getattr(self, name)
            for probability in value if isinstance(value, tuple) else (value,):
                check_range(f'data.distorted.{name}', probability, 0, 1)
        for name in ('brightness', 'contrast', 'saturation'):
            check_range(f'data.distorted.{name}', getattr(self, name), 0)
        check_range('data.distorted.hue', self.hue, 0, 0.5)

    def draw(self, key: jax.Array, shape: tuple[int, ...], number: int = 1) -> dict[str, jax.Array]:
        """Returns the random choices for images of shape (B, H, W, C).

        Args:
            key: Random key.
            shape: Shape of the images.
            number: Number of the view, from 1; the first has its own probabilities of blur and solarization.

        Returns:
            A dict:
            - box: int32 [B, 4], top, left, height and width of the crop in pixels.
            - flip: bool [B, 2], vertically and horizontally.
            - jitter: bool [B].
            - factors: float32 [B, 3], of brightness, contrast and saturation; 1 without jitter.
            - order: int32 [B, 3], the order in which these three are applied.
            - before: int32 [B] in 0..3, the number of them that come before the hue.
            - hue: int32 [B], the shift in 1/255 of the circle.
            - gray, solarize: bool [B].
            - sigma: float32 [B], of the blur in pixels; 0 for none.
        """
        batch, height, width, _ = shape
        uniform = jax.random.uniform(key, (batch, 15 + 2 * _ATTEMPTS))
        jitter, order, before, hue, gray, blurred, sigma, solarized = uniform[:, :8].T
        factors, place, flip, attempts = jnp.split(uniform[:, 8:], [3, 5, 7], axis=1)
        area, ratio = jnp.split(attempts, 2, axis=1)
        sides = self._sides(area, ratio, height, width)
        corner = place * (jnp.asarray([height, width]) - sides + 1)
        jitter = jitter < self.jitter
        most = jnp.asarray([self.brightness, self.contrast, self.saturation])
        least = jnp.maximum(1 - most, 0)
        factors = least + (1 + most - least) * factors
        sigma = _MIN_SIGMA + (pil.MAX_SIGMA - _MIN_SIGMA) * sigma
        view = min(number, 2) - 1
        return {
            'box': jnp.concatenate([corner.astype(jnp.int32), sides], axis=1),
            'flip': (flip < 0.5) & jnp.asarray([self.vertical_flip, self.flip]),
            'jitter': jitter,
            'factors': jnp.where(jitter[:, None], factors, 1),
            'order': jnp.asarray(_ORDERS)[(6 * order).astype(jnp.int32)],
            'before': (4 * before).astype(jnp.int32),
            'hue': jnp.trunc(255 * self.hue * (2 * hue - 1)).astype(jnp.int32),
            'gray': gray < self.gray,
            'sigma': jnp.where(blurred < self.blur[view], sigma, 0),
            'solarize': solarized < self.solarize[view],
        }

    def _sides(self, area: jax.Array, ratio: jax.Array, height: int, width: int) -> jax.Array:
        """Returns height and width, int32 [B, 2], of the first crop that fits into the image.

        If none fits, it is the largest part of the image that has a ratio of 3/4 to 4/3.

        Args:
            area: Uniform numbers in [0, 1), [B, attempts], for the area of each crop.
            ratio: The same for its ratio of width to height.
            height: Height of the image in pixels.
            width: Width of the image in pixels.
        """
        least, greatest = self.scale
        area = (least + (greatest - least) * area) * height * width
        root = _RATIO ** (ratio - 0.5)  # of width to height, log-uniform
        sides = jnp.round(jnp.stack([jnp.sqrt(area) / root, jnp.sqrt(area) * root], axis=-1)).astype(jnp.int32)
        fits = jnp.all((sides > 0) & (sides <= jnp.asarray([height, width])), axis=-1)
        first = jnp.take_along_axis(sides, jnp.argmax(fits, axis=1)[:, None, None], axis=1)[:, 0]
        largest = jnp.asarray([min(height, round(width * _RATIO)), min(width, round(height * _RATIO))])
        return jnp.where(fits.any(axis=1)[:, None], first, largest)

    def apply(self, draws: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        """Returns uint8 images [B, H, W, C], augmented as drawn, as float32 in [0, 1]."""
        channels = images.shape[-1]
        planes = pil.resized_crop(pixels.pack(images), draws['box'], draws['flip'], channels, self.interpolation)
        if channels == 3:
            before = jnp.arange(3) < draws['before'][:, None]
            planes = _enhance(planes, draws, before)
            if self.hue:
                shifted = pil.shift_hue(planes, draws['hue'])
                planes = jnp.where(_of_pixels(draws['jitter']), shifted, planes)
            planes = _enhance(planes, draws, ~before)
            planes = jnp.where(_of_pixels(draws['gray']), ops.luma(planes), planes)
        else:
            planes = _enhance(planes, draws, jnp.asarray(True))
        if any(self.blur):
            planes = pil.gaussian_blur(planes, draws['sigma'])
        inverted = _of_pixels(draws['solarize']) & (planes >= _SOLARIZED_FROM)
        planes = jnp.where(inverted, 255 - planes, planes)
        return jnp.moveaxis(planes, 1, -1).astype(jnp.float32) / 255


def _enhance(planes: jax.Array, draws: dict[str, jax.Array], chosen: jax.Array) -> jax.Array:
    """Returns planes after the chosen changes of brightness, contrast and saturation.

    Args:
        planes: int32 [B, C, H, W].
        draws: See `Distorted.draw`.
        chosen: Which of the three to make, in the order of each image, bool [B, 3] or scalar.
    """
    order = draws['order']
    factors = jnp.where(chosen, jnp.take_along_axis(draws['factors'], order, axis=1), 1)

    def change(planes, step):
        which, factor = map(_of_pixels, step)
        luma = ops.luma(planes)
        degenerate = jnp.where(which == 0, 0, jnp.where(which == 1, ops.mean(luma), luma))
        return ops.blend(degenerate, planes, factor), None

    return lax.scan(change, planes, (order.T, factors.T))[0]


def _of_pixels(x: jax.Array) -> jax.Array:
    """Returns a number per image, [B], as [B, 1, 1, 1], which broadcasts over planes."""
    return x[:, None, None, None]
