"""The examples of a training step: a pure function of (seed, stream, step), so the sampler has no state to save."""

import functools
import hashlib

import numpy as np


@functools.lru_cache(maxsize=32)
def permutation(size: int, seed: int, stream: str, epoch: int = 0) -> np.ndarray:
    """Returns a random order of range(size), the same on every machine and for every numpy version.

    It uses raw Philox bits and a stable sort only: NumPy guarantees that bit generators and SeedSequence never
    change (NEP 19), but not Generator.permutation.

    Args:
        size: Number of items, >= 0.
        seed: Any integer.
        stream: Name of the stream; different names give independent orders.
        epoch: Any integer; different epochs give independent orders.

    Returns:
        int64 [size], read-only (it is memoised).
    """
    # Hashed, because SeedSequence concatenates the words of its numbers without separators.
    entropy = int.from_bytes(hashlib.sha256(f'{seed}:{stream}:{epoch}'.encode()).digest(), 'little')
    bits = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(size)
    order = np.argsort(bits, kind='stable')
    order.flags.writeable = False
    return order


def batch_indices(seed: int, stream: str, step: int, batch_size: int, size: int) -> np.ndarray:
    """Returns the indices of the examples of one step.

    The stream is an endless sequence of permutations of range(size), one per epoch, of which step t takes the
    positions t * batch_size to (t + 1) * batch_size. So each epoch uses every example once, and a batch may
    span two epochs, or more if size < batch_size.

    Args:
        seed: Any integer.
        stream: Name of the stream, such as 'labeled'.
        step: Training step, >= 0.
        batch_size: Examples per step over all devices, >= 1.
        size: Number of examples to draw from, >= 1.

    Returns:
        int64 [batch_size], values in [0, size).

    Raises:
        ValueError: One of the numbers is too small.
    """
    if step < 0 or batch_size < 1 or size < 1:
        raise ValueError(f'Cannot draw batch {step} of {batch_size} from the {size} examples of {stream!r}.')
    start, stop = step * batch_size, (step + 1) * batch_size
    return np.concatenate(
        [
            permutation(size, seed, stream, epoch)[max(0, start - epoch * size) : stop - epoch * size]
            for epoch in range(start // size, (stop - 1) // size + 1)
        ]
    )
