"""Small networks that a method runs itself: domain discriminators, projectors, predictors."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import precision

EPSILON = 1e-5  # of batch norm


class MLP(NamedTuple):
    """Dense layers with ReLU between them.

    Attributes:
        widths: Widths of the layers.
        inputs: Function (width of the features, number of classes) -> width of the input.
        batch_norm: Whether to normalise before each ReLU, always with the statistics of the batch.
    """

    widths: tuple[int, ...]
    inputs: Callable[[int, int], int] = lambda features, num_classes: features
    batch_norm: bool = False

    def init(self, key: jax.Array, name: str, features: int, num_classes: int) -> dict[str, dict[str, jax.Array]]:
        """Returns initial parameters, in layers 'head_<name>1', ... and 'head_<name>_norm1', ..."""
        params: dict[str, dict[str, jax.Array]] = {}
        before = self.inputs(features, num_classes)
        for i, width in enumerate(self.widths, 1):
            kernel = jax.nn.initializers.glorot_normal()(jax.random.fold_in(key, i), (before, width))
            layer = params[f'head_{name}{i}'] = {'kernel': kernel}
            if self.batch_norm and i < len(self.widths):  # which has a bias of its own
                params[f'head_{name}_norm{i}'] = {'scale': jnp.ones(width), 'bias': jnp.zeros(width)}
            else:
                layer['bias'] = jnp.zeros(width)
            before = width
        return params


def apply(params: Mapping[str, Any], name: str, x: jax.Array) -> jax.Array:
    """Returns the output `[n, widths[-1]]` of the MLP of that name for x, `[n, inputs]`."""
    i = 1
    while f'head_{name}{i}' in params:
        if i > 1:
            if (norm := params.get(f'head_{name}_norm{i - 1}')) is not None:
                x = (x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + EPSILON) * norm['scale'] + norm['bias']
            x = jax.nn.relu(x)
        layer = params[f'head_{name}{i}']
        x = precision.matmul(x, layer['kernel']) + layer.get('bias', 0)
        i += 1
    return x
