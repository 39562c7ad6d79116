"""The training step shared by all methods: a pure function (state, batch) -> (state, metrics)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

import models
from methods.base import DataSpec, Loss, View
from train import losses, optimizer
from train.trainer import Batch, Metrics, Trainer, TrainState, stream_key
from train.views import make_views, parts

_NOTHING = Metrics({}, {})


def check(trainer: Trainer, batch: Batch) -> TrainState:
    """Traces a step. `init` and `step` reuse the trace if the batch is on the same devices.

    Returns:
        The shapes of the state.

    Raises:
        UserError: Settings contradict each other.
    """
    return jax.eval_shape(functools.partial(init, trainer), batch)


def init(trainer: Trainer, batch: Batch) -> TrainState:
    """Returns the state before the first step, on batches shaped like `batch`."""
    state = _first(trainer, initial(trainer, trainer.settings.seed, 0))
    _, metrics = jax.eval_shape(lambda *args: _update(trainer, *args, False), state, batch)
    return dataclasses.replace(state, metrics=jax.tree.map(lambda m: jnp.zeros(m.shape), metrics))


@functools.partial(jax.jit, static_argnums=0)
def _first(trainer: Trainer, variables: models.Variables) -> TrainState:
    settings = trainer.settings

    def data(method: str) -> DataSpec:
        key = stream_key(settings.seed, f'methods.{method}.state', 0)
        return dataclasses.replace(trainer.data, variables=variables, key=key)

    state = TrainState(
        seed=jnp.int32(settings.seed),
        step=jnp.int32(0),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        ema_params=variables['params'],
        ema_batch_stats=variables['batch_stats'] if settings.ema_statistics else {},
        opt_state={
            part: optimizer.create(settings.optimizer).init(params)
            for part, params in _parts(trainer, optimizer.select(variables['params'], trainer.layer_rates)).items()
        },
        methods={name: method.init_state(data(name)) for name, method in trainer.methods.items()},
        metrics=_NOTHING,
    )
    return jax.tree.map(jnp.copy, state)  # a step donates every array, so none may occur twice


def initial(trainer: Trainer, seed: int | jax.Array, number: int | jax.Array) -> models.Variables:
    """Returns the initial variables of a round."""
    return trainer.model.init(stream_key(seed, 'init', number), trainer.data.image_shape)


def next_round(trainer: Trainer, state: TrainState, logits: jax.Array) -> TrainState:
    """Returns the state at the beginning of a round after the first.

    Args:
        trainer: Network, methods and settings.
        state: The state after the round before.
        logits: Logits of the EMA network for every image of the unlabeled stream, `[N, C]`.
    """
    probabilities = jax.nn.softmax(logits)
    number = state.step // trainer.round_steps
    own = {name: m.relabel(state.methods[name], probabilities, number) for name, m in trainer.methods.items()}
    opt_state = jax.tree.map(jnp.zeros_like, state.opt_state)
    new = dataclasses.replace(state, methods=own, opt_state=opt_state)
    if any(m.restart for m in trainer.methods.values()):
        variables = initial(trainer, state.seed, number)
        averages = jax.tree.map(jnp.copy, variables)
        new = dataclasses.replace(
            new,
            params=variables['params'],
            batch_stats=variables['batch_stats'],
            ema_params=averages['params'],
            ema_batch_stats=averages['batch_stats'] if trainer.settings.ema_statistics else {},
        )
    return new


def step(trainer: Trainer, state: TrainState, batch: Batch, head_only: bool = False) -> tuple[TrainState, Metrics]:
    """Makes one step.

    Args:
        trainer: Network, methods and settings.
        state: The state before the step.
        batch: The batch.
        head_only: Train the heads only.

    Returns:
        The state after the step, and the metrics of the steps since the last logged one.
    """
    # Without metrics in the state, as in `init`, so that both share one trace.
    new, metrics = _update(trainer, dataclasses.replace(state, metrics=_NOTHING), batch, head_only)
    first_of_window = state.step % trainer.settings.log_steps == 0
    window = jax.tree.map(lambda old, m: jnp.where(first_of_window, 0, old) + m, state.metrics, metrics)
    return dataclasses.replace(new, metrics=window), window


def _parts(trainer: Trainer, params: dict) -> dict[str, dict]:
    """Returns the heads and the other layers: until `unfreeze_step` the optimizer of the others has seen no step."""
    heads = {layer: leaves for layer, leaves in params.items() if layer in trainer.data.heads}
    return {'heads': heads, 'others': {layer: leaves for layer, leaves in params.items() if layer not in heads}}


# Nested jit: `init` and `step` share one trace.
@functools.partial(jax.jit, static_argnums=(0, 3))
def _update(trainer: Trainer, state: TrainState, batch: Batch, head_only: bool) -> tuple[TrainState, Metrics]:
    settings = trainer.settings
    rates = trainer.layer_rates
    if head_only:
        rates = {layer: r if layer in trainer.data.heads else dict.fromkeys(r, 0.0) for layer, r in rates.items()}
    # The running statistics of frozen layers are frozen, too.
    trained = optimizer.select(state.params, rates)
    frozen = frozenset(state.params) - trained.keys()
    progress = state.step % trainer.round_steps / trainer.round_steps
    images = make_views(trainer, state, batch)

    gradient, seen, metrics = _gradient(trainer, state, trained, batch, images, progress, frozen)
    clipped = optimizer.clip(settings.optimizer, gradient)
    gradients, values = _parts(trainer, clipped), _parts(trainer, trained)
    updates: dict[str, dict[str, jax.Array]] = {}
    opt_state = dict(state.opt_state)
    for part in gradients if not head_only else ('heads',):
        new_updates, opt_state[part] = optimizer.create(settings.optimizer).update(
            gradients[part], opt_state[part], values[part]
        )
        updates |= new_updates
    rate = optimizer.learning_rate(settings.optimizer, progress)
    new_trained = {
        layer: {leaf: value - rate * rates[layer][leaf] * updates[layer][leaf] for leaf, value in leaves.items()}
        for layer, leaves in trained.items()
    }
    pace = 1 - settings.ema_decay
    ema = optax.incremental_update(new_trained, optimizer.select(state.ema_params, rates), pace)
    ema_batch_stats = {}
    if settings.ema_statistics:
        ema_batch_stats = optax.incremental_update(seen.batch_stats, state.ema_batch_stats, pace)
    new = dataclasses.replace(
        seen,
        step=state.step + 1,
        params=optimizer.merge(state.params, new_trained),
        ema_params=optimizer.merge(state.ema_params, ema),
        ema_batch_stats=ema_batch_stats,
        opt_state=opt_state,
    )
    means = {
        'gradient_norm': _mean(optax.tree.norm(gradient)),
        'parameter_norm': _mean(optax.tree.norm(new.params)),
        'learning_rate': _mean(rate),
    }
    return new, Metrics(metrics.means | means, metrics.histograms)


def _gradient(
    trainer: Trainer,
    state: TrainState,
    trained: dict,
    batch: Batch,
    images: dict[View, jax.Array],
    progress: jax.Array,
    frozen: frozenset[str],
) -> tuple[dict, TrainState, Metrics]:
    """Returns the gradient of all losses, the state with what the losses changed, and their metrics.

    The arguments are those of `losses.total`. With `micro_batches` the parts of the batch pass the network one after
    another, and only the activations of one are in memory. The gradient is the mean of theirs.
    """

    def of_part(state: TrainState, batch: Batch, images: dict[View, jax.Array], part: int | jax.Array):
        def loss_fn(trained):
            params = optimizer.merge(state.params, trained)
            return losses.total(trainer, params, state, batch, images, progress, frozen, part)

        # Differentiate trained parameters only, so that XLA can drop the backward pass below the lowest of them.
        (loss, (batch_stats, results)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        own = {name: result.state for name, result in results.items()}
        new = dataclasses.replace(state, batch_stats=batch_stats, methods=own)
        return gradient, new, _metrics(loss, results, batch, trainer.data.num_classes)

    number = trainer.settings.micro_batches
    if number == 1:
        return of_part(state, batch, images, 0)

    def add(carried, part):
        total, batch_stats, own = carried
        gradient, new, metrics = of_part(dataclasses.replace(state, batch_stats=batch_stats, methods=own), *part)
        return (jax.tree.map(jnp.add, total, gradient), new.batch_stats, new.methods), metrics

    labels = {name: {key: stream[key] for key in ('labels', 'indices')} for name, stream in batch.items()}
    zeros = jax.tree.map(jnp.zeros_like, trained)
    (total, batch_stats, own), metrics = jax.lax.scan(
        add, (zeros, state.batch_stats, state.methods), (*parts((labels, images), number), jnp.arange(number))
    )
    new = dataclasses.replace(state, batch_stats=batch_stats, methods=own)
    return jax.tree.map(lambda x: x / number, total), new, jax.tree.map(lambda x: x.sum(0), metrics)


def _metrics(loss: jax.Array, results: dict[str, Loss], batch: Batch, num_classes: int) -> Metrics:
    """Returns the metrics of the losses, with the accuracy of their pseudo-labels."""
    means, histograms = {'loss': _mean(loss)}, {}
    for name, result in results.items():
        means |= {f'{name}/{key}': _mean(value) for key, value in result.metrics.items()}
        if result.pseudo_labels is not None:
            # The only use of the unlabeled stream's true classes, after the gradient is taken.
            guess, mask = result.pseudo_labels
            labels = batch['unlabeled']['labels']
            means[f'{name}/mask_rate'] = _mean(mask)
            means[f'{name}/pseudo_label_accuracy'] = _mean(guess == labels, mask * (labels >= 0))
            means[f'{name}/pseudo_label_accuracy_all'] = _mean(guess == labels, labels >= 0)
            histograms[f'{name}/pseudo_label'] = (mask[:, None] * jax.nn.one_hot(guess, num_classes)).sum(0)
    return Metrics(means, histograms)


def _mean(values: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    """Returns [sum, count] of a weighted mean. The weight is 0 for images without a class (-1)."""
    weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), jnp.shape(values))
    return jnp.stack([jnp.sum(values * weights), jnp.sum(weights)])
