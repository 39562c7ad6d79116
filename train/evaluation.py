"""Accuracy of the averaged parameters over a whole data set, every example exactly once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models import Batch
from train import mesh as mesh_lib
from train.step import Trainer, normalise

BATCH_SIZE = 512


def create(trainer: Trainer, mesh: jax.sharding.Mesh) -> Callable:
    """Returns `evaluate(params, batch_stats, images, labels) -> {'accuracy': ..., 'loss': ...}`.

    images: uint8 `[N, H, W, C]`, labels: int32 `[N]`; any N. The last batch is padded and the padding masked.
    """
    compiled = jax.jit(functools.partial(_sums, trainer))
    batch_size = BATCH_SIZE // mesh.size * mesh.size

    def evaluate(params, batch_stats, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        totals = []
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size], labels[start : start + batch_size]
            padding = batch_size - len(part[0])
            mask = np.arange(batch_size) < batch_size - padding
            padded = [np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in part]
            totals.append(compiled(params, batch_stats, *mesh_lib.put_batch(mesh, (*padded, mask))))
        correct, loss = np.sum(jax.device_get(totals), axis=0, dtype=np.float64)
        return {'accuracy': float(correct / len(images)), 'loss': float(loss / len(images))}

    return evaluate


def _sums(trainer: Trainer, params, batch_stats, images, labels, mask) -> tuple[jax.Array, jax.Array]:
    """Returns the number of right answers and the sum of cross-entropies over the unmasked examples."""
    images = Batch(normalise(trainer.settings, images.astype(jnp.float32) / 255))
    variables = {'params': params, 'batch_stats': batch_stats}
    logits = trainer.model.apply(variables, images, train=False)[0]['logits'].grad
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (mask * (logits.argmax(-1) == labels)).sum(), (mask * loss).sum()
