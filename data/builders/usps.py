"""The data set `usps`: handwritten digits of the US Postal Service, from the two files that LIBSVM's authors host."""

import bz2
import hashlib
import io

import numpy as np
import tensorflow_datasets as tfds

from data.builders import info
from errors import UserError, first_line

URL = 'https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/'
FILES = {  # Name and MD5, the latter from torchvision/datasets/usps.py.
    'train': ('usps.bz2', 'ec16c51db3855ca6c91edd34d0e9b197'),
    'test': ('usps.t.bz2', '8ea070ee2aca1ac39742fdd1ef5ed118'),
}


class Usps(tfds.core.GeneratorBasedBuilder):
    """USPS (Hull, IEEE TPAMI 1994): 7,291 training and 2,007 test examples, as split by its makers.

    Image uint8 [16, 16, 1], the files' -1..1 scaled to 0..255 and rounded (torchvision rounds down); label 0..9,
    which the files call 1..10. Needs no TensorFlow.

    Attributes:
        folder: pathlib.Path of the folder with the files; None to download them.
    """

    VERSION = tfds.core.Version('1.0.0')
    DOWNLOADS = True
    HOW = '(downloads it; or add --from=FOLDER with usps.bz2 and usps.t.bz2)'
    url_infos = None  # As in digits.py.
    folder = None

    def _info(self):
        return info.of_digits(
            self,
            (16, 16, 1),
            '16x16 handwritten digits of the US Postal Service, 7,291 for training and 2,007 for testing.',
            URL + '../multiclass.html#usps',
        )

    def _split_generators(self, dl_manager):
        # Both are read and checked before anything is written.
        parts = {split: self._read(*file) for split, file in FILES.items()}
        return {split: self._generate_examples(raw) for split, raw in parts.items()}

    def _read(self, name, md5):
        """Returns the content of a file of FILES.

        Raises:
            UserError: The file is missing, cannot be downloaded, or has another MD5.
        """
        try:
            if self.folder:
                raw = (self.folder / name).read_bytes()
            else:
                import requests  # slow to import and needed once

                answer = requests.get(URL + name, timeout=60)
                answer.raise_for_status()
                raw = answer.content
        except OSError as error:  # Includes those of requests.
            raise UserError(
                f'Cannot get {name}: {first_line(error)}. Add --from=FOLDER, a folder with that file (from {URL}).'
            ) from error
        if (digest := hashlib.md5(raw).hexdigest()) != md5:
            raise UserError(f'{name} has the MD5 {digest}, not {md5}: get it again from {URL}.')
        return raw

    def _generate_examples(self, raw):
        from sklearn.datasets import load_svmlight_file  # Slow to import and needed once.

        pixels, labels = load_svmlight_file(io.BytesIO(bz2.decompress(raw)), n_features=256, zero_based=False)
        images = np.rint((pixels.toarray() + 1) * 127.5).astype(np.uint8).reshape(-1, 16, 16, 1)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {'image': image, 'label': int(label) - 1}
