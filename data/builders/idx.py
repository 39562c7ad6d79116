"""MNIST and its drop-in replacements from their four original files, without TensorFlow.

The result equals that of tfds (same features, version and order of examples), so it does not matter which of the two
prepared a data set.
"""

import gzip
import io
import math
import pathlib
import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from errors import UserError

NAMES = ('mnist', 'fashion_mnist', 'kmnist')
PARTS = {'train': 'train', 'test': 't10k'}
IMAGE, NUM_CLASSES = (28, 28), 10


def builder(name: str, folder: pathlib.Path, data_dir: str) -> tfds.core.DatasetBuilder:
    """Returns a tfds builder that prepares `name` from idx files.

    Args:
        name: One of NAMES.
        folder: Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
            t10k-labels-idx1-ubyte, each plain or .gz, with '-' or '.' before 'idx'.
        data_dir: tfds data folder to write to.

    Raises:
        UserError: A file is missing, damaged, or of another format.
    """
    return from_arrays(name, {split: _read_part(folder, part) for split, part in PARTS.items()}, data_dir)


def from_arrays(
    name: str, splits: Mapping[str, tuple[np.ndarray, np.ndarray]], data_dir: str
) -> tfds.core.DatasetBuilder:
    """Returns a tfds builder that prepares a data set of tfds from arrays instead of downloads.

    Args:
        name: A data set of tfds with the features 'image' (a tfds Image) and 'label'.
        splits: {split: (images, uint8 [N, H, W, C] with C 1 or 3, labels, int [N])}.
        data_dir: tfds data folder to write to.
    """

    class FromArrays(tfds.builder_cls(name), skip_registration=True):  # type: ignore[call-arg, misc]
        url_infos = None  # As in digits.py.

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

        def _generate_examples(self, images, labels):
            # tfds orders examples by a hash of this key. It is the key that tfds uses, hence the same order.
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield i, {'image': _png(image), 'label': int(label)}

    FromArrays.name = name
    return FromArrays(data_dir=data_dir, file_format='array_record')


def _png(image: np.ndarray) -> bytes:
    # tfds stores encoded bytes as they are; it would encode an array with TensorFlow.
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, 'png')
    return file.getvalue()


def _read_part(folder: pathlib.Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [N, 28, 28, 1] and labels uint8 [N] of 'train' or 't10k'."""
    images_path, images = _read(folder, f'{part}-images', 3)
    labels_path, labels = _read(folder, f'{part}-labels', 1)
    if images.shape[1:] != IMAGE:
        raise UserError(f'{images_path} has images of {images.shape[1:]} pixels, not {IMAGE}.')
    if len(images) != len(labels):
        raise UserError(f'{images_path} has {len(images)} images, {labels_path} has {len(labels)} labels.')
    if len(labels) == 0 or labels.max() >= NUM_CLASSES:
        raise UserError(f'{labels_path} must have labels from 0 to {NUM_CLASSES - 1}.')
    return images[..., None], labels


def _read(folder: pathlib.Path, stem: str, rank: int) -> tuple[pathlib.Path, np.ndarray]:
    """Returns the path and the content of an idx file: magic 0, 0, type, rank, then the sizes, then bytes."""
    names = [f'{stem}{dot}idx{rank}-ubyte{end}' for dot in '-.' for end in ('.gz', '')]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f'No {names[0]} (or {", ".join(names[1:])}) in {folder}.')
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{path} cannot be read, get it again: {error}.') from error
    header = 4 + 4 * rank
    if len(raw) < header or raw[:4] != bytes([0, 0, 8, rank]):
        raise UserError(f'{path} is not an idx file of bytes with {rank} dimension(s).')
    shape = tuple(int(n) for n in np.frombuffer(raw, '>u4', rank, offset=4))
    if len(raw) - header != math.prod(shape):
        raise UserError(f'{path} has {len(raw) - header} bytes after its header, not {math.prod(shape)}.')
    return path, np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
