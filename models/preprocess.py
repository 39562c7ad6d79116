"""Preprocessing of pixels. It belongs to the weights, which were trained on inputs of one kind."""

import dataclasses

import jax
import jax.numpy as jnp

from errors import UserError

METHODS = {'nearest': 'nearest', 'bilinear': 'linear', 'bicubic': 'cubic', 'lanczos': 'lanczos3'}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizes so that `crop` of the shorter side is `resolution`, crops the centre, normalises the channels.

    Attributes:
        mean: Mean of each channel of pixels in [0, 1]; gray images use the average over channels.
        std: Standard deviation, likewise.
        resolution: Side of the network's input in pixels; 0 for no resizing and no crop.
        crop: Fraction of the shorter side that is kept.
        channels: 3 to copy gray images into three channels; 0 for no change.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int = 0
    interpolation: str = 'bicubic'
    crop: float = 1.0
    channels: int = 0

    def __post_init__(self):
        if self.interpolation not in METHODS:
            raise UserError(f"interpolation '{self.interpolation}' is none of {', '.join(METHODS)}.")
        if not 0 < self.crop <= 1:
            raise UserError(f'crop must be in (0, 1], not {self.crop}.')

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps pixels in [0, 1], float32 `[N, H, W, C]`, to the network's input, `[N, resolution, resolution, C]`."""
        if self.resolution:
            shorter = round(self.resolution / self.crop)
            n, height, width, channels = images.shape
            scale = shorter / min(height, width)
            size = [max(round(scale * side), self.resolution) for side in (height, width)]
            # With antialiasing for smaller sizes, as in Pillow.
            images = jax.image.resize(images, (n, *size, channels), METHODS[self.interpolation])
            for axis, side in enumerate(size, 1):
                start = (side - self.resolution) // 2
                images = jax.lax.slice_in_dim(images, start, start + self.resolution, axis=axis)
        if self.channels > images.shape[-1]:
            images = jnp.repeat(images, self.channels, axis=-1)
        return (images - self._per_channel(self.mean, images)) / self._per_channel(self.std, images)

    def _per_channel(self, values: tuple[float, ...], images: jax.Array) -> jax.Array:
        channels = images.shape[-1]
        if channels != len(values) > 1:
            if channels > 1:
                raise UserError(f'The images have {channels} channels, and mean and std are of {len(values)}.')
            values = (sum(values) / len(values),)
        return jnp.asarray(values)
