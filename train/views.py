"""The views of a step: every stream's images, augmented on the device and preprocessed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from methods.base import View
from train.settings import Data
from train.trainer import Batch, Trainer, TrainState, stream_key


def make_views(trainer: Trainer, state: TrainState, batch: Batch) -> dict[View, jax.Array]:
    """Returns {view: augmented and preprocessed images, float32 `[n, H, W, C]`} for all views of the methods."""
    if trainer.settings.data.cache_features:
        return {view: batch[view.stream]['images'].astype(jnp.float32) for view in trainer.views}
    data, preprocess = trainer.settings.data, trainer.model.preprocess
    if data.weak.get('min_area'):  # random crops are used whole; evaluation crops the centre
        preprocess = dataclasses.replace(preprocess, crop=1.0)
    made: dict[View, jax.Array] = {}
    for name, augmentation in trainer.augmentations.items():
        views = [view for view in trainer.views if view.augmentation == name]
        if not views:
            continue
        # All views of an augmentation together: it is compiled once, and one pass over more images is faster.
        images = [batch[view.stream]['images'] for view in views]
        keys = [stream_key(state.seed, str(view), state.step) for view in views]
        draws = [
            _of_stream(augmentation, view.stream, data).draw(key, x.shape, view.draw)
            for key, x, view in zip(keys, images, views, strict=True)
        ]
        draws = jax.tree.map(lambda *x: concatenate(x), *draws)
        augmented = _on_every_device(augmentation.apply)(draws, concatenate(images))
        copies = len(augmented) // sum(map(len, images))
        pieces = split(preprocess(augmented), [copies * len(x) for x in images])
        made |= dict(zip(views, pieces, strict=True))
    return {view: made[view] for view in trainer.views}


def _of_stream(augmentation: Any, stream: str, data: Data) -> Any:
    """Returns the augmentation of a stream, since crops of unlabeled images may have a least area of their own."""
    if stream == 'unlabeled' and data.unlabeled_min_area and hasattr(augmentation, 'min_area'):
        return dataclasses.replace(augmentation, min_area=data.unlabeled_min_area)
    return augmentation


def concatenate(arrays: Sequence[jax.Array]) -> jax.Array:
    """Returns batches joined on each device. No image moves between devices, since the order does not matter."""
    return _on_every_device(lambda *local: jnp.concatenate(local))(*arrays)


def split(array: jax.Array, sizes: list[int]) -> list[jax.Array]:
    """Returns the batches, of the given sizes, that `concatenate` joined."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    ends = [sum(sizes[: i + 1]) // devices for i in range(len(sizes) - 1)]
    return _on_every_device(lambda local: tuple(jnp.split(local, ends)))(array)


def parts(tree: Any, number: int) -> Any:
    """Returns arrays `[n, ...]` as `[number, n / number, ...]`: each device divides its own images."""

    def divide(local: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(number, len(x) // number, *x.shape[1:]), local)

    return _on_every_device(divide, axis=1)(tree)


def _on_every_device(f: Callable, axis: int = 0) -> Callable:
    """Returns a per-example function that runs on each device's own examples, without communication.

    Args:
        f: The function.
        axis: Of the examples in its results.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return f
    return jax.shard_map(f, in_specs=jax.P(*mesh.axis_names), out_specs=jax.P(*[None] * axis, *mesh.axis_names))
