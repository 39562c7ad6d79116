"""Networks behind one seam: explicit variables in, every named intermediate out. Only this package knows flax."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from errors import UserError, build, defaults, unknown
from models import pretrained
from models.efficientnet import EfficientNetLite0
from models.layers import DOMAIN_POLICIES, Batch, Mode
from models.lenet import DTN, LeNet
from models.mlp import MLP
from models.preprocess import Preprocessing
from models.pretrained import Weights
from models.resnet import BiT, ResNet
from models.wide_resnet import WideResNet

_BASIC = {'bottleneck': False}

# {name: (kind, its fields)}
MODELS = {
    'wide_resnet': (WideResNet, {}),
    'resnet18_small': (ResNet, {'blocks': (2, 2, 2, 2), **_BASIC, 'small_images': True}),
    'resnet18': (ResNet, {'blocks': (2, 2, 2, 2), **_BASIC}),
    'resnet34': (ResNet, {'blocks': (3, 4, 6, 3), **_BASIC}),
    'resnet50': (ResNet, {'blocks': (3, 4, 6, 3)}),
    'resnet101': (ResNet, {'blocks': (3, 4, 23, 3)}),
    'resnet152': (ResNet, {'blocks': (3, 8, 36, 3)}),
    'resnext50_32x4d': (ResNet, {'blocks': (3, 4, 6, 3), 'groups': 32, 'group_width': 4}),
    'wide_resnet50_2': (ResNet, {'blocks': (3, 4, 6, 3), 'group_width': 128}),
    'bit_r50x1': (BiT, {'blocks': (3, 4, 6, 3)}),
    'bit_r101x1': (BiT, {'blocks': (3, 4, 23, 3)}),
    'efficientnet_lite0': (EfficientNetLite0, {}),
    'lenet': (LeNet, {}),
    'dtn': (DTN, {}),
}

Variables = dict[str, Any]  # {'params': {layer: {leaf: array}}, 'batch_stats': the same}, all float32


@dataclasses.dataclass(frozen=True)
class Model:
    """A network without its variables.

    preprocess: maps pixels in [0, 1] to its input.
    weights: that it begins with, instead of random ones.
    mlps: {name: small network on top of it that a method runs itself}.
    """

    module: nn.Module
    preprocess: Preprocessing
    weights: Weights | None = None
    mlps: Mapping[str, MLP] = dataclasses.field(default_factory=dict)

    def init(self, key: jax.Array, image_shape: tuple[int, int, int]) -> Variables:
        """Returns the variables to begin with, for images of shape `[H, W, C]` before preprocessing.

        Raises UserError where pretrained weights do not fit.
        """
        images = jax.eval_shape(self.preprocess, jnp.zeros((1, *image_shape)))
        mode = Mode(train=False, batch_norm=self.module.batch_norm)
        init = jax.jit(lambda key: self.module.init(key, Batch(jnp.zeros(images.shape)), mode))
        variables = {'batch_stats': {}, **init(key)}
        for i, (name, mlp) in enumerate(self.mlps.items()):
            layers = mlp.init(jax.random.fold_in(key, i), name, *variables['params']['head']['kernel'].shape)
            variables['params'] = {**variables['params'], **layers}
        if self.weights is None:
            return variables
        return pretrained.fill(type(self.module).__name__, variables, self.weights)

    def apply(
        self,
        variables: Variables,
        images: Batch,
        train: bool,
        frozen: frozenset[str] = frozenset(),
        keys: Batch | None = None,
        domains: Batch | None = None,
    ) -> tuple[dict[str, Batch], Any]:
        """Runs the network on one joint batch of preprocessed images, float32 `[N, H, W, C]`, or features `[N, D]`.

        train, frozen, keys, domains: see `models.layers.Mode`; keys and domains are needed in training where `drops`
        and `has_domains` say so.
        Returns ({name of intermediate: Batch of outputs}, batch_stats).
        """
        mode = Mode(train, frozen, keys, self.module.frozen_statistics, self.module.batch_norm, domains)
        outputs, updated = self.module.apply(variables, images, mode, mutable=['batch_stats'])
        return outputs, {**variables['batch_stats'], **updated.get('batch_stats', {})}

    @property
    def drops(self) -> bool:
        """Whether it leaves out units or blocks at random in training."""
        return self.module.drops

    @property
    def has_domains(self) -> bool:
        """Whether batch norm treats source and target domain differently."""
        return self.module.batch_norm != 'joint'

    def depths(self, layers: Mapping[str, Any]) -> dict[str, int]:
        """Returns how deep each layer is: 0 for the stem, one more for each block, most for what is on the features."""
        order = [*self.module.order(), *['bottleneck'] * (self.module.bottleneck_width > 0), 'head']
        return {layer: next(i for i, prefix in enumerate(order) if re.match(prefix, layer)) for layer in layers}


def settings(name: str) -> dict[str, Any]:
    """Returns {setting: default} of a network: those of all networks and its own. Raises UserError for its name."""
    if name not in MODELS:
        raise unknown('model', name, MODELS)
    kind, fields = MODELS[name]
    common = {'pretrained': '', 'resolution': 0, 'crop': 0.0}
    return {**common, **defaults(kind, 'parent', 'name', 'num_classes', 'heads'), **fields}


def create(
    name: str,
    num_classes: int,
    heads: Mapping[str, tuple[int, ...]] | None = None,
    mlps: Mapping[str, MLP] | None = None,
    *,
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
    weights: Weights | None = None,
    resolution: int = 0,
    crop: float = 0.0,
    **settings,
) -> Model:
    """Returns the network called `name`. Raises UserError for a name or a setting that does not exist.

    heads: {name of an output beside 'features' and 'logits': widths of its layers on top of the features}.
    mlps: {name: small network on top of it that a method runs itself}.
    mean, std: of the pixels in [0, 1], where no weights bring theirs.
    resolution, crop: see `Preprocessing`; 0 for those of the weights or, without any, the images as they are.
    """
    if name not in MODELS:
        raise unknown('model', name, MODELS)
    kind, fields = MODELS[name]
    given = {'num_classes': num_classes, 'heads': dict(heads or {})}
    module = build(kind, f'setting of model {name}', {**fields, **settings}, given)
    if not 0 <= module.dropout < 1 or not 0 <= module.drop_path < 1:
        raise UserError('model.dropout and model.drop_path are probabilities, from 0 to less than 1.')
    if module.batch_norm not in DOMAIN_POLICIES:
        raise unknown('model.batch_norm', module.batch_norm, DOMAIN_POLICIES)
    if module.frozen_statistics and module.batch_norm != 'joint':
        raise UserError(f'model.frozen_statistics leaves nothing to model.batch_norm={module.batch_norm}: drop one.')
    preprocess = Preprocessing(mean, std)
    if weights is not None:
        preprocess = pretrained.PREPROCESSING.get(kind.__name__, preprocess)
        preprocess = dataclasses.replace(preprocess, **weights.preprocessing)
    chosen = {key: value for key, value in (('resolution', resolution), ('crop', crop)) if value}
    return Model(module, dataclasses.replace(preprocess, **chosen), weights, dict(mlps or {}))
