"""Predictions for a whole data set, each example exactly once, and their accuracy."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from errors import unknown
from methods.base import Start
from train import mesh as mesh_lib
from train import processes, selection
from train import step as step_lib
from train.settings import Transfer
from train.streams import Streams
from train.trainer import Trainer, TrainState, stream_key

LABELED = 256  # images at most, whose accuracy with running statistics is compared with that in training
# Pixels of a batch on a device. On a CPU larger ones do not fit into its caches and take a third longer.
PIXELS = 512 * 64 * 64
CPU_PIXELS = 64 * 32 * 32


class Predict(Protocol):
    """A function that returns an output of the network for images, made by `create`."""

    def __call__(self, params: Any, batch_stats: Any, images: np.ndarray, output: str = 'logits') -> np.ndarray:
        """Returns an output for every image.

        Args:
            params: Parameters of the network.
            batch_stats: Its running statistics.
            images: uint8 `[N, H, W, C]`, any N, not augmented; or cached features, float32 `[N, D]`.
            output: Name of the output. The function is compiled once for each.

        Returns:
            float32 `[N, D]`, on the host; feature maps `[N, h, w, D]` averaged over space.

        Raises:
            UserError: The network has no such output.
        """


def check(trainer: Trainer, state: TrainState) -> None:
    """Traces what the features of a run are evaluated with, if they are.

    Args:
        trainer: The trainer of the network.
        state: A state or its shapes.

    Raises:
        UserError: The network has no output `transfer.layer`.
    """
    if trainer.settings.transfer.labels or 'labeled' not in trainer.batch_sizes:
        images = jax.ShapeDtypeStruct((1, *trainer.data.image_shape), jnp.uint8)
        output = functools.partial(_output, trainer, output=trainer.settings.transfer.layer)
        jax.eval_shape(output, state.params, state.batch_stats, images)


def create(trainer: Trainer, mesh: jax.sharding.Mesh) -> Predict:
    """Returns the function that predicts with the trainer's network, on all devices of the mesh."""
    compiled = jax.jit(functools.partial(_output, trainer), static_argnames='output')
    side = trainer.model.preprocess.resolution or max(trainer.data.image_shape[:2])
    pixels = CPU_PIXELS if jax.default_backend() == 'cpu' else PIXELS
    batch_size = min(512, max(8, pixels // side**2)) * mesh.size

    def predict(params: Any, batch_stats: Any, images: np.ndarray, output: str = 'logits') -> np.ndarray:
        outputs = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            batch = np.pad(batch, [(0, batch_size - len(batch))] + [(0, 0)] * (batch.ndim - 1))
            part = mesh_lib.put_batch(mesh, mesh_lib.own(batch))
            outputs.append(compiled(params, batch_stats, part, output=output))
        return np.concatenate(mesh_lib.fetch(outputs))[: len(images)]

    return predict


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Scores a state, with its averaged parameters, on the held-out sets.

    Without a labeled stream the classifier is not trained. Then the accuracy is that of nearest neighbours among the
    features of the labeled images.

    Attributes:
        trainer: The trainer of the network.
        streams: The data.
        predict: The function that `create` returns.
        folder: Folder in which domain adaptation saves features of training images of both domains, for
            `train.selection`.
    """

    trainer: Trainer
    streams: Streams
    predict: Predict
    folder: pathlib.Path

    def __call__(self, step: int, state: TrainState) -> dict[str, float]:
        """Returns {'<held-out set>_<score>': value} after a step.

        'labeled_accuracy' is that of the parameters in training, not of their average, on labeled images.
        """
        scores = {}
        predict = functools.partial(self.predict, *state.averaged)
        if 'labeled' in self.trainer.batch_sizes:
            averaged = any(method.rotation_averaged for method in self.trainer.methods.values())
            score_set = functools.partial(_score_classifier, predict, averaged)
            # Otherwise they are those of the other domain, or nothing that training changes.
            if self.trainer.normalises_by_batch and not self.trainer.model.has_domains:
                labeled = self.streams.indices['labeled'][:LABELED]
                logits = self.predict(state.params, state.batch_stats, self.streams.images[labeled])
                scores['labeled_accuracy'] = score(logits, self.streams.labels[labeled])['accuracy']
        else:
            transfer, labeled = self.trainer.settings.transfer, self.streams.indices['labeled']
            train = predict(self.streams.images[labeled], transfer.layer), self.streams.labels[labeled]
            score_set = functools.partial(_score_neighbours, predict, transfer, train)
        if self.trainer.settings.data.target:
            self._save_features(step, state, predict)
        return scores | {
            f'{name}_{key}': value
            for name, (images, labels) in self.streams.held_out.items()
            for key, value in score_set(images, labels).items()
        }

    def _save_features(self, step: int, state: TrainState, predict: Callable[..., np.ndarray]) -> None:
        head = jax.device_get(state.ema_params['head'])
        features = {part: predict(images, 'features') for part, images in selection.images(self.streams).items()}
        logits = {part: x @ head['kernel'] + head['bias'] for part, x in features.items()}
        if processes.is_main():
            selection.save(self.folder, step, features, logits)


def features(trainer: Trainer, streams: Streams, mesh: jax.sharding.Mesh, layer: str = 'features') -> Streams:
    """Returns the streams with an output of the initial network instead of the images.

    Args:
        trainer: The trainer of the network.
        streams: The images: those of the streams that the methods read, and the held-out sets.
        mesh: The devices.
        layer: Name of the output.
    """
    with jax.set_mesh(mesh):
        variables = step_lib.initial(trainer, trainer.settings.seed, 0)
        predict = functools.partial(create(trainer, mesh), variables['params'], variables['batch_stats'], output=layer)
        return streams.map(predict, trainer.batch_sizes)


def prepare(trainer: Trainer, streams: Streams, state: TrainState) -> TrainState:
    """Returns the state before the first step, after `Method.prepare` of every method."""
    labeled = streams.indices['labeled']
    start = Start(
        images=streams.images[labeled],
        labels=streams.labels[labeled],
        params=state.params,
        batch_stats=state.batch_stats,
        forward=functools.partial(_outputs, trainer),
        key=stream_key(state.seed, 'methods.prepare', 0),
    )
    prepared = {name: method.prepare(state.methods[name], start) for name, method in trainer.methods.items()}
    return dataclasses.replace(state, methods=prepared)


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns the accuracy, in [0, 1], and the mean cross-entropy of logits `[N, C]` for labels int `[N]`."""
    logits = logits.astype(np.float64)
    losses = np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(labels)), labels]
    return {'accuracy': float((logits.argmax(-1) == labels).mean()), 'loss': float(losses.mean())}


def neighbours(transfer: Transfer, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """Classifies by a vote of the k nearest neighbours.

    Args:
        transfer: Settings: k, temperature, metric, standardize.
        train: Features `[N, D]` and classes int `[N]` of the labeled images.
        test: The same of the test images.

    Returns:
        The accuracy on the test images, in [0, 1].
    """
    from sklearn.neighbors import KNeighborsClassifier  # only now: importing it takes a second of every command
    from sklearn.preprocessing import StandardScaler

    (x, y), (test_x, test_y) = train, test
    if transfer.standardize:
        scaler = StandardScaler().fit(x)
        x, test_x = scaler.transform(x), scaler.transform(test_x)

    def weights(distance: np.ndarray) -> np.ndarray:
        # Shifted so that the weight of the nearest neighbour is 1; otherwise all weights can underflow.
        return np.exp((distance.min(1, keepdims=True) - distance) / transfer.temperature)

    classifier = KNeighborsClassifier(
        min(transfer.k, len(x)),
        weights=weights if transfer.temperature else 'uniform',
        metric=transfer.metric,
        algorithm='brute',
    )
    return float(classifier.fit(x, y).score(test_x, test_y))


def _score_classifier(
    predict: Callable[..., np.ndarray], averaged: bool, images: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    logits = predict(images)
    scores = score(logits, labels)
    if averaged:
        logits = logits + sum(predict(np.rot90(images, k, axes=(1, 2))) for k in (1, 2, 3))
        scores['rotation_averaged'] = score(logits, labels)['accuracy']
    return scores


def _score_neighbours(
    predict: Callable[..., np.ndarray], transfer: Transfer, train: tuple, images: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    return {'accuracy': neighbours(transfer, train, (predict(images, transfer.layer), labels))}


def _outputs(trainer: Trainer, params, images, batch_stats) -> dict[str, jax.Array]:
    if images.ndim == 4:
        images = trainer.model.preprocess(images.astype(jnp.float32) / 255)
    return trainer.model.apply({'params': params, 'batch_stats': batch_stats}, images)[0]


def _output(trainer: Trainer, params, batch_stats, images, output: str) -> jax.Array:
    outputs = _outputs(trainer, params, images, batch_stats)
    if output not in outputs:
        raise unknown('output of the network', output, outputs)
    values = outputs[output]
    return values.mean(axis=(1, 2)) if values.ndim == 4 else values
