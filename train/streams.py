"""The data of a run: a labeled and an unlabeled stream of batches, and the held-out sets."""

import dataclasses
import json
from collections.abc import Callable, Iterable

import numpy as np

from data import datasets, sampler, splits
from errors import UserError
from methods.base import DataSpec
from train import mesh
from train.settings import Data, Settings


@dataclasses.dataclass(frozen=True)
class Streams:
    """All images of a run, and the indices of those that each stream draws from.

    Attributes:
        images: All training images, uint8 `[N, H, W, C]`; cached features are float32 `[N, D]`.
        labels: Their classes, int32 `[N]`.
        indices: {stream: indices of the training images that it draws from}.
        held_out: {'test': (images, labels)}, and 'validation' if there is one.
        class_names: Names of the classes.
        manifest: The content of labels.json.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: dict[str, np.ndarray]
    held_out: dict[str, tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]
    manifest: dict

    @classmethod
    def load(cls, settings: Settings, data_dir: str | None) -> 'Streams':
        """Reads the data sets and draws the label split.

        Args:
            settings: Settings of the run.
            data_dir: Folder of prepared data sets; None for tfds's own.

        Raises:
            UserError: The settings or the data are invalid.
        """
        data = settings.data
        train = _load(data, data.name, data.train_split, data_dir)
        images, labels = train.images, train.labels
        split, manifest = _split(settings, train)
        held_out = {}
        if len(split.validation):
            held_out['validation'] = images[split.validation], labels[split.validation]
        elif data.validation_split:
            validation = _load(data, data.name, data.validation_split, data_dir)
            held_out['validation'] = validation.images, validation.labels
        unlabeled, extra = split.unlabeled, None
        if data.target:
            extra, unlabeled = _load(data, data.target, data.target_split or data.train_split, data_dir), unlabeled[:0]
            _check_domains(data, train, extra)
        elif data.unlabeled_split:
            extra = _load(data, data.name, data.unlabeled_split, data_dir)
        if extra and data.protocol == 'transductive':
            test = extra
        else:
            test = _load(data, data.target or data.name, data.test_split, data_dir)
        held_out['test'] = test.images, test.labels
        if extra:
            unlabeled = np.concatenate([unlabeled, len(images) + np.arange(len(extra.images))])
            images = np.concatenate([images, extra.images])
            labels = np.concatenate([labels, extra.labels])
        indices = {'labeled': split.labeled, 'unlabeled': unlabeled}
        return cls(images, labels, indices, held_out, train.class_names, manifest)

    def spec(self, settings: Settings) -> DataSpec:
        """Returns the description of the data for methods."""
        size = settings.batch_size
        return DataSpec(
            num_classes=len(self.class_names),
            image_shape=self.images.shape[1:],
            labels=self.labels[self.indices['labeled']],
            num_unlabeled=len(self.indices['unlabeled']),
            batch_sizes={'labeled': size, 'unlabeled': size * settings.data.unlabeled_ratio},
        )

    def map(self, f: Callable[[np.ndarray], np.ndarray], streams: Iterable[str]) -> 'Streams':
        """Applies a function to the images, `[N, H, W, C]`, of some streams and of the held-out sets.

        Args:
            f: The function.
            streams: Names of the streams to keep.

        Returns:
            Those streams, with the results of the function instead of the images.
        """
        used = np.unique(np.concatenate([self.indices[stream] for stream in streams]))
        return dataclasses.replace(
            self,
            images=f(self.images[used]),
            labels=self.labels[used],
            indices={stream: np.searchsorted(used, self.indices[stream]) for stream in streams},
            held_out={name: (f(images), labels) for name, (images, labels) in self.held_out.items()},
        )

    def unlabeled(self) -> np.ndarray:
        """Returns all images of the unlabeled stream, uint8 `[N, H, W, C]`."""
        return self.images[self.indices['unlabeled']]

    def batches(self, sizes: dict[str, int], seed: int, step: int) -> dict[str, dict[str, np.ndarray]]:
        """Returns {stream: batch} for {stream: size}."""
        return {stream: self.batch(stream, seed, step, size) for stream, size in sizes.items()}

    def batch(self, stream: str, seed: int, step: int, size: int) -> dict[str, np.ndarray]:
        """Returns this process's rows of a batch of a stream. The batch is a pure function of the arguments.

        Args:
            stream: Name of the stream.
            seed: Seed of the run.
            step: Number of the step, from 0.
            size: Number of images of the batch.

        Returns:
            {'images': uint8 `[rows, H, W, C]`, 'labels': int32 `[rows]`, 'indices': positions of the images in the
            stream, int32 `[rows]`}. In one process rows = size, see `train.mesh.own`.
        """
        stream_indices = self.indices[stream]
        indices = mesh.own(sampler.batch_indices(seed, stream, step, size, len(stream_indices)))
        rows = stream_indices[indices]
        return {'images': self.images[rows], 'labels': self.labels[rows], 'indices': indices.astype(np.int32)}


def _split(settings: Settings, train: datasets.Arrays) -> tuple[splits.Split, dict]:
    """Returns the label split and its manifest: that of the settings, or one drawn from the seed."""
    data = settings.data
    if not data.manifest:
        seed = settings.seed if data.label_seed < 0 else data.label_seed
        split = splits.draw(train.labels, data.labels, train.num_classes, data.label_protocol, seed, data.validation)
        manifest = splits.to_manifest(split, data.name, train.labels, train.images, data.label_protocol, seed)
        return split, manifest
    split = splits.from_manifest(data.manifest, data.name, train.labels, train.images)
    labels, validation = len(split.labeled), len(split.validation)
    if data.labels not in (labels, splits.ALL) or validation != data.validation:
        raise UserError(
            f'{data.manifest} holds {labels} labels and {validation} validation images, the settings say '
            f'data.labels={data.labels} and data.validation={data.validation}: make them equal.'
        )
    with open(data.manifest, encoding='utf-8') as file:
        return split, json.load(file)


def _load(data: Data, name: str, split: str, data_dir: str | None) -> datasets.Arrays:
    """Returns a split, with images of as many channels as the settings have means."""
    arrays = datasets.load(name, split, data_dir, data.image_size)
    channels = arrays.images.shape[-1]
    if channels == 1 and data.target:  # beside a domain in colour
        arrays = dataclasses.replace(arrays, images=np.repeat(arrays.images, len(data.mean), axis=-1))
    elif len(data.mean) != channels:
        raise UserError(f'data.mean has {len(data.mean)} values, {name} has {channels} channels.')
    return arrays


def _check_domains(data: Data, source: datasets.Arrays, target: datasets.Arrays) -> None:
    if source.images.shape[1:] != target.images.shape[1:]:
        sizes = ' and '.join('x'.join(map(str, part.images.shape[1:3])) for part in (source, target))
        raise UserError(f'Images of {data.name} and {data.target} are {sizes} pixels: set data.image_size to one size.')
    if source.class_names != target.class_names:
        raise UserError(f'{data.name} and {data.target} have not the same classes, or not by the same names.')
