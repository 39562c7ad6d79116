"""Gradient to update. The learning rate is a function of progress, so the optimizer state holds no count."""

import jax
import jax.numpy as jnp
import optax

from train.settings import Optimizer


def create(settings: Optimizer) -> optax.GradientTransformation:
    """SGD with Nesterov momentum and L2 on kernels, before the learning rate is applied."""
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay, mask=kernels),
        optax.trace(settings.momentum, nesterov=True),
    )


def kernels(params) -> dict:
    """Marks with True what weight decay acts on: kernels, not biases and batch-norm parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def learning_rate(settings: Optimizer, progress: jax.Array) -> jax.Array:
    """The cosine decay of FixMatch (section 2.3 and table 4): lr * cos(7 pi k / 16 K) with the default."""
    return settings.learning_rate * jnp.cos(jnp.pi * settings.cosine_cycles * progress)
