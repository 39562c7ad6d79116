"""Networks behind one seam: explicit variables in, every named intermediate out. Only this package knows flax."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from errors import build, unknown
from models.layers import Batch
from models.wide_resnet import WideResNet

MODELS = {'wide_resnet': WideResNet}

Variables = dict[str, Any]  # {'params': tree, 'batch_stats': tree}, both of float32 arrays


@dataclasses.dataclass(frozen=True)
class Model:
    """A network without its variables."""

    module: nn.Module

    def init(self, key: jax.Array, image_shape: tuple[int, int, int]) -> Variables:
        """Draws variables for images of shape `[H, W, C]`."""
        init = jax.jit(self.module.init, static_argnames='train')
        return init(key, Batch(jnp.zeros((1, *image_shape))), train=False)

    def apply(self, variables: Variables, images: Batch, train: bool) -> tuple[dict[str, Batch], Any]:
        """Runs the network on one joint batch of normalised images, float32 `[N, H, W, C]`.

        train: use (and update) the statistics of this batch instead of the running ones.
        Returns ({name of intermediate: Batch of outputs}, batch_stats).
        """
        outputs, updated = self.module.apply(variables, images, train, mutable=['batch_stats'])
        return outputs, updated['batch_stats']


def create(name: str, num_classes: int, heads: Mapping[str, tuple[int, ...]] | None = None, **settings) -> Model:
    """Returns the network called `name`. Raises UserError for a name or a setting that does not exist.

    heads: {name of an output beside 'features' and 'logits': widths of its layers on top of the features}.
    """
    if name not in MODELS:
        raise unknown('model', name, MODELS)
    given = {'num_classes': num_classes, 'heads': dict(heads or {})}
    return Model(build(MODELS[name], f'setting of model {name}', settings, given))
