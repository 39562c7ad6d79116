"""Metadata that the builders of digits share."""

import numpy as np
import tensorflow_datasets as tfds


def of_digits(builder, shape: tuple[int, int, int], description: str, homepage: str) -> tfds.core.DatasetInfo:
    """Returns the metadata of a data set of digits: image uint8 `shape`, label 0..9."""
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        # Not features.Image, which needs TensorFlow to encode an array.
        features=tfds.features.FeaturesDict(
            {
                'image': tfds.features.Tensor(shape=shape, dtype=np.uint8),
                'label': tfds.features.ClassLabel(num_classes=10),
            }
        ),
        supervised_keys=('image', 'label'),
        homepage=homepage,
        metadata=tfds.core.MetadataDict(),
    )
