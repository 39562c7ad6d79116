"""Inputs of a loss without an engine: small random images and a linear network that NumPy can follow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from methods.base import DISTORTED, DISTORTED2, LABELED_ROTATED, ROTATED, DataSpec, Inputs, Loss, View
from models import mlp

NUM_CLASSES = 3
FEATURES = 5
IMAGE_SHAPE = (4, 4, 1)
LABELS = np.int32([0, 1, 2, 0, 1])  # of the whole labeled pool
SIZES = {'labeled': 2, 'unlabeled': 4}
SPEC = DataSpec(NUM_CLASSES, IMAGE_SHAPE, LABELS, num_unlabeled=7, batch_sizes=SIZES, key=jax.random.key(5))
INDICES = {'labeled': np.int32([3, 1]), 'unlabeled': np.int32([5, 0, 2, 6])}
VIEWS = [View(s, a, n) for s in ('labeled', 'unlabeled') for a in ('weak', 'strong') for n in range(1, 10)]
VIEWS += [LABELED_ROTATED, ROTATED, DISTORTED, DISTORTED2]


def images(seed: int = 0) -> dict[str, np.ndarray]:
    """Returns every view that a method can ask for, float32 `[n, H, W, C]` in [-1, 1]."""
    rng = np.random.default_rng(seed)
    sizes = {view: SPEC.batch_sizes[view.stream] * (4 if view.augmentation == 'rotated' else 1) for view in VIEWS}
    return {view: rng.uniform(-1, 1, (size, *IMAGE_SHAPE)).astype(np.float32) for view, size in sizes.items()}


def params(method, seed: int = 1, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Returns {output: float32 `[pixels, width]`} for logits and the heads of a method."""
    rng = np.random.default_rng(seed)
    widths = {'logits': NUM_CLASSES, **{name: widths[-1] for name, widths in method.heads().items()}}
    values = {
        name: scale * rng.standard_normal((int(np.prod(IMAGE_SHAPE)), width)).astype(np.float32)
        for name, width in widths.items()
    }
    values['features'] = rng.standard_normal((int(np.prod(IMAGE_SHAPE)), FEATURES)).astype(np.float32)
    for i, (name, own) in enumerate(method.mlps().items()):
        layers = own.init(jax.random.key(seed + i), name, FEATURES, NUM_CLASSES)
        values |= jax.tree.map(np.asarray, layers)
    return values


def network(params, images) -> dict:
    """The network: every output is images, flattened, times a matrix. Works on NumPy and JAX arrays."""
    return {
        name: images.reshape(len(images), -1) @ matrix
        for name, matrix in params.items()
        if not isinstance(matrix, dict)  # a layer of one of the method's own networks
    }


def forward(params, images, draw='') -> tuple[dict, dict]:
    """Runs that network as `Inputs.forward`; its 'running statistics' are the mean image."""
    return network(params, images), {'mean': jnp.mean(images, axis=0)}


def inputs(method, *, seed: int = 0, progress: float = 0.5, scale: float = 1.0, views=None, **changes) -> Inputs:
    """Returns inputs of a step for a method.

    Args:
        method: The method.
        seed: Seed of the random images.
        progress: `Inputs.progress`.
        scale: Scale of the parameters.
        views: {view: images}; None for random ones.
        **changes: Fields of Inputs to replace.
    """
    views = images(seed) if views is None else views
    student, teacher = params(method, scale=scale), params(method, seed=2, scale=scale)
    values = Inputs(
        labels=jnp.asarray(LABELS[INDICES['labeled']]),
        indices={stream: jnp.asarray(index) for stream, index in INDICES.items()},
        images={view: jnp.asarray(x) for view, x in views.items()},
        # In NumPy, which is faster on arrays as small as these.
        outputs={view: jax.tree.map(jnp.asarray, network(student, np.asarray(x))) for view, x in views.items()},
        progress=jnp.float32(progress),
        key=jax.random.key(3),
        params=jax.tree.map(jnp.asarray, student),
        ema_params=jax.tree.map(jnp.asarray, teacher),
        forward=forward,
        mlp=mlp.apply,
    )
    return dataclasses.replace(values, **changes)


def loss(method, inputs: Inputs, state) -> Loss:
    """Returns what the loss of a method returns, as one program: operation by operation takes longer to compile."""
    return jax.jit(lambda: method.loss(inputs, state))()


def numeric(f, tree):
    """Returns the gradient of f by central differences at a tree of float64 arrays, which it changes temporarily."""
    gradient = jax.tree.map(np.zeros_like, tree)
    for x, slopes in zip(jax.tree.leaves(tree), jax.tree.leaves(gradient), strict=True):
        for i in np.ndindex(x.shape):
            value = x[i]
            x[i] = value + 1e-5
            above = f(tree)
            x[i] = value - 1e-5
            slopes[i] = (above - f(tree)) / 2e-5
            x[i] = value
    return gradient
