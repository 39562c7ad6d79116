"""The training step shared by all methods: a pure function (state, batch) -> (state, metrics)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

import models
from methods.base import DataSpec, Loss
from train import losses, optimizer
from train.trainer import Batch, Metrics, Trainer, TrainState, stream_key
from train.views import make_views

_NOTHING = Metrics({}, {})


def check(trainer: Trainer, batch: Batch) -> None:
    """Traces a step, which `init` and `step` then use where the batch lies on the same devices.

    Raises:
        UserError: Settings do not go together.
    """
    jax.eval_shape(functools.partial(init, trainer), batch)


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
        opt_state=optimizer.create(settings.optimizer).init(optimizer.select(variables['params'], trainer.layer_rates)),
        methods={name: method.init_state(data(name)) for name, method in trainer.methods.items()},
        metrics=_NOTHING,
    )
    return jax.tree.map(jnp.copy, state)  # a step takes over (donates) every array, which it can do once only


def initial(trainer: Trainer, seed: int | jax.Array, number: int | jax.Array) -> models.Variables:
    """Returns the variables that a round begins with."""
    return trainer.model.init(stream_key(seed, 'init', number), trainer.data.image_shape)


def next_round(trainer: Trainer, state: TrainState, logits: jax.Array) -> TrainState:
    """Returns the state with which a round after the first begins.

    Args:
        trainer: Of the run.
        state: After the round before.
        logits: The EMA network's for every image of the unlabeled stream, `[N, C]`.
    """
    probabilities = jax.nn.softmax(logits)
    number = state.step // trainer.round_steps
    own = {name: m.relabel(state.methods[name], probabilities, number) for name, m in trainer.methods.items()}
    opt_state = jax.tree.map(jnp.zeros_like, state.opt_state)
    new = dataclasses.replace(state, methods=own, opt_state=opt_state)
    if any(m.restart for m in trainer.methods.values()):
        variables = initial(trainer, state.seed, number)
        params = variables['params']
        new = dataclasses.replace(
            new, params=params, ema_params=jax.tree.map(jnp.copy, params), batch_stats=variables['batch_stats']
        )
    return new


def step(trainer: Trainer, state: TrainState, batch: Batch, head_only: bool = False) -> tuple[TrainState, Metrics]:
    """Makes one step. Also returns the metrics of the steps since the last logged one.

    Args:
        trainer: Of the run.
        state: Before the step.
        batch: Of the step.
        head_only: Leave everything below the features as it is.
    """
    # Without the window, as `init` traces it.
    new, metrics = _update(trainer, dataclasses.replace(state, metrics=_NOTHING), batch, head_only)
    first_of_window = state.step % trainer.settings.log_steps == 0
    window = jax.tree.map(lambda old, m: jnp.where(first_of_window, 0, old) + m, state.metrics, metrics)
    return dataclasses.replace(new, metrics=window), window


# Compiled as a part of the step. A function of its own, because what is compiled is traced once.
@functools.partial(jax.jit, static_argnums=(0, 3))
def _update(trainer: Trainer, state: TrainState, batch: Batch, head_only: bool) -> tuple[TrainState, Metrics]:
    settings = trainer.settings
    rates = trainer.layer_rates
    if head_only:
        rates = {layer: r if layer in trainer.data.heads else dict.fromkeys(r, 0.0) for layer, r in rates.items()}
    # A frozen layer is frozen whole: its running statistics, too.
    trained = optimizer.select(state.params, rates)
    frozen = frozenset(state.params) - trained.keys()
    progress = state.step % trainer.round_steps / trainer.round_steps
    images = make_views(trainer, state, batch)

    def loss_fn(trained):
        params = optimizer.merge(state.params, trained)
        return losses.total(trainer, params, state, batch, images, progress, frozen)

    # Only for what is trained: XLA leaves out the backward pass below the lowest trained layer.
    (loss, (batch_stats, results)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    # To the optimizer, what is frozen for now is zero with a gradient of zero: its momentum stays zero.
    later = jax.tree.map(jnp.zeros_like, optimizer.select(state.params, trainer.layer_rates))
    updates, opt_state = optimizer.create(settings.optimizer).update(
        optimizer.merge(later, gradient), state.opt_state, optimizer.merge(later, trained)
    )
    rate = optimizer.learning_rate(settings.optimizer, progress)
    new_trained = {
        layer: {leaf: value - rate * rates[layer][leaf] * updates[layer][leaf] for leaf, value in leaves.items()}
        for layer, leaves in trained.items()
    }
    ema = optax.incremental_update(new_trained, optimizer.select(state.ema_params, rates), 1 - settings.ema_decay)
    new = dataclasses.replace(
        state,
        step=state.step + 1,
        params=optimizer.merge(state.params, new_trained),
        batch_stats=batch_stats,
        ema_params=optimizer.merge(state.ema_params, ema),
        opt_state=opt_state,
        methods={name: result.state for name, result in results.items()},
    )
    means = {
        'loss': _mean(loss),
        'gradient_norm': _mean(optax.tree.norm(gradient)),
        'parameter_norm': _mean(optax.tree.norm(new.params)),
        'learning_rate': _mean(rate),
    }
    return new, _metrics(means, results, batch, trainer.data.num_classes)


def _metrics(means: dict[str, jax.Array], results: dict[str, Loss], batch: Batch, num_classes: int) -> Metrics:
    """Returns the metrics of a step: those given, those of the methods, and how their pseudo-labels fare."""
    histograms = {}
    for name, result in results.items():
        means |= {f'{name}/{key}': _mean(value) for key, value in result.metrics.items()}
        if result.pseudo_labels is not None:
            # The only use of the unlabeled stream's true classes, after the gradient is taken.
            guess, mask = result.pseudo_labels
            labels = batch['unlabeled']['labels']
            means[f'{name}/mask_rate'] = _mean(mask)
            means[f'{name}/pseudo_label_accuracy'] = _mean(guess == labels, mask * (labels >= 0))
            means[f'{name}/pseudo_label_accuracy_all'] = _mean(guess == labels, labels >= 0)
            histograms[f'{name}/pseudo_label'] = mask @ jax.nn.one_hot(guess, num_classes)
    return Metrics(means, histograms)


def _mean(values: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    """Returns [sum, count] of a weighted mean. Some data sets have no class (-1) for some images: weight 0."""
    weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), jnp.shape(values))
    return jnp.stack([jnp.sum(values * weights), jnp.sum(weights)])
