"""The data set `digits`: 1,797 real handwritten digits of 8x8 pixels that come with scikit-learn."""

import numpy as np
import tensorflow_datasets as tfds

from data.builders import info
from data.splits import draw

NUM_TEST = 500


class Digits(tfds.core.GeneratorBasedBuilder):
    """Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI, 1998), the part in scikit-learn.

    Image uint8 [8, 8, 1] (the original 0..16 scaled to 0..255), label 0..9. The split is ours, because the
    original one is not in scikit-learn's copy: 500 test examples that follow the class distribution, drawn
    once with seed 0, and the other 1,297 for training. A writer may be in both. Needs no TensorFlow.
    """

    VERSION = tfds.core.Version('1.0.0')
    url_infos = None  # There is no URL, and looking for one needs importlib_resources (tfds issue 11212).

    def _info(self):
        return info.of_digits(
            self,
            (8, 8, 1),
            '8x8 handwritten digits from scikit-learn, 1,297 for training and 500 for testing.',
            'https://archive.ics.uci.edu/dataset/80',
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits  # Slow to import and needed once.

        images, labels = load_digits(return_X_y=True)
        images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        test = draw(labels, NUM_TEST, num_classes=10, protocol='proportional', seed=0).labeled
        train = np.setdiff1d(np.arange(len(labels)), test)
        return {
            'train': self._generate_examples(images, labels, train),
            'test': self._generate_examples(images, labels, test),
        }

    def _generate_examples(self, images, labels, indices):
        for i in indices:
            yield int(i), {'image': images[i], 'label': int(labels[i])}
