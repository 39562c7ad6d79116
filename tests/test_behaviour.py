"""What every loss must do: methods are found by their files, so that a new one is tested without being named.

The losses are those of a linear network (tests/fakes.py). tests/test_behaviour_steps.py makes real steps.
"""

import dataclasses
import functools
from collections.abc import Iterator

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import methods
from methods.base import JOINT, STRONG, Inputs, Method

UNLABELED = [n for n in methods.names() if any(v.stream == 'unlabeled' for v in methods.create(n, {}).views())]
# Values that let an untrained network's pseudo-labels through, for whichever field of a method has such a name.
LET_THROUGH = {'threshold': 0.0, 'rho_min': 10.0, 'warm_up': 0.0}
# Networks of a method's own that are quick.
NARROW = {'widths': (8, 8), 'hidden': 8, 'width': 8, 'predictor': 8}


def let_through(name: str) -> dict:
    fields = {field.name: field for field in dataclasses.fields(methods.create(name, {}))}
    chosen = {key: type(fields[key].default)(value) for key, value in LET_THROUGH.items() if key in fields}
    narrow = {key: value for key, value in NARROW.items() if key in fields}
    return chosen | narrow | ({'rounds': 3} if 'rounds' in fields else {})


def make(name: str) -> Method:
    return methods.create(name, let_through(name))


def arrays(inputs: Inputs) -> dict:
    """Returns what differs between inputs, for functions that are compiled once for all of them."""
    return {name: getattr(inputs, name) for name in ('images', 'outputs', 'params', 'ema_params')}


@functools.cache
def warm_state(method: Method):
    """Returns the state after two steps and, where there are rounds, the beginning of the second."""
    state = jax.tree.map(jnp.asarray, method.init_state(fakes.SPEC))
    first = fakes.inputs(method)
    step = jax.jit(lambda state, given: method.loss(dataclasses.replace(first, **given), state).state)
    for seed in (11, 12):
        state = step(state, arrays(fakes.inputs(method, seed=seed)))
    p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (fakes.SPEC.num_unlabeled, fakes.NUM_CLASSES)) * 3)
    return method.relabel(state, p, jnp.int32(1))


def without_labeled_images(method: Method, **changes) -> Inputs:
    """Inputs whose labeled images are black, so that a linear network has no gradient from them."""
    views = {view: x * (view.stream != 'labeled') for view, x in fakes.images().items()}
    return fakes.inputs(method, views=views, **changes)


def gradient(method: Method, inputs: Inputs, state, which: str = 'params'):
    """The gradient of the loss in the network's (or the teacher's) parameters."""
    given = arrays(inputs)
    return compiled_gradient(method, which)(given.pop(which), given, state)


@functools.cache
def compiled_gradient(method: Method, which: str):
    inputs = fakes.inputs(method)

    def loss(params, given, state):
        changed = dataclasses.replace(inputs, **given, **{which: params})
        if which == 'params':
            outputs = {view: fakes.network(params, x) for view, x in changed.images.items()}
            outputs = {
                view: x if method.views().get(view) == JOINT else jax.lax.stop_gradient(x)
                for view, x in outputs.items()
            }
            changed = dataclasses.replace(changed, outputs=outputs)
        return method.loss(changed, state).loss

    return jax.jit(jax.grad(loss))  # operation by operation takes longer to compile


@pytest.mark.parametrize('name', UNLABELED)
def test_unlabeled_images_give_a_finite_gradient_that_is_not_zero(name):
    method = make(name)
    inputs = without_labeled_images(method)
    leaves = jax.tree.leaves(gradient(method, inputs, warm_state(method)))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert any(np.any(leaf != 0) for leaf in leaves)


@pytest.mark.parametrize('name', UNLABELED)
@pytest.mark.parametrize('scale', [0.0, 100.0])
def test_gradient_is_finite_for_a_network_that_knows_nothing_or_is_certain(name, scale):
    method = make(name)
    inputs = fakes.inputs(method, scale=scale)
    for leaf in jax.tree.leaves(gradient(method, inputs, warm_state(method))):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize('name', UNLABELED)
def test_teacher_gets_no_gradient(name):
    method = make(name)
    inputs = fakes.inputs(method)
    assert all(not np.any(g) for g in jax.tree.leaves(gradient(method, inputs, warm_state(method), 'ema_params')))


# Memories and averages short enough to matter within a few steps, and a threshold that some images pass.
SHORT = {'decay': 0.5, 'average': 2, 'batches': 1, 'threshold': 0.5, 'decays': 20.0, 'rho_min': 0.3, **NARROW}


def other_value(default):
    """Another sensible value of a field."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2 if default else 0.7
    if isinstance(default, tuple):
        return default[1:]
    return {'joint': 'no_grad', 'strong': 'weak', 'weak': 'strong', 'logits': 'features', 'code': 'paper'}[default]


def centred(params, images, draw=''):
    """A forward pass that depends on the batch, as batch norm's does."""
    return fakes.forward(params, images - images.mean(0))


def outcomes(method: Method) -> Iterator[list]:
    """Yields everything that a method comes to: views and heads, then losses, masks and state of each step."""
    yield [method.views(), method.heads(), method.rounds, method.restart]
    state = jax.tree.map(jnp.asarray, method.init_state(fakes.SPEC))
    for i, progress in enumerate((0.0, 0.0015, 0.006, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 0.5, 0.9)):
        scale = (1.0, 0.3, 3.0, 0.1, 0.6)[i % 5]
        inputs = fakes.inputs(method, seed=i, progress=progress, scale=scale, forward=centred)
        if i in (3, 5, 7):
            p = jax.nn.softmax(i / 3 * inputs.images[STRONG].reshape(4, 16)[:, :3])
            state = method.relabel(state, jnp.concatenate([p, p[:3]]), jnp.int32(i - 2))
        result = method.loss(inputs, state)
        state = result.state
        yield [np.asarray(x) for x in jax.tree.leaves((result.loss, result.metrics, result.pseudo_labels, state))]


@functools.cache
def all_outcomes(method: Method) -> list[list]:
    return list(outcomes(method))


def same(before: list, after: list) -> bool:
    return len(before) == len(after) and all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(before, after, strict=True)
    )


FIELDS = [
    (name, field.name) for name in (*UNLABELED, 'finetune') for field in dataclasses.fields(methods.create(name, {}))
]


@pytest.mark.parametrize(('name', 'field'), FIELDS)
def test_every_hyper_parameter_does_something(name, field):
    """Temperature, threshold, weight and all others change a loss, a mask, a state, the views or the rounds."""
    defaults = {f.name: f.default for f in dataclasses.fields(methods.create(name, {}))}
    short = {key: value for key, value in SHORT.items() if key in defaults}
    value = other_value(short.get(field, defaults[field]))
    before = all_outcomes(methods.create(name, short))
    after = outcomes(methods.create(name, {**short, field: value}))  # no further than to the first difference
    assert not all(map(same, before, after)), f'{name}.{field} = {value} changes nothing'


@pytest.mark.parametrize('name', [*UNLABELED, 'supervised', 'finetune'])  # regularisers need a real network
def test_loss_is_pure_and_keeps_the_shape_of_its_state(name):
    method = make(name)
    inputs = fakes.inputs(method)
    state = jax.tree.map(jnp.asarray, method.init_state(fakes.SPEC))
    first, second = method.loss(inputs, state), method.loss(inputs, state)
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(s)] for s in (state, first.state)]
    assert shapes[0] == shapes[1]
    assert jax.tree.structure(state) == jax.tree.structure(first.state)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.metrics['loss'].shape == first.loss.shape == ()
    if first.pseudo_labels is not None:
        assert first.pseudo_labels.labels.shape == first.pseudo_labels.mask.shape == (4,)
        assert jnp.issubdtype(first.pseudo_labels.labels.dtype, jnp.integer)


def half(inputs: Inputs, number: int) -> Inputs:
    """Returns the first or the second half of every stream."""

    def take(x: jax.Array) -> jax.Array:
        return jnp.split(x, 2)[number]

    return dataclasses.replace(
        inputs,
        labels=take(inputs.labels),
        indices=jax.tree.map(take, inputs.indices),
        images=jax.tree.map(take, inputs.images),
        outputs=jax.tree.map(take, inputs.outputs),
    )


@pytest.mark.parametrize('name', [n for n in methods.names() if make(n).separable and make(n).views()])
def test_loss_of_a_batch_is_the_mean_of_its_parts_where_a_method_says_so(name):
    method, inputs = make(name), fakes.inputs(make(name), scale=3.0)
    state = warm_state(method)
    whole, *halves = (fakes.loss(method, part, state) for part in (inputs, half(inputs, 0), half(inputs, 1)))
    assert whole.loss != 0
    np.testing.assert_allclose(whole.loss, (halves[0].loss + halves[1].loss) / 2, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, whole.state, state)
