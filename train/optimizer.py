"""The optimizer. The learning rate is a function of progress, and is applied after it, in every layer its own."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from errors import UserError
from train.settings import Optimizer


def create(settings: Optimizer) -> optax.GradientTransformation:
    """Returns the optimizer without the learning rate, by which its updates are multiplied.

    - sgd: g + decay w, then Nesterov momentum, as PyTorch's.
    - adamw: Loshchilov and Hutter 2019 (arXiv:1711.05101, algorithm 2), as PyTorch's: Adam's update + decay w.
    - lars: You et al. 2017 (arXiv:1708.03888, algorithm 1): g + decay w, of kernels times trust |w| / |g + decay w|,
      then momentum. The paper has the learning rate before the momentum, which differs where the rate changes.
    - lamb: You et al. 2020 (arXiv:1904.00962, algorithm 2): Adam's update + decay w, times |w| / |that|, of kernels.

    Where a norm is zero, its ratio is 1.
    """
    decay = optax.add_decayed_weights(settings.weight_decay, mask=kernels)
    adam = optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon)
    parts = {
        'sgd': (decay, optax.trace(settings.momentum, nesterov=True)),
        'adamw': (adam, decay),
        'lars': (
            decay,
            optax.masked(optax.scale_by_trust_ratio(trust_coefficient=settings.trust_coefficient), kernels),
            optax.trace(settings.momentum),
        ),
        'lamb': (adam, decay, optax.masked(optax.scale_by_trust_ratio(), kernels)),
    }[settings.name]
    return optax.chain(*parts)


def clip(settings: Optimizer, gradient: dict) -> dict:
    """Returns a gradient with a norm, over all of it, of at most `settings.clip_norm`."""
    if not settings.clip_norm:
        return gradient
    return optax.clip_by_global_norm(settings.clip_norm).update(gradient, optax.EmptyState())[0]


def kernels(params) -> dict:
    """Returns a tree with True for parameters with weight decay: kernels, not biases and parameters of norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def learning_rate(settings: Optimizer, progress: jax.Array) -> jax.Array:
    """Returns the learning rate of the whole network, which `layer_rates` multiplies.

    'cosine' is FixMatch's decay (section 2.3 and table 4): lr * cos(7 pi k / 16 K) with the default. 'inverse' is
    DANN's (Ganin et al. 2016, JMLR, section 5.2.2): lr / (1 + 10 p)^0.75 with the defaults.
    """
    if settings.schedule == 'cosine':
        rate = settings.learning_rate * jnp.cos(jnp.pi * settings.cosine_cycles * progress)
    elif settings.schedule == 'inverse':
        rate = settings.learning_rate / (1 + settings.inverse_gamma * progress) ** settings.inverse_power
    else:
        # In compiled code step / steps may be one rounding error below a boundary.
        passed = (progress * (1 + 3e-7) >= jnp.asarray(settings.boundaries)).sum()
        rate = settings.learning_rate * 0.1**passed
    return rate * jnp.minimum(1, progress / settings.warmup) if settings.warmup else rate


def layer_rates(settings: Optimizer, params: Mapping[str, Mapping[str, Any]], depths: Mapping[str, int]) -> dict:
    """Returns {layer: {parameter: factor of the learning rate}}; 0 where the parameter is frozen.

    Args:
        settings: Settings of the optimizer.
        params: {layer: {parameter: value}}.
        depths: {layer: number of its block}, for `layer_decay`.

    Raises:
        UserError: A parameter matches no expression, or an expression no parameter.
    """
    rules = []
    for rule in settings.layer_rates:
        pattern, colon, number = rule.rpartition(':')
        try:
            rules.append((rule, re.compile(pattern), float(number)))
            if not colon or not 0 <= float(number) < math.inf:
                raise ValueError
        except (re.error, ValueError):
            form = "'regular expression: factor', with a factor from 0"
            raise UserError(f"optimizer.layer_rates: '{rule}' is not {form}.") from None
    used, unmatched = set(), []

    def factor(name: str) -> float:
        for rule, pattern, value in rules:
            if pattern.match(name):
                used.add(rule)
                return value
        if rules:
            unmatched.append(name)
        return 1.0

    deepest = max(depths.values())
    rates = {
        layer: {leaf: factor(f'{layer}/{leaf}') * settings.layer_decay ** (deepest - depths[layer]) for leaf in leaves}
        for layer, leaves in params.items()
    }
    if unmatched:
        raise UserError(f"optimizer.layer_rates leaves out {', '.join(unmatched)}. End it with '.*: 1' or '.*: 0'.")
    if unused := [rule for rule in settings.layer_rates if rule not in used]:
        names = ', '.join(sorted(params))
        raise UserError(f"optimizer.layer_rates: '{unused[0]}' fits no parameter that is left. Layers: {names}.")
    if not select(rates, rates):
        raise UserError('optimizer.layer_rates freezes everything: there is nothing to train.')
    return rates


def select(tree: Mapping[str, Mapping[str, Any]], rates: Mapping[str, Mapping[str, float]]) -> dict:
    """Returns the trained part of {layer: {leaf: value}}."""
    parts = {layer: {k: v for k, v in leaves.items() if rates[layer][k]} for layer, leaves in tree.items()}
    return {layer: leaves for layer, leaves in parts.items() if leaves}


def merge(tree: Mapping[str, Mapping[str, Any]], part: Mapping[str, Mapping[str, Any]]) -> dict:
    """Returns the tree with some of its values replaced by those in `part`."""
    return {layer: {**leaves, **part.get(layer, {})} for layer, leaves in tree.items()}
