"""The views of a step: every stream's images, augmented on the device and preprocessed."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from methods.base import View
from train.trainer import Batch, Trainer, TrainState, stream_key


def make_views(trainer: Trainer, state: TrainState, batch: Batch) -> dict[View, jax.Array]:
    """Augments and preprocesses every view that the methods ask for. Returns {view: float32 `[n, H, W, C]`}."""
    if trainer.settings.data.cache_features:
        return {view: batch[view.stream]['images'].astype(jnp.float32) for view in trainer.views}
    data, preprocess = trainer.settings.data, trainer.model.preprocess
    if data.weak.get('min_area'):
        # A random crop is seen whole; the centre is for evaluation.
        preprocess = dataclasses.replace(preprocess, crop=1.0)
    made: dict[View, jax.Array] = {}
    for name, augmentation in trainer.augmentations.items():
        views = [view for view in trainer.views if view.augmentation == name]
        if not views:
            continue
        # All views of an augmentation at once: it is compiled once, and one pass over more images is faster.
        images = [batch[view.stream]['images'] for view in views]
        keys = [stream_key(state.seed, str(view), state.step) for view in views]
        unlabeled = augmentation
        if data.unlabeled_min_area:
            unlabeled = dataclasses.replace(augmentation, min_area=data.unlabeled_min_area)
        draws = [
            (unlabeled if view.stream == 'unlabeled' else augmentation).draw(key, x.shape)
            for view, key, x in zip(views, keys, images, strict=True)
        ]
        draws = jax.tree.map(lambda *x: concatenate(x), *draws)
        augmented = _on_every_device(augmentation.apply)(draws, concatenate(images))
        copies = len(augmented) // sum(map(len, images))
        parts = split(preprocess(augmented), [copies * len(x) for x in images])
        made |= dict(zip(views, parts, strict=True))
    return {view: made[view] for view in trainer.views}


def concatenate(arrays: Sequence[jax.Array]) -> jax.Array:
    """Joins batches device by device: the order of a batch means nothing, and no image moves between devices."""
    return _on_every_device(lambda *local: jnp.concatenate(local))(*arrays)


def split(array: jax.Array, sizes: list[int]) -> list[jax.Array]:
    """Returns the batches of those sizes that `concatenate` joined."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    ends = [sum(sizes[: i + 1]) // devices for i in range(len(sizes) - 1)]
    return _on_every_device(lambda local: tuple(jnp.split(local, ends)))(array)


def _on_every_device(f: Callable) -> Callable:
    """Applies a per-example function to each device's own examples, without communication."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return f
    batch = jax.P(*mesh.axis_names)
    return jax.shard_map(f, in_specs=batch, out_specs=batch)
