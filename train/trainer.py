"""The arguments of a training step: the trainer, which is constant, and the state, which every step changes."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

import methods
import models
from data import augment
from errors import UserError, build, unknown
from methods.base import IMAGES, JOINT, LABELED, NO_GRAD, POLICIES, SEPARATE, WEAK, DataSpec, Method, View
from models import mlp
from models.pretrained import Weights
from train import optimizer
from train.settings import Settings

# {stream: {'images': uint8 [n, H, W, C], 'labels': int32 [n], 'indices': int32 [n]}}
Batch = dict[str, dict[str, jax.Array]]


class Metrics(NamedTuple):
    """Sums over steps.

    Attributes:
        means: {name: [sum, count]}.
        histograms: {name: number of pseudo-labels of each class that were used, float32 `[C]`}.
    """

    means: dict[str, jax.Array]
    histograms: dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The complete state of a run after `step` steps, and the content of a checkpoint."""

    seed: jax.Array  # int32
    step: jax.Array  # int32, steps done
    params: Any
    batch_stats: Any
    ema_params: Any
    ema_batch_stats: Any  # nothing without `ema_statistics`
    opt_state: Any
    methods: dict[str, Any]  # own state of each method
    metrics: Metrics  # since the last logged step

    @property
    def averaged(self) -> tuple[Any, Any]:
        """Parameters and running statistics of the network that is evaluated."""
        return averaged(vars(self))


def averaged(state: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns parameters and running statistics of the network that is evaluated.

    Args:
        state: {field of TrainState: tree of arrays}.
    """
    return state['ema_params'], state.get('ema_batch_stats') or state['batch_stats']


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity, so that a step is traced once for each
class Trainer:
    """Network, methods and settings: what a step needs beside state and batch, constant during a run."""

    settings: Settings
    model: models.Model
    methods: Mapping[str, Method]
    augmentations: Mapping[str, Any]  # {'weak': data.augment.Weak, ...}
    data: DataSpec

    @classmethod
    def create(cls, settings: Settings, data: DataSpec, weights: Weights | None = None) -> 'Trainer':
        """Builds network, methods and augmentations.

        Args:
            settings: Settings of the run.
            data: Description of the data for methods.
            weights: Initial weights, which `model.pretrained` names.

        Raises:
            UserError: A name or key does not exist, or settings contradict each other.
        """
        weak, strong = settings.data.weak, settings.data.strong
        flips = {name: value for name, value in weak.items() if name.endswith('flip')}
        created = {name: methods.create(name, fields) for name, fields in settings.methods.items()}
        heads: dict[str, tuple[int, ...]] = {}
        mlps: dict[str, mlp.MLP] = {}
        for name, method in created.items():
            for head, widths in method.heads().items():
                if heads.setdefault(head, widths) != widths:
                    raise UserError(f'{name} needs a {head} of widths {widths}, another method one of {heads[head]}.')
            mlps |= {f'{name}_{own}': kind for own, kind in method.mlps().items()}
        model = models.create(
            num_classes=data.num_classes,
            heads=heads,
            mlps=mlps,
            mean=settings.data.mean,
            std=settings.data.std,
            weights=weights,
            **settings.model,
        )
        trainer = cls(
            settings=settings,
            model=model,
            methods=created,
            augmentations={
                'weak': build(augment.Weak, 'setting of data.weak', weak),
                'strong': build(augment.Strong, 'setting of data.strong', {**weak, **strong}),
                'rotated': build(augment.Rotated, 'setting of data.rotated', {**weak, **settings.data.rotated}),
                'distorted': build(
                    augment.Distorted, 'setting of data.distorted', {**flips, **settings.data.distorted}
                ),
            },
            data=dataclasses.replace(data, heads=frozenset(name for name, layer in model.layers.items() if layer.head)),
        )
        if settings.ema_decay == 0 and (taught := [name for name, method in created.items() if method.teacher]):
            raise UserError(
                f'{taught[0]} learns from the averaged network, which ema_decay=0 makes the network itself.'
            )
        trainer._check_cached_features()
        trainer._check_micro_batches()
        return trainer

    def _check_cached_features(self) -> None:
        if not self.settings.data.cache_features:
            return
        trained = optimizer.select(self.layer_rates, self.layer_rates)
        if deep := [layer for layer in trained if layer not in self.data.heads]:
            raise UserError(
                f'data.cache_features needs a frozen backbone, and {", ".join(deep[:3])}{", ..." * (len(deep) > 3)} '
                "would be trained: set optimizer.layer_rates to ('head: 1', '.*: 0')."
            )
        policies = self.views.items()
        if other := [str(view) for view, policy in policies if view.augmentation != 'weak' or policy == IMAGES]:
            raise UserError(f'data.cache_features leaves no image to augment or change: {", ".join(other)} cannot be.')
        if restarting := [name for name, method in self.methods.items() if method.restart]:
            raise UserError(f'data.cache_features: {restarting[0]} would go on with another network than they are of.')

    def _check_micro_batches(self) -> None:
        number = self.settings.micro_batches
        if number == 1:
            return
        for stream, size in self.batch_sizes.items():
            if size % number:
                raise UserError(f'micro_batches={number} does not divide the {size} {stream} images of a step.')
        if self.augmentations['rotated'].copies == 1 and any(view.augmentation == 'rotated' for view in self.views):
            raise UserError('micro_batches needs all rotations of an image together: set data.rotated.copies=4.')
        if self.apart and not self.settings.micro_batches_apart:
            raise UserError(
                f'With micro_batches={number}, {" and ".join(self.apart)} would look at one part of the batch at a '
                'time, which is another training. Set micro_batches_apart=True to accept that.'
            )

    @functools.cached_property
    def apart(self) -> list[str]:
        """Names of what sees a part of the batch only, and is not the same as on the whole batch."""
        if self.settings.micro_batches == 1:
            return []
        methods = [name for name, method in self.methods.items() if not method.separable]
        return ['batch norm'] * self.normalises_by_batch + methods

    @property
    def normalises_by_batch(self) -> bool:
        """Whether batch norm has statistics of the batch in training, from which running ones follow."""
        layers, rates = self.model.layers.items(), self.layer_rates
        trained = any(layer.norm and any(rates.get(name, {}).values()) for name, layer in layers)
        return trained and not self.model.frozen_statistics

    @functools.cached_property
    def layer_rates(self) -> dict[str, dict[str, float]]:
        """{layer: {parameter: factor of the learning rate}}; 0 where it is frozen."""
        model = dataclasses.replace(self.model, weights=None)
        shapes = jax.eval_shape(functools.partial(model.init, image_shape=self.data.image_shape), jax.random.key(0))
        depths = {name: layer.depth for name, layer in model.layers.items()}
        return optimizer.layer_rates(self.settings.optimizer, shapes['params'], depths)

    @functools.cached_property
    def views(self) -> dict[View, str]:
        """{view: batch-norm policy} over all methods; a view has a gradient if any method needs one."""
        views: dict[View, str] = {}
        for name, method in self.methods.items():
            for view, policy in method.views().items():
                if policy not in POLICIES:
                    raise unknown('batch-norm policy', policy, POLICIES)
                if {policy, views.get(view)} == {JOINT, SEPARATE}:
                    raise UserError(
                        f"{name} and another method want {view} 'joint' and 'separate': choose one for both."
                    )
                views[view] = min(policy, views.get(view, policy), key=POLICIES.index)
        if self.model.has_domains:  # both domains enter the statistics, whether a loss reads them or not
            for weak in (LABELED, WEAK):
                if not any(policy == JOINT and view.stream == weak.stream for view, policy in views.items()):
                    views[weak] = JOINT
        for policy in (NO_GRAD, SEPARATE):
            if policy in views.values() and JOINT not in views.values():
                raise UserError(f"A view with the batch-norm policy '{policy}' needs one with 'joint' beside it.")
        return views

    @property
    def round_steps(self) -> int:
        """Number of steps in a round; all steps if no method trains in rounds."""
        return -(-self.settings.steps // max(method.rounds for method in self.methods.values()))

    @property
    def batch_sizes(self) -> dict[str, int]:
        """{stream that the methods read: number of its images in a step}."""
        return {stream: self.data.batch_sizes[stream] for stream in sorted({view.stream for view in self.views})}

    @property
    def together(self) -> list[int]:
        """Number of images of each of these streams that pass the network together."""
        return [size // self.settings.micro_batches for size in self.batch_sizes.values()]


def stream_key(seed: int | jax.Array, stream: str, step: int | jax.Array) -> jax.Array:
    """Returns the random key of a named stream at a step, the only source of randomness of a run."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)
