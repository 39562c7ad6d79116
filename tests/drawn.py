"""Folders of pictures for tests."""

import numpy as np
from PIL import Image


def pixels(seed, side=32):
    """Returns a picture unlike those of other seeds, uint8 [side, side, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def write(path, seed, side=32, **options):
    """Writes such a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, side)).save(path, **options)
