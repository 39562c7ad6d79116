"""What looks wrong to a network: pictures that are nearly the same, and labels that are probably mistakes."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from data.pictures import decoding
from data.pictures.folder import Entry
from deploy.finished import Finished, unit
from models import pretrained
from train.streams import Streams

NETWORK, SIDE = 'efficientnet_lite0', 128  # its weights come with the requirements
BATCH = 64
# Cosine of features. Of 365 photographs and drawings, cropped by a tenth and compressed, 79 % were above it, and 12 of
# 66,430 pairs of others.
NEAR = 0.85
MOST = 1_000_000  # pairs
FOLDS = 5


def features(folder: pathlib.Path, paths: Sequence[str]) -> np.ndarray:
    """Returns features of pictures by a network with ImageNet weights, of length 1, float32 `[N, D]`."""
    weights = pretrained.load(NETWORK)
    model = models.create(NETWORK, 1, weights=weights, resolution=SIDE)
    variables = model.init(jax.random.key(0), (SIDE, SIDE, 3))

    @jax.jit
    def run(variables: Any, images: jax.Array) -> jax.Array:
        return model.apply(variables, model.preprocess(images.astype(jnp.float32) / 255))[0]['features']

    parts = [np.zeros((0, 1), np.float32)]
    for start in range(0, len(paths), BATCH):
        batch = [
            decoding.decode((folder / path).read_bytes(), size=(SIDE, SIDE)) for path in paths[start : start + BATCH]
        ]
        images = np.stack([np.asarray(picture) for picture in batch])
        parts.append(np.asarray(run(variables, np.pad(images, [(0, BATCH - len(batch))] + [(0, 0)] * 3)))[: len(batch)])
    found = np.concatenate(parts[1:] or parts)
    return unit(found)


def near_pairs(features: np.ndarray) -> np.ndarray:
    """Returns the pairs of features, `[N, D]` of length 1, whose cosine is at least NEAR, int64 `[P, 2]`, ascending.

    Where most pictures are alike, there may be more than MOST; then it returns those of the first pictures.
    """
    pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(features), 512):
        if sum(map(len, pairs)) > MOST:
            break
        first, second = np.nonzero(features[start : start + 512] @ features[start:].T >= NEAR)
        pairs.append(np.stack([first, second], axis=1)[second > first] + start)
    return np.concatenate(pairs)


def labels(run: Finished, streams: Streams) -> list[tuple[int, int]]:
    """Returns the labeled images of a run whose labels are probably wrong, the most suspicious first.

    Args:
        run: The finished run, whose features are used.
        streams: Its data.

    Returns:
        [(position among the training images, class that it looks like)].
    """
    indices = streams.indices['labeled']
    given = streams.labels[indices]
    probabilities = out_of_sample(run.predict(streams.images[indices])[1], given, len(run.class_names))
    return [(int(indices[i]), guess) for i, guess in mislabeled(probabilities, given)]


def near(folder: pathlib.Path, entries: Sequence[Entry]) -> np.ndarray:
    """Returns the pairs of nearly equal pictures, int64 `[P, 2]`."""
    return near_pairs(features(folder, [entry.path for entry in entries]))


def out_of_sample(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns class probabilities of each image by a linear probe of the other images, float64 `[N, C]`.

    Args:
        features: `[N, D]`.
        labels: int `[N]`. Classes of fewer than two images are not predicted.
        num_classes: C.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(labels, minlength=num_classes)
    usable = np.flatnonzero(counts[labels] >= 2)
    result = np.zeros((len(labels), num_classes))
    if (counts >= 2).sum() < 2:
        return result
    folds = StratifiedKFold(min(FOLDS, counts[counts >= 2].min()), shuffle=True, random_state=0)
    for train, test in folds.split(usable, labels[usable]):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.01))
        probe.fit(features[usable[train]], labels[usable[train]])
        result[np.ix_(usable[test], probe.classes_)] = probe.predict_proba(features[usable[test]])
    return result


def mislabeled(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[int, int]]:
    """Returns the positions of labels that are probably wrong, and what they should be, the most suspicious first.

    Confident learning (arXiv:1911.00068, section 3.1): an image counts as one of class j if its probability is at least
    the mean probability of the images labeled j. Of several such classes it is the most probable one; if that is not
    its label, the label is suspected.

    Args:
        probabilities: Out of sample, `[N, C]`; all zero for images and classes that were not predicted.
        labels: Classes as given, int `[N]`.
    """
    classes = np.flatnonzero(probabilities.any(axis=0))
    thresholds = np.full(probabilities.shape[1], np.inf)
    thresholds[classes] = [probabilities[labels == c, c].mean() for c in classes]
    confident = np.where(probabilities >= thresholds, probabilities, 0)
    guess = confident.argmax(-1)
    suspected = np.flatnonzero((confident.max(-1) > 0) & (guess != labels))
    order = np.argsort(probabilities[suspected, labels[suspected]], kind='stable')
    return [(int(i), int(guess[i])) for i in suspected[order]]
