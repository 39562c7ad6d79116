"""Networks as functions of explicit variables that return every named output. Only this package knows flax."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from errors import UserError, build, check_numbers, unknown
from models import precision, pretrained
from models.efficientnet import EfficientNetLite0
from models.lenet import DTN, LeNet
from models.mlp import MLP
from models.network import BOTTLENECK, HEAD, Network
from models.preprocess import Preprocessing
from models.pretrained import Weights
from models.resnet import BiT, ResNet
from models.wide_resnet import WideResNet


@dataclasses.dataclass(frozen=True)
class Common:
    """The settings of every network, beside those of its backbone."""

    pretrained: str = ''  # initial weights: a published name, a file or a run's folder; '' for random ones
    resolution: int = 0  # side in pixels that images are resized to; 0: that of the weights, or no resizing
    crop: float = 0.0  # part of the shorter side that is kept; 0: that of the weights, or all
    frozen_statistics: bool = False  # batch norm uses its running statistics in training, too, and does not update them
    precision: str = 'float32'  # of convolutions and matrix products, one of precision.PRECISIONS
    batch_norm: str = 'joint'  # batch-norm statistics of two domains, one of DOMAIN_POLICIES
    bottleneck_width: int = 0  # of a layer between backbone and classifier; 0 for none
    bottleneck_norm: bool = True  # batch norm in it
    # Dropout rate of the features for the classifier; with a bottleneck, for every loss that reads the features.
    dropout: float = 0.0

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise UserError('model.dropout is a probability, from 0 to less than 1.')
        if self.precision not in precision.PRECISIONS:
            raise unknown('model.precision', self.precision, precision.PRECISIONS)
        if self.batch_norm not in DOMAIN_POLICIES:
            raise unknown('model.batch_norm', self.batch_norm, DOMAIN_POLICIES)
        if self.frozen_statistics and self.batch_norm != 'joint':
            raise UserError(f'model.frozen_statistics leaves nothing to model.batch_norm={self.batch_norm}: drop one.')
        if self.frozen_statistics and self.bottleneck_width and self.bottleneck_norm:
            raise UserError(
                'model.bottleneck_norm needs statistics that no weights have: drop model.frozen_statistics.'
            )


# Batch-norm statistics of two domains: the shares of (source, target) in the running statistics for evaluation.
DOMAIN_POLICIES = {
    'joint': None,  # one batch: statistics of all images together (TLlib)
    'separate': (0.5, 0.5),  # each domain by its own statistics; evaluation by their average (Dassl, DeepDA)
    'adabn': (0.0, 1.0),  # each by its own, evaluation by the target's (Li et al. 2016, arXiv:1603.04779)
    # Each domain also has its own scale and bias (Chang et al. 2019, arXiv:1906.03950). Images that a method passes
    # itself (`Inputs.forward`), and those in frozen layers, use the target's.
    'domain_specific': (0.0, 1.0),
}

_BASIC = {'bottleneck': False}

# {name: (backbone, settings that differ from the defaults of its fields and of Common)}
MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    'wide_resnet': (WideResNet, {}),
    'resnet18_small': (ResNet, {'blocks': (2, 2, 2, 2), **_BASIC, 'small_images': True}),
    'resnet18': (ResNet, {'blocks': (2, 2, 2, 2), **_BASIC, 'pretrained': 'torchvision/resnet18'}),
    'resnet34': (ResNet, {**_BASIC, 'pretrained': 'torchvision/resnet34'}),
    'resnet50': (ResNet, {'pretrained': 'torchvision/resnet50'}),
    'resnet101': (ResNet, {'blocks': (3, 4, 23, 3), 'pretrained': 'torchvision/resnet101'}),
    'resnet152': (ResNet, {'blocks': (3, 8, 36, 3), 'pretrained': 'torchvision/resnet152'}),
    'resnext50_32x4d': (ResNet, {'groups': 32, 'group_width': 4, 'pretrained': 'torchvision/resnext50_32x4d'}),
    'wide_resnet50_2': (ResNet, {'group_width': 128, 'pretrained': 'torchvision/wide_resnet50_2'}),
    'bit_r50x1': (BiT, {'pretrained': 'timm/resnetv2_50x1_bit.goog_in21k'}),
    'bit_r101x1': (BiT, {'blocks': (3, 4, 23, 3), 'pretrained': 'timm/resnetv2_101x1_bit.goog_in21k'}),
    'efficientnet_lite0': (EfficientNetLite0, {'dropout': 0.2, 'pretrained': 'efficientnet_lite0'}),
    'lenet': (LeNet, {}),
    'dtn': (DTN, {}),
}

Variables = dict[str, Any]  # {'params': {layer: {leaf: array}}, 'batch_stats': the same}, all float32


class Batch(NamedTuple):
    """The arguments of a forward pass in training, see `Model.apply`."""

    images: jax.Array
    keys: jax.Array | None = None
    domains: jax.Array | None = None


class Layer(NamedTuple):
    """What the engine knows of a layer.

    Attributes:
        head: Whether it is on top of the features.
        depth: Number of its block: 0 for the stem, one more for each block, largest for the heads.
        norm: Whether it has running statistics.
        drops: Whether it drops units at random in training.
    """

    head: bool
    depth: int
    norm: bool = False
    drops: bool = False


@dataclasses.dataclass(frozen=True)
class Model:
    """A network without its variables.

    Attributes:
        network: The Flax module, with its heads.
        preprocess: Maps pixels in [0, 1] to its input.
        weights: Initial weights; None for random ones.
        mlps: {name: small network on top of it that a method runs itself}.
        frozen_statistics: See `Common`.
        batch_norm: See `Common`.
        precision: See `Common`.
    """

    network: Network
    preprocess: Preprocessing
    weights: Weights | None = None
    mlps: Mapping[str, MLP] = dataclasses.field(default_factory=dict)
    frozen_statistics: bool = False
    batch_norm: str = 'joint'
    precision: str = 'float32'

    def init(self, key: jax.Array, image_shape: tuple[int, int, int]) -> Variables:
        """Returns the initial variables, for images of shape `[H, W, C]` before preprocessing.

        Raises:
            UserError: Pretrained weights do not fit.
        """
        shape = jax.eval_shape(self.preprocess, jnp.zeros((1, *image_shape))).shape
        random = functools.partial(self._random, shape=shape)
        # On a CPU, XLA's optimisation takes seconds, and this runs once. Within a trace options are not allowed.
        alone = jax.default_backend() == 'cpu' and not isinstance(key, jax.core.Tracer)
        options = {'xla_backend_optimization_level': 0} if alone else None
        jit = functools.partial(jax.jit, compiler_options=options)
        if self.weights is None:
            return jit(random)(key)
        # Only the layers on top of the backbone are random; the others come from the weights.
        above = {name for name, layer in self.layers.items() if layer.head} | {*BOTTLENECK}

        def on_top(key):
            return {c: {n: layers[n] for n in layers if n in above} for c, layers in random(key).items()}

        drawn, shapes = jit(on_top)(key), jax.eval_shape(random, key)
        variables = {collection: {**layers, **drawn[collection]} for collection, layers in shapes.items()}
        return pretrained.fill(type(self.network.backbone).__name__, variables, self.weights, above)

    def _random(self, key: jax.Array, shape: tuple[int, ...]) -> Variables:
        tree = self.network.init(key, jnp.zeros(shape), train=False)
        variables: Variables = {'batch_stats': {}} | {
            collection: _by_layer(layers) for collection, layers in tree.items()
        }
        if self.batch_norm == 'domain_specific':  # the target's scale and bias begin as the source's
            for layer in variables['batch_stats']:
                leaves = variables['params'][layer]
                leaves |= {f'{name}_target': leaves[name] for name in ('scale', 'bias')}
        for i, (name, mlp) in enumerate(self.mlps.items()):
            widths = variables['params'][HEAD]['kernel'].shape
            variables['params'] |= mlp.init(jax.random.fold_in(key, i), name, *widths)
        return variables

    def apply(
        self,
        variables: Variables,
        images: jax.Array,
        train: bool = False,
        *,
        frozen: frozenset[str] = frozenset(),
        keys: jax.Array | None = None,
        domains: jax.Array | None = None,
    ) -> tuple[dict[str, jax.Array], Any]:
        """Runs the network on one batch.

        Args:
            variables: Its variables.
            images: Preprocessed images, float32 `[N, H, W, C]`, or features `[N, D]`.
            train: Batch norm takes its statistics from the batch and updates the running ones; units are dropped.
            frozen: Layers that run as in evaluation, in training, too.
            keys: In training, a random key for each image, for dropout; None for no dropout.
            domains: In training if `has_domains`, 0 for images of the source and 1 for those of the target, int32
                `[N]`; None if all images are of one domain.

        Returns:
            {name of an output: its values, `[N, ...]`}, and the new batch_stats.
        """
        outputs, batch_stats, _ = self._run(variables, Batch(images, keys, domains), train, frozen)
        return outputs, batch_stats

    def apply_beside(
        self, variables: Variables, batch: Batch, beside: Batch, frozen: frozenset[str] = frozenset()
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Any]:
        """Runs the network in training on a batch, and on further images without a backward pass.

        No gradient flows through the further images, so they need no backward pass, the larger part of the work. Batch
        norm normalises them with the moments of the batch. The running statistics are updated with both.

        Args:
            variables: As for `apply`.
            batch: The batch.
            beside: The further images.
            frozen: As for `apply`.

        Returns:
            The outputs of the batch, those of the further images, and the new batch_stats.
        """
        outputs, _, moments = self._run(variables, batch, True, frozen)
        variables, beside, moments = jax.lax.stop_gradient((variables, beside, moments))
        outputs_beside, batch_stats, _ = self._run(variables, beside, True, frozen, moments)
        return outputs, outputs_beside, batch_stats

    def _run(
        self, variables: Variables, batch: Batch, train: bool, frozen: frozenset[str], moments: Variables | None = None
    ) -> tuple[dict[str, jax.Array], Any, Variables]:
        """Runs the network on one batch.

        Args:
            variables: As for `apply`.
            batch: The batch.
            train: As for `apply`.
            frozen: As for `apply`.
            moments: {layer: moments} to normalise with; None for those of the batch.

        Returns:
            Outputs, batch_stats, and the moments of the batch, {layer: moments}.
        """
        images, keys, domains = batch
        collections = {name: _nested(layers) for name, layers in variables.items()}
        if not train:
            with precision.used(self.precision):
                outputs: Any = self.network.apply(collections, images, False)
            return outputs, variables['batch_stats'], {}
        trained = {layer.depth for name, layer in self.layers.items() if name not in frozen and not layer.drops}
        given: dict[str, dict] = {}
        for name, layer in self.layers.items():
            if layer.norm and (self.frozen_statistics or name in frozen):
                given[name] = variables['batch_stats'][name]
            elif layer.norm:
                given[name] = dict((moments or {}).get(name, {}))
                if domains is not None:
                    given[name] |= {'domains': domains, 'shares': jnp.asarray(DOMAIN_POLICIES[self.batch_norm])}
            elif layer.drops and keys is not None and layer.depth in trained:
                given[name] = {'keys': keys}
        collections['given'] = _nested(given)
        rngs = None if keys is None else {'dropout': keys[0]}  # for Flax's own layers
        mutable = ['batch_stats', 'moments']
        with precision.used(self.precision):
            outputs, updated = self.network.apply(collections, images, True, rngs=rngs, mutable=mutable)
        batch_stats = variables['batch_stats'] | _by_layer(updated.get('batch_stats', {}))
        return outputs, batch_stats, _by_layer(updated.get('moments', {}))

    @property
    def has_domains(self) -> bool:
        """Whether batch norm treats source and target domain differently."""
        return self.batch_norm != 'joint'

    @functools.cached_property
    def layers(self) -> dict[str, Layer]:
        """{name: layer} of all layers, including those without parameters that drop units."""
        created: list[str] = []

        def init():
            side = self.preprocess.resolution or 64
            tree = self.network.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=True)
            layers = {collection: list(_by_layer(part)) for collection, part in tree.items()}
            created.extend(layers['params'])  # in the order of the forward pass, while traces return sorted trees
            return tree

        tree = jax.eval_shape(init)
        norms, drops = (_by_layer(tree.get(collection, {})) for collection in ('batch_stats', 'drops'))
        heads = self.network.head_names()
        above = {*BOTTLENECK, *heads}
        depths = _depths(self.network.backbone, *([n for n in names if n not in above] for names in (created, drops)))
        top = max(depths.values()) + 1
        depths |= dict.fromkeys(BOTTLENECK, top)
        top += self.network.bottleneck_width > 0
        layers = {
            name: Layer(name in heads, depths.get(name, top), name in norms, name in drops)
            for name in (*created, *drops)
        }
        for name, mlp in self.mlps.items():
            own = jax.eval_shape(functools.partial(mlp.init, name=name, features=1, num_classes=1), jax.random.key(0))
            layers |= dict.fromkeys(own, Layer(True, top))
        return layers


def _depths(backbone: nn.Module, layers: list[str], drops: list[str]) -> dict[str, int]:
    """Returns {layer of a backbone: number of its block}.

    Without `order()` each layer is a block, and those without parameters that drop units are in the last one.

    Raises:
        UserError: `order()` leaves out a layer.
    """
    if not hasattr(backbone, 'order'):
        return {name: i for i, name in enumerate(layers)} | dict.fromkeys(drops, len(layers) - 1)
    depths = {}
    for name in (*layers, *drops):
        numbers = [i for i, prefixes in enumerate(backbone.order()) if name.startswith(tuple(prefixes))]
        if not numbers:
            raise UserError(f'{type(backbone).__name__}.order() leaves out the layer {name}: add it to a block.')
        depths[name] = numbers[0]
    return depths


def _by_layer(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns {layer: {leaf: array}} of nested variables; a layer within another is 'outer/inner'."""
    layers: dict[str, dict[str, Any]] = {}
    for (*path, leaf), array in traverse_util.flatten_dict(tree).items():
        layers.setdefault('/'.join(path), {})[leaf] = array
    return layers


def _nested(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the nested variables of {layer: {leaf: array}}."""
    return traverse_util.unflatten_dict(
        {(*layer.split('/'), leaf): array for layer, leaves in layers.items() for leaf, array in leaves.items()}
    )


def settings(name: str) -> dict[str, Any]:
    """Returns every setting of the network called `name`, with its default.

    Raises:
        UserError: There is no such network.
    """
    kind, differing = _find(name)
    return {field.name: field.default for field in _fields(kind)} | differing


def _find(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    if name not in MODELS:
        raise unknown('model', name, MODELS)
    return MODELS[name]


def _fields(kind: type[nn.Module]) -> list[dataclasses.Field]:
    own = [field for field in dataclasses.fields(kind) if field.name not in ('parent', 'name')]
    return [*dataclasses.fields(Common), *own]


def create(
    name: str,
    num_classes: int,
    heads: Mapping[str, tuple[int, ...]] | None = None,
    mlps: Mapping[str, MLP] | None = None,
    *,
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
    weights: Weights | None = None,
    **chosen,
) -> Model:
    """Returns the network called `name`.

    Args:
        name: One of MODELS.
        num_classes: Of the classifier.
        heads: As in `Network`.
        mlps: {name: small network on top of it that a method runs itself}.
        mean: Mean of the pixels in [0, 1] of each channel, unless the weights come with theirs.
        std: Their standard deviation, likewise.
        weights: Initial weights, which the setting 'pretrained' names.
        **chosen: Settings of `Common` and of the backbone that differ from the defaults.

    Raises:
        UserError: There is no such network or setting, or a value is impossible.
    """
    kind, differing = _find(name)
    for key in chosen:
        if key not in (valid := [field.name for field in _fields(kind)]):
            raise unknown(f'setting of model {name}', key, valid)
    values, own = differing | chosen, {field.name for field in dataclasses.fields(Common)}
    common = build(Common, f'setting of model {name}', {key: value for key, value in values.items() if key in own})
    fields = {key: value for key, value in values.items() if key not in own}
    check_numbers('model', values, settings(name))
    backbone = build(kind, f'setting of model {name}', fields)
    if not 0 <= getattr(backbone, 'drop_path', 0) < 1:
        raise UserError('model.drop_path is a probability, from 0 to less than 1.')
    preprocess = Preprocessing(mean, std)
    if weights is not None:
        preprocess = pretrained.PREPROCESSING.get(kind.__name__, preprocess)
        preprocess = dataclasses.replace(preprocess, **weights.preprocessing)
    sizes = {key: value for key in ('resolution', 'crop') if (value := getattr(common, key))}
    return Model(
        Network(
            backbone,
            num_classes,
            dict(heads or {}),
            common.dropout,
            common.bottleneck_width,
            common.bottleneck_norm,
        ),
        dataclasses.replace(preprocess, **sizes),
        weights,
        dict(mlps or {}),
        common.frozen_statistics,
        common.batch_norm,
        common.precision,
    )
