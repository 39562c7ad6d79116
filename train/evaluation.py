"""Predictions for a whole data set, every example exactly once, and their accuracy."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from models import Batch
from train import mesh as mesh_lib
from train.step import Trainer

PIXELS = 512 * 64 * 64  # of a batch; fewer images where they are large


def create(trainer: Trainer, mesh: jax.sharding.Mesh, output: str = 'logits') -> Callable:
    """Returns `predict(params, batch_stats, images) -> logits`, or another output of the network, compiled once.

    images: uint8 `[N, H, W, C]`, any N, not augmented, or cached features, float32 `[N, D]`.
    logits: float32 `[N, num_classes]`, on the host.
    """
    compiled = jax.jit(functools.partial(_outputs, trainer, output))
    side = trainer.model.preprocess.resolution or max(trainer.data.image_shape[:2])
    batch_size = min(512, max(8, PIXELS // side**2)) // mesh.size * mesh.size

    def predict(params, batch_stats, images: np.ndarray) -> np.ndarray:
        logits = []
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            part = np.pad(part, [(0, batch_size - len(part))] + [(0, 0)] * (part.ndim - 1))
            logits.append(compiled(params, batch_stats, mesh_lib.put_batch(mesh, part)))
        return np.concatenate(jax.device_get(logits))[: len(images)]

    return predict


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns the accuracy, in [0, 1], and the mean cross-entropy of logits `[N, C]` for labels int `[N]`."""
    logits = logits.astype(np.float64)
    losses = np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(labels)), labels]
    return {'accuracy': float((logits.argmax(-1) == labels).mean()), 'loss': float(losses.mean())}


def _outputs(trainer: Trainer, name: str, params, batch_stats, images) -> jax.Array:
    if images.ndim == 4:
        images = trainer.model.preprocess(images.astype(jnp.float32) / 255)
    variables = {'params': params, 'batch_stats': batch_stats}
    return trainer.model.apply(variables, Batch(images), train=False)[0][name].grad
