"""Weights and images that a rule makes, so that only what real networks compute with them has to be stored."""

import math
import re
import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the float32 weights that belong to a name, in the layout of the format the name is from.

    The name is a key of a PyTorch state dict (shape OIHW or OI) or, where it ends in '/kernel', '/gamma', '/beta' or
    '/bias', of BiT's .npz files (HWIO). Magnitudes are those of trained networks, so that outputs are of order 1 at any
    depth, and in evaluation differ between images about half as much as between classes. For that,

    - kernels sum to zero over their inputs, for ReLU's positive mean makes all images alike otherwise, but not
      BiT's, which it has to standardise itself;
    - bn2 and bn3 in ResNet's residual branches have half the weight.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind = re.split(r'[./]', name)[-1]
    if len(shape) > 1:
        inputs = tuple(range(len(shape) - 1)) if kind == 'kernel' else tuple(range(1, len(shape)))
        fan_in = math.prod(shape[axis] for axis in inputs)
        values = rng.standard_normal(shape, np.float32)
        if len(shape) == 4 and kind == 'weight' and not name.startswith(('stem.', 'stages.', 'head.')):
            values -= values.mean(inputs, keepdims=True)
        return values * math.sqrt(2 / fan_in)
    if kind in ('bias', 'beta', 'running_mean'):
        return rng.standard_normal(shape, np.float32) * 0.1
    values = rng.random(shape, np.float32) + 0.5  # weight, gamma, running_var
    return values / 2 if re.fullmatch(r'layer.*\.bn[23]\.weight', name) else values


def images(n: int, size: int, channels: int = 3) -> np.ndarray:
    """Returns normalised images, float32 `[n, size, size, channels]`, that are standard normal noise."""
    return np.random.default_rng(0).standard_normal((n, size, size, channels), np.float32)
