"""Augmentation inside the compiled step: whole batches, each image with its own random draws.

A view is a frozen dataclass with two methods, which separate random draws from computation:

    draws = view.draw(key, images.shape, number)  # everything random, a pure function of the key
    pixels = view.apply(draws, images)            # uint8 [B, H, W, C] -> float32 [B, H, W, C] in [0, 1]

`number` counts the views of the same images, from 1; only `Distorted` uses it. A view may have several images for
each one (`Rotated`), in consecutive places: float32 [B * copies, H, W, C]. Every array in `draws` has leading dimension
B and `apply` treats each image independently, so `apply` may run under `jax.shard_map` on a slice of the batch. C is 1
or 3.
"""

from data.augment.distorted import Distorted
from data.augment.randaugment import Strong
from data.augment.rotated import Rotated, rotate
from data.augment.weak import Weak

__all__ = ['Distorted', 'Rotated', 'Strong', 'Weak', 'rotate']
