"""The rotated view of rotation prediction: every image turned by multiples of 90 degrees."""

import dataclasses

import jax
import jax.numpy as jnp

from data.augment.weak import Weak
from errors import UserError


@dataclasses.dataclass(frozen=True)
class Rotated:
    """The weak view in `copies` rotations, counterclockwise by 0, 90, 180 and 270 degrees.

    With 4 copies (RotNet, Gidaris et al. 2018, arXiv:1803.07728) image i gives the images 4 i to 4 i + 3; with 1,
    image i is turned by 90 degrees (i % 4) times, and its place in the batch is random. Either way image j of the
    view is turned j % 4 times.
    """

    flip: bool = True  # as in Weak
    vertical_flip: bool = False  # as in Weak
    pad: int = 4  # as in Weak
    min_area: float = 0.0  # as in Weak
    last: bool = True  # turn after every other augmentation, so that no artefact of augmentation reveals the rotation
    copies: int = 4  # of each image: 4 or 1

    def __post_init__(self):
        if self.copies not in (1, 4):
            raise UserError(f'data.rotated.copies must be 4, or 1, not {self.copies}.')

    @property
    def weak(self) -> Weak:
        """The weak part."""
        return Weak(self.flip, self.vertical_flip, self.pad, self.min_area)

    def draw(self, key: jax.Array, shape: tuple[int, ...], number: int = 1) -> dict:
        """Returns turns, int32 [B, copies], and the draws of Weak, for images of shape (B, S, S, C).

        There is one draw for each image if the rotation comes last, and one for each copy if it comes first.

        Raises:
            UserError: Images are not square.
        """
        del number
        batch, height, width, channels = shape
        if height != width:
            raise UserError(f'Only square images can be turned by 90 degrees, not {height} x {width} pixels.')
        drawn = batch if self.last else batch * self.copies
        weak = self.weak.draw(key, (drawn, height, width, channels))
        turns = jnp.arange(batch * self.copies, dtype=jnp.int32).reshape(batch, self.copies) % 4
        return {'turns': turns, 'weak': jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[1:]), weak)}

    def apply(self, draws: dict, images: jax.Array) -> jax.Array:
        """Returns uint8 images [B, S, S, C] as float32 [B * copies, S, S, C] in [0, 1]."""
        turns, weak = draws['turns'].reshape(-1), jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), draws['weak'])
        if self.last:
            return rotate(jnp.repeat(self.weak.apply(weak, images), self.copies, axis=0), turns)
        return self.weak.apply(weak, rotate(jnp.repeat(images, self.copies, axis=0), turns))


def rotate(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns each square image counterclockwise by multiples of 90 degrees.

    Args:
        images: `[n, S, S, C]`.
        turns: How many times 90 degrees, int `[n]` in 0..3.
    """
    turned = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)])
    return turned[turns, jnp.arange(len(images))]
