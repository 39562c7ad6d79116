"""Predictions for a whole data set, every example exactly once, and their accuracy."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from errors import unknown
from train import mesh as mesh_lib
from train import selection, transfer
from train.step import Trainer, TrainState
from train.streams import Streams

PIXELS = 512 * 64 * 64  # of a batch; fewer images where they are large


def create(trainer: Trainer, mesh: jax.sharding.Mesh) -> Callable:
    """Returns `predict(params, batch_stats, images, output='logits') -> logits`, or another output of the network.

    Compiled once for each output. Feature maps `[N, h, w, c]` come averaged over space, `[N, c]`.

    images: uint8 `[N, H, W, C]`, any N, not augmented, or cached features, float32 `[N, D]`.
    logits: float32 `[N, num_classes]`, on the host.
    """
    compiled = jax.jit(functools.partial(_outputs, trainer), static_argnames='output')
    side = trainer.model.preprocess.resolution or max(trainer.data.image_shape[:2])
    batch_size = min(512, max(8, PIXELS // side**2)) // mesh.size * mesh.size

    def predict(params, batch_stats, images: np.ndarray, output: str = 'logits') -> np.ndarray:
        outputs = []
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            part = np.pad(part, [(0, batch_size - len(part))] + [(0, 0)] * (part.ndim - 1))
            outputs.append(compiled(params, batch_stats, mesh_lib.put_batch(mesh, part), output=output))
        return np.concatenate(jax.device_get(outputs))[: len(images)]

    return predict


def evaluator(trainer: Trainer, streams: Streams, predict: Callable) -> Callable:
    """Returns `evaluate(state) -> ({'<held-out set>_<score>': value}, saved)`, with the averaged parameters.

    predict: of `create`.

    Without a labeled stream the classifier has learned nothing: the accuracy is then that of the nearest labeled
    images among the features (`train.transfer.Transfer`). saved: features and logits of training images of both
    domains, for `train.selection`; None without a target domain.
    """
    averaged = any(method.rotation_averaged for method in trainer.methods.values())
    protocol = transfer.protocol(trainer.settings)
    to_save = selection.images(streams) if trainer.settings.data.target else {}

    def evaluate(state: TrainState) -> tuple[dict[str, float], tuple | None]:
        of = functools.partial(predict, state.ema_params, state.batch_stats)
        scores = {}
        if 'labeled' not in trainer.batch_sizes:
            labeled = streams.indices['labeled']
            known = of(streams.images[labeled], protocol.layer), streams.labels[labeled]
        for name, (images, labels) in streams.held_out.items():
            if 'labeled' not in trainer.batch_sizes:
                found = {'accuracy': protocol.neighbours(known, (of(images, protocol.layer), labels))}
            else:
                logits = of(images)
                found = score(logits, labels)
                if averaged:
                    turned = sum(of(np.rot90(images, k, axes=(1, 2))) for k in (1, 2, 3))
                    found['rotation_averaged'] = score(logits + turned, labels)['accuracy']
            scores |= {f'{name}_{key}': value for key, value in found.items()}
        if not to_save:
            return scores, None
        head = jax.device_get(state.ema_params['head'])
        features = {part: of(images, 'features') for part, images in to_save.items()}
        return scores, (features, {part: x @ head['kernel'] + head['bias'] for part, x in features.items()})

    return evaluate


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns the accuracy, in [0, 1], and the mean cross-entropy of logits `[N, C]` for labels int `[N]`."""
    logits = logits.astype(np.float64)
    losses = np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(labels)), labels]
    return {'accuracy': float((logits.argmax(-1) == labels).mean()), 'loss': float(losses.mean())}


def _outputs(trainer: Trainer, params, batch_stats, images, output: str) -> jax.Array:
    if images.ndim == 4:
        images = trainer.model.preprocess(images.astype(jnp.float32) / 255)
    variables = {'params': params, 'batch_stats': batch_stats}
    outputs = trainer.model.apply(variables, images)[0]
    if output not in outputs:
        raise unknown('output of the network', output, outputs)
    values = outputs[output]
    return values.mean(axis=(1, 2)) if values.ndim == 4 else values
