"""The training step shared by all methods: a pure function (state, batch) -> (state, metrics)."""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import methods
import models
from data import augment
from errors import UserError, build, unknown
from methods.base import IMAGES, JOINT, NO_GRAD, POLICIES, DataSpec, Inputs, Method
from models import mlp
from models.pretrained import Weights, is_head
from train import optimizer
from train.settings import Settings

# {stream: {'images': uint8 [n, H, W, C], 'labels': int32 [n], 'indices': int32 [n]}}
Batch = dict[str, dict[str, jax.Array]]


class Metrics(NamedTuple):
    """Sums over steps. means: {name: [sum, count]}; histograms: {name: pseudo-labels used of each class, [C]}."""

    means: dict[str, jax.Array]
    histograms: dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run is after `step` steps. A checkpoint holds this and nothing else."""

    seed: jax.Array  # int32
    step: jax.Array  # int32, steps done
    params: Any
    batch_stats: Any
    ema_params: Any
    opt_state: Any
    methods: dict[str, Any]  # own state of each method
    metrics: Metrics  # since the last logged step


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What a step needs beside state and batch; none of it changes during a run."""

    settings: Settings
    model: models.Model
    methods: Mapping[str, Method]
    augmentations: Mapping[str, Any]  # {'weak': data.augment.Weak, ...}
    data: DataSpec

    @classmethod
    def create(cls, settings: Settings, data: DataSpec, weights: Weights | None = None) -> 'Trainer':
        """Builds network, methods and augmentations. Raises UserError for a name or key that does not exist.

        weights: what `model.pretrained` names.
        """
        weak, strong = settings.data.weak, settings.data.strong
        created = {name: methods.create(name, fields) for name, fields in settings.methods.items()}
        heads: dict[str, tuple[int, ...]] = {}
        mlps: dict[str, mlp.MLP] = {}
        for name, method in created.items():
            for head, widths in method.heads().items():
                if heads.setdefault(head, widths) != widths:
                    raise UserError(f'{name} needs a {head} of widths {widths}, another method one of {heads[head]}.')
            mlps |= {f'{name}_{own}': kind for own, kind in method.mlps().items()}
        trainer = cls(
            settings=settings,
            model=models.create(
                num_classes=data.num_classes,
                heads=heads,
                mlps=mlps,
                mean=settings.data.mean,
                std=settings.data.std,
                weights=weights,
                **{key: value for key, value in settings.model.items() if key != 'pretrained'},
            ),
            methods=created,
            augmentations={
                'weak': build(augment.Weak, 'setting of data.weak', weak),
                'strong': build(augment.Strong, 'setting of data.strong', {**weak, **strong}),
                'rotated': build(augment.Rotated, 'setting of data.rotated', {**weak, **settings.data.rotated}),
            },
            data=data,
        )
        trainer._check_cached_features()
        return trainer

    def _check_cached_features(self) -> None:
        if not self.settings.data.cache_features:
            return
        trained = optimizer.select(self.layer_rates, self.layer_rates)
        if deep := [layer for layer in trained if not is_head(layer)]:
            raise UserError(
                f'data.cache_features needs a frozen backbone, and {", ".join(deep[:3])}{", ..." * (len(deep) > 3)} '
                "would be trained: set optimizer.layer_rates to ('head: 1', '.*: 0')."
            )
        if other := [view for view, policy in self.views.items() if not view.endswith('.weak') or policy == IMAGES]:
            raise UserError(f'data.cache_features leaves no image to augment or change: {", ".join(other)} cannot be.')
        if restarting := [name for name, method in self.methods.items() if method.restart]:
            raise UserError(f'data.cache_features: {restarting[0]} would go on with another network than they are of.')

    @functools.cached_property
    def layer_rates(self) -> dict[str, dict[str, float]]:
        """{layer: {parameter: factor of the learning rate}}; 0 where it is frozen."""
        model = dataclasses.replace(self.model, weights=None)
        shapes = jax.eval_shape(functools.partial(model.init, image_shape=self.data.image_shape), jax.random.key(0))
        return optimizer.layer_rates(self.settings.optimizer, shapes['params'], model.depths(shapes['params']))

    @functools.cached_property
    def views(self) -> dict[str, str]:
        """{view: batch-norm policy} over all methods; a view that one method needs a gradient of has one."""
        views: dict[str, str] = {}
        for method in self.methods.values():
            for view, policy in method.views().items():
                if policy not in POLICIES:
                    raise unknown('batch-norm policy', policy, POLICIES)
                views[view] = min(policy, views.get(view, policy), key=POLICIES.index)
        if self.model.has_domains:  # statistics of both domains, whether a loss looks at them or not
            for stream in ('labeled', 'unlabeled'):
                if not any(policy == JOINT and view.startswith(stream) for view, policy in views.items()):
                    views[f'{stream}.weak'] = JOINT
        if NO_GRAD in views.values() and JOINT not in views.values():
            raise UserError("A view with the batch-norm policy 'no_grad' needs one with 'joint' beside it.")
        return views

    @property
    def round_steps(self) -> int:
        """Steps of a round; all of them where no method trains in rounds."""
        return -(-self.settings.steps // max(method.rounds for method in self.methods.values()))

    @property
    def batch_sizes(self) -> dict[str, int]:
        """{stream that the methods read: images of it in a step}."""
        sizes = self.data.batch_sizes
        return {stream: sizes[stream] for stream in sorted({view.split('.')[0] for view in self.views})}


def init(trainer: Trainer, batch: Batch) -> TrainState:
    """Returns the state before the first step, on batches shaped like `batch`."""
    settings = trainer.settings
    variables = jax.tree.map(jnp.asarray, initial(trainer, settings.seed, 0))
    data = dataclasses.replace(trainer.data, variables=variables)
    # Copies, because a step takes over (donates) every array of its state, which it can do once only.
    own = {name: jax.tree.map(jnp.array, m.init_state(data)) for name, m in trainer.methods.items()}
    state = TrainState(
        seed=jnp.int32(settings.seed),
        step=jnp.int32(0),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        ema_params=jax.tree.map(jnp.copy, variables['params']),
        opt_state=optimizer.create(settings.optimizer).init(optimizer.select(variables['params'], trainer.layer_rates)),
        methods=own,
        metrics=Metrics({}, {}),
    )
    metrics = jax.eval_shape(functools.partial(_update, trainer), state, batch)[1]
    return dataclasses.replace(state, metrics=jax.tree.map(lambda m: jnp.zeros(m.shape), metrics))


def initial(trainer: Trainer, seed: int | jax.Array, number: int | jax.Array) -> models.Variables:
    """Returns the variables that a round begins with."""
    return trainer.model.init(stream_key(seed, 'init', number), trainer.data.image_shape)


def next_round(trainer: Trainer, state: TrainState, logits: jax.Array) -> TrainState:
    """Returns the state with which a round after the first begins.

    logits: the EMA network's for every image of the unlabeled stream, `[N, C]`.
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


def stream_key(seed: int | jax.Array, stream: str, step: int | jax.Array) -> jax.Array:
    """The random key of a named stream at a step. All randomness of a run comes from here."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)


def step(trainer: Trainer, state: TrainState, batch: Batch, head_only: bool = False) -> tuple[TrainState, Metrics]:
    """Makes one step. Also returns the metrics of the steps since the last logged one.

    head_only: leave everything below the features as it is.
    """
    new, metrics = _update(trainer, state, batch, head_only)
    first_of_window = state.step % trainer.settings.log_steps == 0
    window = jax.tree.map(lambda old, m: jnp.where(first_of_window, 0, old) + m, state.metrics, metrics)
    return dataclasses.replace(new, metrics=window), window


def _update(trainer: Trainer, state: TrainState, batch: Batch, head_only: bool = False) -> tuple[TrainState, Metrics]:
    settings = trainer.settings
    rates = trainer.layer_rates
    if head_only:
        rates = {layer: r if is_head(layer) else dict.fromkeys(r, 0.0) for layer, r in rates.items()}
    # A frozen layer is frozen whole: its running statistics, too.
    trained = optimizer.select(state.params, rates)
    frozen = frozenset(state.params) - trained.keys()
    progress = state.step % trainer.round_steps / trainer.round_steps
    images = make_views(trainer, state, batch)
    calls = itertools.count()  # of `Inputs.forward`, while it is traced: each drops other units

    def loss_fn(trained):
        params = optimizer.merge(state.params, trained)
        outputs, batch_stats = forward(trainer, params, state, images, frozen)
        losses = {}
        for name, method in trainer.methods.items():
            inputs = Inputs(
                labels=batch.get('labeled', {}).get('labels'),
                indices={stream: part['indices'] for stream, part in batch.items()},
                images=images,
                outputs=outputs,
                progress=progress,
                key=stream_key(state.seed, f'methods.{name}', state.step),
                params=params,
                ema_params=state.ema_params,
                forward=functools.partial(_forward_alone, trainer, state, batch_stats, frozen, calls),
                mlp=functools.partial(_mlp, name),
            )
            losses[name] = method.loss(inputs, state.methods[name])
            if losses[name].batch_stats is not None:
                batch_stats = losses[name].batch_stats
        return sum(loss.loss for loss in losses.values()), (batch_stats, losses)

    # Only for what is trained: XLA leaves out the backward pass below the lowest trained layer.
    (loss, (batch_stats, losses)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    # To the optimizer, what is frozen for now is zero with a gradient of zero: its momentum stays zero.
    later = jax.tree.map(jnp.zeros_like, optimizer.select(state.params, trainer.layer_rates))
    updates, opt_state = optimizer.create(settings.optimizer).update(
        optimizer.merge(later, gradient), state.opt_state, optimizer.merge(later, trained)
    )
    rate = optimizer.learning_rate(settings.optimizer, progress)
    new = {
        layer: {leaf: value - rate * rates[layer][leaf] * updates[layer][leaf] for leaf, value in leaves.items()}
        for layer, leaves in trained.items()
    }
    ema = optax.incremental_update(new, optimizer.select(state.ema_params, rates), 1 - settings.ema_decay)
    params, ema_params = optimizer.merge(state.params, new), optimizer.merge(state.ema_params, ema)

    histograms = {}
    metrics = {
        'loss': _mean(loss),
        'gradient_norm': _mean(optax.tree.norm(gradient)),
        'parameter_norm': _mean(optax.tree.norm(params)),
        'learning_rate': _mean(rate),
    }
    for name, result in losses.items():
        metrics |= {f'{name}/{key}': _mean(value) for key, value in result.metrics.items()}
        if result.pseudo_labels is not None:
            # The only use of the unlabeled stream's true classes, after the gradient is taken.
            guess, mask = result.pseudo_labels
            labels = batch['unlabeled']['labels']
            metrics[f'{name}/mask_rate'] = _mean(mask)
            metrics[f'{name}/pseudo_label_accuracy'] = _mean(guess == labels, mask * (labels >= 0))
            metrics[f'{name}/pseudo_label_accuracy_all'] = _mean(guess == labels, labels >= 0)
            histograms[f'{name}/pseudo_label'] = mask @ jax.nn.one_hot(guess, trainer.data.num_classes)
    new = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        ema_params=ema_params,
        opt_state=opt_state,
        methods={name: result.state for name, result in losses.items()},
    )
    return new, Metrics(metrics, histograms)


def _mean(values: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    """Returns [sum, count] of a weighted mean. Some data sets have no class (-1) for some images: weight 0."""
    weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), jnp.shape(values))
    return jnp.stack([jnp.sum(values * weights), jnp.sum(weights)])


def make_views(trainer: Trainer, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    """Augments and preprocesses every view that the methods ask for. Returns {view: float32 `[n, H, W, C]`}."""
    if trainer.settings.data.cache_features:
        return {view: batch[view.split('.')[0]]['images'].astype(jnp.float32) for view in trainer.views}
    views = {}
    for name, augmentation in trainer.augmentations.items():
        of = [view for view in trainer.views if view.split('.')[1].rstrip('0123456789') == name]
        if not of:
            continue
        # All views of an augmentation at once: it is compiled once, and one pass over more images is faster.
        images = [batch[view.split('.')[0]]['images'] for view in of]
        keys = [stream_key(state.seed, view, state.step) for view in of]
        draws = [augmentation.draw(key, x.shape) for key, x in zip(keys, images, strict=True)]
        draws = jax.tree.map(lambda *x: _concatenate(x), *draws)
        augmented = on_each_device(augmentation.apply)(draws, _concatenate(images))
        copies = len(augmented) // sum(map(len, images))
        parts = _split(trainer.model.preprocess(augmented), [copies * len(x) for x in images])
        views |= dict(zip(of, parts, strict=True))
    return {view: views[view] for view in trainer.views}


def forward(
    trainer: Trainer, params, state: TrainState, images: dict[str, jax.Array], frozen: frozenset[str] = frozenset()
) -> tuple[dict, Any]:
    """Runs the network once over all 'joint' and 'no_grad' views.

    Returns ({view: {output: [n, ...]}}, batch_stats).
    """
    parts = [[view for view in images if trainer.views[view] == policy] for policy in (JOINT, NO_GRAD)]
    if not any(parts):
        return {}, state.batch_stats

    def join(arrays: dict[str, jax.Array]) -> models.Batch:
        return models.Batch(*(_concatenate([arrays[view] for view in part]) if part else None for part in parts))

    keys = None
    if trainer.model.drops:
        # A key for each image, so that what is dropped does not depend on how images are put together.
        each = {v: jax.random.split(stream_key(state.seed, f'drop.{v}', state.step), len(x)) for v, x in images.items()}
        keys = join(each)
    domains = None
    if trainer.model.has_domains:
        domains = join({v: jnp.full(len(x), v.startswith('unlabeled'), jnp.int32) for v, x in images.items()})
    variables = {'params': params, 'batch_stats': state.batch_stats}
    outputs, batch_stats = trainer.model.apply(variables, join(images), True, frozen, keys, domains)
    by_view: dict[str, dict[str, jax.Array]] = {view: {} for part in parts for view in part}
    for name, output in outputs.items():
        for part, values in zip(parts, output, strict=True):
            for view, value in zip(part, _split(values, [len(images[v]) for v in part]), strict=True):
                by_view[view][name] = value
    return by_view, batch_stats


def _forward_alone(
    trainer: Trainer,
    state: TrainState,
    running: Any,
    frozen: frozenset[str],
    calls: Iterator[int],
    params: Any,
    images: jax.Array,
    batch_stats: Any = None,
) -> tuple[dict[str, jax.Array], Any]:
    """`Inputs.forward`: one batch by itself, with its own statistics or in evaluation with those given."""
    train = batch_stats is None
    keys = None
    if trainer.model.drops and train:
        key = stream_key(state.seed, f'drop.alone{next(calls)}', state.step)
        keys = models.Batch(jax.random.split(key, len(images)))
    variables = {'params': params, 'batch_stats': running if train else batch_stats}
    outputs, batch_stats = trainer.model.apply(variables, models.Batch(images), train, frozen, keys)
    return {name: output.grad for name, output in outputs.items()}, batch_stats


def _mlp(method: str, params: Any, name: str, x: jax.Array) -> jax.Array:
    """`Inputs.mlp`."""
    return mlp.apply(params, f'{method}_{name}', x)


def on_each_device(f: Callable) -> Callable:
    """Applies a per-example function to each device's own examples, without communication."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return f
    batch = jax.P(*mesh.axis_names)
    return jax.shard_map(f, in_specs=batch, out_specs=batch)


def _concatenate(arrays: Sequence[jax.Array]) -> jax.Array:
    # Device by device: the order of a batch means nothing, and no image moves between devices.
    return on_each_device(lambda *local: jnp.concatenate(local))(*arrays)


def _split(array: jax.Array, sizes: list[int]) -> list[jax.Array]:
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    ends = [sum(sizes[: i + 1]) // devices for i in range(len(sizes) - 1)]
    return on_each_device(lambda local: tuple(jnp.split(local, ends)))(array) if sizes else []
