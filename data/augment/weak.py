"""The weak view: a random flip and a random crop."""

import dataclasses

import jax
import jax.numpy as jnp

from data.augment import pixels
from errors import UserError, check_range


@dataclasses.dataclass(frozen=True)
class Weak:
    """Flip and reflect-padded crop, the weak augmentation of FixMatch (arXiv:2001.07685, 2.3).

    With a min_area it is the random crop of ImageNet training instead (Szegedy et al. 2015, arXiv:1409.4842,
    section 6): a part of the image with min_area to 1 of its area and sides in a proportion of 3/4 to 4/3, resized to
    the size of the image. Sides longer than the image's are clipped to those; torchvision would draw again.
    """

    flip: bool = True  # mirror left and right with probability 1/2
    vertical_flip: bool = False  # mirror top and bottom with probability 1/2
    pad: int = 4  # pixels of reflected border; the crop has the size of the image
    min_area: float = 0.0  # of the crop, as a fraction of the image; 0 for the padded crop

    def __post_init__(self):
        check_range('data.weak.pad', self.pad, 0)
        check_range('data.weak.min_area', self.min_area, 0, 1)

    def draw(self, key: jax.Array, shape: tuple[int, ...], number: int = 1) -> dict[str, jax.Array]:
        """Returns the random choices for images of shape (B, H, W, C).

        Returns:
            A dict:
            - flip: bool [B].
            - vertical_flip: bool [B], if the setting is on.
            - top, left: int32 [B] in 0..2*pad, the corner of the crop in the padded image; unused with min_area.
            - box: float32 [B, 4], top, left, height and width of the crop in pixels, if there is a min_area.

        Raises:
            UserError: pad is not less than H and W, beyond which there is nothing to reflect.
        """
        del number
        batch, height, width, _ = shape
        if self.pad >= min(height, width):
            raise UserError(f'pad={self.pad} must be less than the image, {height} x {width} pixels.')
        flip, top, left = jax.random.uniform(key, (batch, 3)).T
        offsets = 2 * self.pad + 1
        draws = {
            'flip': (flip < 0.5) & self.flip,
            'top': (top * offsets).astype(jnp.int32),
            'left': (left * offsets).astype(jnp.int32),
        }
        if self.vertical_flip:
            draws['vertical_flip'] = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, (batch,))
        if self.min_area:
            area, proportion, *place = jax.random.uniform(jax.random.fold_in(key, 2), (batch, 4)).T
            area = (self.min_area + (1 - self.min_area) * area) * height * width
            root = (4 / 3) ** (proportion - 0.5)
            sides = jnp.minimum(jnp.sqrt(area) * root, height), jnp.minimum(jnp.sqrt(area) / root, width)
            corner = [u * (size - side) for u, size, side in zip(place, (height, width), sides, strict=True)]
            draws['box'] = jnp.stack([*corner, *sides], axis=1)
        return draws

    def apply(self, draws: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        """Returns uint8 images [B, H, W, C], flipped and cropped as drawn, as float32 in [0, 1]."""
        return self.move(draws, images).astype(jnp.float32) / 255

    def move(self, draws: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        """Returns images [B, H, W, C] of any type, flipped and cropped as drawn, all in one gather."""
        batch, height, width, _ = images.shape
        if self.min_area:
            images = jax.vmap(_crop)(draws['box'], images)
            y = jnp.broadcast_to(jnp.arange(height), (batch, height))
            x = jnp.broadcast_to(jnp.arange(width), (batch, width))
        else:
            y = _reflect(jnp.arange(height) + draws['top'][:, None] - self.pad, height)
            x = _reflect(jnp.arange(width) + draws['left'][:, None] - self.pad, width)
        x = jnp.where(draws['flip'][:, None], width - 1 - x, x)
        if self.vertical_flip:
            y = jnp.where(draws['vertical_flip'][:, None], height - 1 - y, y)
        return pixels.gather(images, y[:, :, None], x[:, None, :])


def _crop(box: jax.Array, image: jax.Array) -> jax.Array:
    """Returns the part `box`, [4], of an image, resized to the image's size (bilinear, antialiased), in its type."""
    corner, sides = box[:2], box[2:]
    scale = jnp.asarray(image.shape[:2]) / sides
    crop = jax.image.scale_and_translate(
        image.astype(jnp.float32), image.shape, (0, 1), scale, -corner * scale, 'linear', antialias=True
    )
    return jnp.clip(jnp.round(crop), 0, 255).astype(image.dtype)


def _reflect(index: jax.Array, size: int) -> jax.Array:
    """Returns the index in 0..size-1 after one reflection at the border, which is not repeated."""
    last = size - 1
    return last - jnp.abs(last - jnp.abs(index))
