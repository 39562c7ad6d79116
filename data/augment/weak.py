"""The weak view: a random flip and a random crop."""

import dataclasses

import jax
import jax.numpy as jnp

from data.augment import pixels
from errors import UserError


@dataclasses.dataclass(frozen=True)
class Weak:
    """Horizontal flip and reflect-padded crop, the weak augmentation of FixMatch (arXiv:2001.07685, 2.3)."""

    flip: bool = True  # mirror left and right with probability 1/2
    pad: int = 4  # pixels of reflected border; the crop has the size of the image

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        """Returns flip, bool [B], and the crop's top and left, int32 [B] in 0..2*pad, for shape (B, H, W, C).

        Raises UserError unless pad is less than both H and W: reflection has nothing more to show.
        """
        batch, height, width, _ = shape
        if self.pad >= min(height, width):
            raise UserError(f'pad={self.pad} must be less than the image, {height} x {width} pixels.')
        flip, top, left = jax.random.uniform(key, (batch, 3)).T
        offsets = 2 * self.pad + 1
        return {
            'flip': (flip < 0.5) & self.flip,
            'top': (top * offsets).astype(jnp.int32),
            'left': (left * offsets).astype(jnp.int32),
        }

    def apply(self, draws: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        """Returns uint8 images [B, H, W, C], flipped and cropped as drawn, as float32 in [0, 1]."""
        return self.move(draws, images).astype(jnp.float32) / 255

    def move(self, draws: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        """Returns images [B, H, W, C] of any type, flipped and cropped as drawn, all in one gather."""
        _, height, width, _ = images.shape
        y = _reflect(jnp.arange(height) + draws['top'][:, None] - self.pad, height)
        x = _reflect(jnp.arange(width) + draws['left'][:, None] - self.pad, width)
        x = jnp.where(draws['flip'][:, None], width - 1 - x, x)
        return pixels.gather(images, y[:, :, None], x[:, None, :])


def _reflect(index: jax.Array, size: int) -> jax.Array:
    """Returns the index inside 0..size-1 that one reflection at the border (not repeating it) leads to."""
    last = size - 1
    return last - jnp.abs(last - jnp.abs(index))
