"""The forward pass over all views of a step, and the sum of the methods' losses."""

import functools
from typing import Any

import jax

import models
from errors import UserError
from methods.base import JOINT, NO_GRAD, SEPARATE, Inputs, Loss, View
from models import mlp, precision
from train.trainer import Batch, Trainer, TrainState, stream_key
from train.views import concatenate, parts, split


def total(
    trainer: Trainer,
    params: Any,
    state: TrainState,
    batch: Batch,
    images: dict[View, jax.Array],
    progress: jax.Array,
    frozen: frozenset[str] = frozenset(),
    part: int | jax.Array = 0,
) -> tuple[jax.Array, tuple[Any, dict[str, Loss]]]:
    """Returns the sum of all losses, the new running statistics, and what every method returned.

    Args:
        trainer: Network, methods and settings.
        params: Parameters of the network, in which the gradient is taken.
        state: The state before the step.
        batch: The batch, or a part of it.
        images: The views that `train.views.make_views` returns, or that part of them.
        progress: The fraction of the round that is done.
        frozen: Layers that run as in evaluation.
        part: Number of the part, of `settings.micro_batches`.

    Raises:
        UserError: Two methods return running statistics.
    """
    outputs, batch_stats = forward(trainer, params, state, images, frozen, part)
    losses: dict[str, Loss] = {}
    for name, method in trainer.methods.items():
        key = stream_key(state.seed, f'methods.{name}', state.step)
        inputs = Inputs(
            labels=batch['labeled']['labels'] if 'labeled' in batch else None,
            indices={stream: values['indices'] for stream, values in batch.items()},
            images=images,
            outputs=outputs,
            progress=progress,
            key=jax.random.fold_in(key, part) if trainer.settings.micro_batches > 1 else key,
            params=params,
            ema_params=state.ema_params,
            forward=functools.partial(_forward_alone, trainer, state, batch_stats, frozen, part, name),
            mlp=functools.partial(_mlp, trainer.model.precision, name),
        )
        with precision.used('float32'):
            losses[name] = method.loss(inputs, state.methods[name])
    given = {name: loss.batch_stats for name, loss in losses.items() if loss.batch_stats is not None}
    if len(given) > 1:
        raise UserError(f'{" and ".join(given)} both set the running statistics of batch norm: use one of them.')
    (batch_stats,) = given.values() or (batch_stats,)
    return jax.numpy.stack([loss.loss for loss in losses.values()]).sum(), (batch_stats, losses)


def forward(
    trainer: Trainer,
    params: Any,
    state: TrainState,
    images: dict[View, jax.Array],
    frozen: frozenset[str] = frozenset(),
    part: int | jax.Array = 0,
) -> tuple[dict[View, dict[str, jax.Array]], Any]:
    """Runs the network over the views: once over 'joint' and 'no_grad' views, and once over 'separate' ones.

    Args:
        trainer: Network, methods and settings.
        params: Parameters of the network.
        state: The state before the step.
        images: The views.
        frozen: Layers that run as in evaluation.
        part: As in `total`.

    Returns:
        {view: {output: `[n, ...]`}}, and the new running statistics, which 'separate' views do not enter.
    """
    model, batch_stats = trainer.model, state.batch_stats
    outputs: dict[View, dict[str, jax.Array]] = {}
    variables = {'params': params, 'batch_stats': batch_stats}
    groups = {
        policy: [view for view in images if trainer.views[view] == policy] for policy in (JOINT, NO_GRAD, SEPARATE)
    }

    def join(policy: str) -> models.Batch:
        views = groups[policy]
        keys = [_keys(trainer, state, str(v), len(images[v]), part) for v in views]
        domains = [jax.numpy.full(len(images[v]), v.stream == 'unlabeled', 'int32') for v in views]
        return models.Batch(
            concatenate([images[v] for v in views]),
            concatenate(keys),
            concatenate(domains) if model.has_domains else None,
        )

    def by_view(policy: str, values: dict[str, jax.Array]) -> dict[View, dict[str, jax.Array]]:
        views, sizes = groups[policy], [len(images[v]) for v in groups[policy]]
        pieces = {name: split(array, sizes) for name, array in values.items()}
        return {v: {name: piece[i] for name, piece in pieces.items()} for i, v in enumerate(views)}

    def apply(batch: models.Batch) -> tuple[dict[str, jax.Array], Any]:
        joined, keys, domains = batch
        return model.apply(variables, joined, True, frozen=frozen, keys=keys, domains=domains)

    if groups[NO_GRAD]:
        joint, beside, batch_stats = model.apply_beside(variables, join(JOINT), join(NO_GRAD), frozen)
        outputs |= by_view(JOINT, joint) | by_view(NO_GRAD, beside)
    elif groups[JOINT]:
        joint, batch_stats = apply(join(JOINT))
        outputs |= by_view(JOINT, joint)
    if groups[SEPARATE]:
        separate, _ = apply(join(SEPARATE))
        outputs |= by_view(SEPARATE, separate)
    return outputs, batch_stats


def _forward_alone(
    trainer: Trainer,
    state: TrainState,
    running: Any,
    frozen: frozenset[str],
    part: int | jax.Array,
    method: str,
    params: Any,
    images: jax.Array,
    batch_stats: Any = None,
    draw: str = '',
) -> tuple[dict[str, jax.Array], Any]:
    """Runs the network on a separate batch, with its own statistics or those given; bound to `Inputs.forward`."""
    if batch_stats is not None:
        return trainer.model.apply({'params': params, 'batch_stats': batch_stats}, images)
    keys = _keys(trainer, state, f'{method}.{draw}', len(images), part)
    return trainer.model.apply({'params': params, 'batch_stats': running}, images, True, frozen=frozen, keys=keys)


def _keys(trainer: Trainer, state: TrainState, name: str, size: int, part: int | jax.Array) -> jax.Array:
    """Returns a key for each image, so that the dropped units do not depend on the composition of the batch."""
    number = trainer.settings.micro_batches
    return parts(jax.random.split(stream_key(state.seed, f'drop.{name}', state.step), number * size), number)[part]


def _mlp(used: str, method: str, params: Any, name: str, x: jax.Array) -> jax.Array:
    """Runs one of a method's own networks; bound to `Inputs.mlp`."""
    with precision.used(used):
        return mlp.apply(params, f'{method}_{name}', x)
