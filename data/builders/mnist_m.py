"""The data set `mnist_m`: MNIST blended with photographs."""

import hashlib
import os
import re
import tarfile
import zlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data.builders import info
from data.sampler import permutation
from errors import UserError, first_line

ARCHIVE = 'BSR_bsds500.tgz'
PAGE = 'https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html'
MEMBERS = re.compile(r'(?:\./)?BSR/BSDS500/data/images/(train|test)/\d+\.jpg')
NUM_PHOTOGRAPHS = 200  # in each of the two parts
SIDE = 28


class MnistM(tfds.core.GeneratorBasedBuilder):
    """MNIST-M (Ganin et al., JMLR 2016, section 5.2.2): |digit - patch| in each channel.

    Image uint8 [28, 28, 3], label 0..9, 60,000 for training and 10,000 for testing: the digits of MNIST, blended
    with patches of 28x28 pixels of BSDS500's photographs, its train part for training and its test part for
    testing; each photograph is used equally often. The paper says no more than that. So this set does not equal, pixel
    for pixel, that of the authors, whose random patches cannot be reproduced. Nor does it equal that of the script
    create_mnistm.py (pumpikano/tf-dann), which many papers use: the script makes digits black and white before it
    blends them, and uses photographs of the train part for test digits, too.

    There is no published checksum of the photographs' archive that we know of. The builder counts the photographs and
    records the SHA-256 of the archive: `info.metadata['sha256']`, in metadata.json beside the data.

    Needs no TensorFlow.

    Attributes:
        folder: pathlib.Path of the folder with the archive.
        digits: Function from 'train' or 'test' to images uint8 [N, 28, 28, 1] and labels [N] of MNIST.
    """

    VERSION = tfds.core.Version('1.0.0')
    HOW = f'--from=FOLDER with {ARCHIVE} (from {PAGE}) and, unless mnist is prepared, its four idx files'
    url_infos = None  # As in digits.py.
    folder = None
    digits = None

    def _info(self):
        return info.of_digits(
            self,
            (SIDE, SIDE, 3),
            "MNIST's digits blended with patches of BSDS500's photographs.",
            'https://arxiv.org/abs/1505.07818',
        )

    def _split_generators(self, dl_manager):
        path = self.folder / ARCHIVE
        photographs = _photographs(path)
        with open(path, 'rb') as file:
            self.info.metadata['sha256'] = hashlib.file_digest(file, 'sha256').hexdigest()
        return {split: self._generate_examples(split, *self.digits(split), photographs[split]) for split in photographs}

    def _generate_examples(self, split, images, labels, photographs):
        count = len(labels)
        # Each uses every photograph, row and column equally often, if there are enough digits.
        orders = [permutation(count, 0, f'mnist_m {split} {what}') for what in ('photograph', 'row', 'column')]
        for i, (which, row, column) in enumerate(zip(*orders, strict=True)):
            photograph = photographs[which % len(photographs)]
            row, column = (at % (n - SIDE + 1) for at, n in zip((row, column), photograph.shape, strict=False))
            patch = photograph[row : row + SIDE, column : column + SIDE]
            difference = np.abs(images[i].astype(np.int16) - patch)
            yield i, {'image': difference.astype(np.uint8), 'label': int(labels[i])}


def _photographs(path: os.PathLike) -> dict[str, list[np.ndarray]]:
    """Returns {'train': photographs, 'test': photographs}, each uint8 [H, W, 3], in the order of their names.

    Raises:
        UserError: The archive is absent, damaged, or another one.
    """
    photographs: dict[str, dict[str, np.ndarray]] = {'train': {}, 'test': {}}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                match = MEMBERS.fullmatch(member.name)
                if match and (file := archive.extractfile(member)):
                    image = Image.open(file).convert('RGB')
                    photographs[match[1]][member.name] = np.asarray(image)
    except FileNotFoundError as error:
        raise UserError(f'No {ARCHIVE} in {os.path.dirname(path)}: get it from {PAGE}.') from error
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f'{path} cannot be read, get it again from {PAGE}: {first_line(error)}.') from error
    for split, images in photographs.items():
        if len(images) != NUM_PHOTOGRAPHS:
            raise UserError(
                f'{path} has {len(images)} photographs in BSR/BSDS500/data/images/{split}, not {NUM_PHOTOGRAPHS}: '
                f'get it again from {PAGE}.'
            )
    return {split: [images[name] for name in sorted(images)] for split, images in photographs.items()}
