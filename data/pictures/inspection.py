"""Looks at every picture of a folder, and finds those that are the same or nearly so."""

import concurrent.futures
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np
import scipy.fft
from PIL import Image

from data.pictures import decoding
from errors import first_line

TINY = 16  # pixels of the shorter side below which a picture shows too little
NEAR = 12  # bits of 64 by which the hashes of two pictures differ at most that are taken for nearly the same
FLAT = 2.0  # standard deviation of gray values, of 255, below which a picture is nearly constant
ALIKE = 4  # bits of pictures that are so, where many are nearly the same
MOST = 30_000  # pictures up to which all pairs are compared
_SUFFIXES = {'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'), 'TIFF': ('.tif', '.tiff')}


class Look(NamedTuple):
    """What a picture looks like.

    Attributes:
        sha256: Of the file's content.
        size: (width, height) in pixels, as stored.
        hash: Perceptual hash of 64 bits.
        flat: Whether it is nearly constant.
        suffix: Whether the file's name ends as its format demands.
        error: Why it cannot be decoded, '' if it can.
    """

    sha256: str
    size: tuple[int, int] = (0, 0)
    hash: int = 0
    flat: bool = False
    suffix: bool = True
    error: str = ''


def look(path: pathlib.Path) -> Look:
    """Returns what a file looks like. It decodes all of it."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        return Look('', error=error.strerror or 'unreadable')
    sha256 = hashlib.sha256(raw).hexdigest()
    if not raw:
        return Look(sha256, error='empty file')
    try:
        picture = decoding.open_picture(raw)
        form = 'JPEG' if picture.format == 'MPO' else str(picture.format)
        gray = np.asarray(decoding.decode(raw, 'L'), np.float32)
    except Exception as error:  # Pillow raises many types for damaged files
        return Look(sha256, error=first_line(error))
    suffix = path.suffix.lower() in _SUFFIXES.get(form, (f'.{form.lower()}',))
    return Look(sha256, picture.size, perceptual_hash(gray), bool(gray.std() < FLAT), suffix)


def look_at_all(folder: pathlib.Path, paths: list[str]) -> list[Look]:
    """Returns what the files of a folder look like."""
    with concurrent.futures.ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        return list(pool.map(lambda path: look(folder / path), paths))


def perceptual_hash(gray: np.ndarray) -> int:
    """Returns 64 bits that change little where a picture is scaled, compressed or slightly cropped.

    Each is whether one of the 64 lowest frequencies of the picture at 32x32 pixels is above their median (pHash).

    Args:
        gray: Gray values, float32 `[H, W]`.
    """
    small = np.asarray(Image.fromarray(gray).resize((32, 32), Image.Resampling.BOX))
    lowest = scipy.fft.dctn(small, norm='ortho')[:8, :8].ravel()
    return int.from_bytes(np.packbits(lowest > np.median(lowest[1:])).tobytes(), 'big')


def near_pairs(hashes: np.ndarray, most: int = NEAR) -> np.ndarray:
    """Returns the pairs of hashes that differ in at most `most` bits, int64 `[P, 2]`, ascending.

    Args:
        hashes: uint64 `[N]`. Of more than MOST, each is paired with the first one that is equal.
        most: Number of bits.
    """
    if len(hashes) > MOST:
        _, first, number = np.unique(hashes, return_index=True, return_inverse=True)
        found = np.stack([first[number], np.arange(len(hashes))], axis=1)
        return found[found[:, 0] != found[:, 1]]
    pairs = []
    for start in range(0, len(hashes), 256):
        rest = hashes[start:]
        differing = np.bitwise_count(rest[:256, None] ^ rest[None])
        first, second = np.nonzero(differing <= most)
        pairs.append(np.stack([first, second], axis=1)[second > first] + start)
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)


def groups(count: int, pairs: np.ndarray) -> np.ndarray:
    """Returns the number of the group of each of `count` pictures, int32: those joined by pairs share one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), bool)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]
