"""Predictions for a whole data set, every example exactly once, and their accuracy."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from models import Batch
from train import mesh as mesh_lib
from train.step import Trainer, normalise

BATCH_SIZE = 512


def create(trainer: Trainer, mesh: jax.sharding.Mesh) -> Callable:
    """Returns `predict(params, batch_stats, images) -> logits`, compiled once.

    images: uint8 `[N, H, W, C]`, any N, not augmented; logits: float32 `[N, num_classes]`, on the host.
    """
    compiled = jax.jit(functools.partial(_logits, trainer))
    batch_size = BATCH_SIZE // mesh.size * mesh.size

    def predict(params, batch_stats, images: np.ndarray) -> np.ndarray:
        logits = []
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            part = np.pad(part, [(0, batch_size - len(part))] + [(0, 0)] * 3)
            logits.append(compiled(params, batch_stats, mesh_lib.put_batch(mesh, part)))
        return np.concatenate(jax.device_get(logits))[: len(images)]

    return predict


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns the accuracy, in [0, 1], and the mean cross-entropy of logits `[N, C]` for labels int `[N]`."""
    logits = logits.astype(np.float64)
    losses = np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(labels)), labels]
    return {'accuracy': float((logits.argmax(-1) == labels).mean()), 'loss': float(losses.mean())}


def _logits(trainer: Trainer, params, batch_stats, images) -> jax.Array:
    images = Batch(normalise(trainer.settings, images.astype(jnp.float32) / 255))
    return trainer.model.apply({'params': params, 'batch_stats': batch_stats}, images, train=False)[0]['logits'].grad
