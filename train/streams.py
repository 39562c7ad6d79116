"""The data of a run: a labeled and an unlabeled stream to draw batches from, and the held-out sets."""

import dataclasses
import json
from collections.abc import Callable, Iterable

import numpy as np

from data import datasets, sampler, splits
from errors import UserError
from methods.base import DataSpec
from train.settings import Data, Settings


@dataclasses.dataclass(frozen=True)
class Streams:
    """images uint8 `[N, H, W, C]` and labels int32 `[N]` of all training images.

    indices: {stream: which of them it draws from}.
    held_out: {'test': (images, labels)}, and 'validation' where one was asked for.
    manifest: what labels.json holds.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: dict[str, np.ndarray]
    held_out: dict[str, tuple[np.ndarray, np.ndarray]]
    num_classes: int
    manifest: dict

    @classmethod
    def load(cls, settings: Settings, data_dir: str | None) -> 'Streams':
        """Reads the data set and draws the label split. Raises UserError for what the user can mend."""
        data = settings.data
        train = _load(data, data.name, data.train_split, data_dir)
        images, labels = train.images, train.labels
        if data.manifest:
            split = splits.from_manifest(data.manifest, data.name, labels, images)
            found = len(split.labeled), len(split.validation)
            if found != (data.labels, data.validation):
                raise UserError(
                    f'{data.manifest} holds {found[0]} labels and {found[1]} validation images, the settings say '
                    f'data.labels={data.labels} and data.validation={data.validation}: make them equal.'
                )
            with open(data.manifest, encoding='utf-8') as file:
                manifest = json.load(file)
        else:
            seed = settings.seed if data.label_seed < 0 else data.label_seed
            chosen = (data.labels, train.num_classes, data.label_protocol, seed, data.validation)
            split = splits.draw(labels, *chosen)
            manifest = splits.to_manifest(split, data.name, labels, images, data.label_protocol, seed)
        held_out = {}
        if len(split.validation):
            held_out['validation'] = images[split.validation], labels[split.validation]
        unlabeled, extra = split.unlabeled, None
        if data.target:
            extra, unlabeled = _load(data, data.target, data.target_split or data.train_split, data_dir), unlabeled[:0]
            _check_domains(data, train, extra)
        elif data.unlabeled_split:
            extra = _load(data, data.name, data.unlabeled_split, data_dir)
        test = _load(data, data.target or data.name, data.test_split, data_dir)
        if data.protocol == 'transductive':
            test = extra
        held_out['test'] = test.images, test.labels
        if extra:
            unlabeled = np.concatenate([unlabeled, len(images) + np.arange(len(extra.images))])
            images = np.concatenate([images, extra.images])
            labels = np.concatenate([labels, extra.labels])
        indices = {'labeled': split.labeled, 'unlabeled': unlabeled}
        return cls(images, labels, indices, held_out, train.num_classes, manifest)

    def spec(self, settings: Settings) -> DataSpec:
        """Returns what methods may know of the data."""
        size = settings.batch_size
        return DataSpec(
            num_classes=self.num_classes,
            image_shape=self.images.shape[1:],
            labels=self.labels[self.indices['labeled']],
            num_unlabeled=len(self.indices['unlabeled']),
            batch_sizes={'labeled': size, 'unlabeled': size * settings.data.unlabeled_ratio},
        )

    def map(self, f: Callable[[np.ndarray], np.ndarray], streams: Iterable[str]) -> 'Streams':
        """Returns f of the images, uint8 `[N, H, W, C]`, of the streams named and of the held-out sets."""
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
        """Returns images, uint8 `[size, H, W, C]`, their labels and their indices in the stream, int32 `[size]`.

        A pure function of all four.
        """
        of = self.indices[stream]
        indices = sampler.batch_indices(seed, stream, step, size, len(of))
        chosen = of[indices]
        return {'images': self.images[chosen], 'labels': self.labels[chosen], 'indices': indices.astype(np.int32)}


def _load(data: Data, name: str, split: str, data_dir: str | None) -> datasets.Arrays:
    """Reads a split, with images of as many channels as the settings have means."""
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
