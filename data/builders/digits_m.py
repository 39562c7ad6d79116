"""The data set `digits_m`: the digits of `digits` blended with photographs, a domain to adapt to from `digits`."""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data.builders import info
from data.builders.digits import Digits
from data.sampler import permutation

SIDE = 8
REDUCTION = 4  # A patch of 8x8 pixels shows 32x32 of the original ones, enough for petals, roofs and edges.
STRIPE, TRAINING = 30, 21  # Of the pixels of a reduced photograph's width, the first 21 of every 30 are for training.


class DigitsM(Digits):
    """MNIST-M (Ganin et al., JMLR 2016, section 5.2.2) in small: |digit - patch| in each channel.

    Image uint8 [8, 8, 3], label 0..9. The digits of each split are those of `digits`, in the same order. Patches are
    8x8 pixels of the two photographs in scikit-learn (china.jpg and flower.jpg), which are first made REDUCTION
    times smaller by averaging. Patches for training and for testing are from alternating vertical stripes, so test
    backgrounds are new but of the same kind. Each patch is used at most once, in an order drawn with seed 0.

    Accuracy of scikit-learn's SVC(C=10) on pixels, with digits in three channels: trained on digits, 98.6 % on its test
    part and 54.4 % on that of digits_m; trained on digits_m, 89.4 %.
    """

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        return info.of_digits(
            self,
            (SIDE, SIDE, 3),
            'The 8x8 handwritten digits of scikit-learn, blended with patches of its two photographs.',
            'https://arxiv.org/abs/1505.07818',
        )

    def _split_generators(self, dl_manager):
        return {split: self._blend(split, digits) for split, digits in super()._split_generators(dl_manager).items()}

    def _blend(self, split, digits):
        patches = _patches(split)
        order = permutation(len(patches), 0, f'digits_m {split}')
        for (key, example), i in zip(digits, order, strict=False):  # There are more patches than digits.
            difference = np.abs(example['image'].astype(np.int16) - patches[i])
            yield key, {**example, 'image': difference.astype(np.uint8)}


def _patches(split: str) -> np.ndarray:
    """Returns all patches of the stripes for a split, uint8 [N, 8, 8, 3]."""
    from sklearn.datasets import load_sample_images  # Slow to import and needed once.

    parts = []
    for photograph in load_sample_images().images:
        small = np.asarray(Image.fromarray(photograph).reduce(REDUCTION))
        for start in range(0, small.shape[1], STRIPE):
            stripe = small[:, start : start + STRIPE]
            part = stripe[:, :TRAINING] if split == 'train' else stripe[:, TRAINING:]
            if part.shape[1] >= SIDE:
                windows = np.lib.stride_tricks.sliding_window_view(part, (SIDE, SIDE, 3))
                parts.append(windows.reshape(-1, SIDE, SIDE, 3))
    return np.concatenate(parts)
