"""What every method must do, whatever its loss: found by their files, so that a new one is tested without being named.

The first half calls the losses on a linear network (tests/fakes.py), the second makes real steps.
"""

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import methods
from methods.base import JOINT, STRONG, Inputs, Method
from train import mesh as mesh_lib
from train import step as step_lib
from train.checkpoint import Checkpoints
from train.streams import Streams

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


@functools.cache
def warm_state(method: Method):
    """Returns the state after two steps and, where there are rounds, the beginning of the second."""
    state = jax.tree.map(jnp.asarray, method.init_state(fakes.SPEC))
    for seed in (11, 12):
        inputs = fakes.inputs(method, seed=seed)
        state = jax.jit(lambda state, inputs=inputs: method.loss(inputs, state).state)(state)
    p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (fakes.SPEC.num_unlabeled, fakes.NUM_CLASSES)) * 3)
    return method.relabel(state, p, jnp.int32(1))


def without_labeled_images(method: Method, **changes) -> Inputs:
    """Inputs whose labeled images are black, so that a linear network has no gradient from them."""
    views = {view: x * (view.stream != 'labeled') for view, x in fakes.images().items()}
    return fakes.inputs(method, views=views, **changes)


def gradient(method: Method, inputs: Inputs, state, which: str = 'params'):
    """The gradient of the loss in the network's (or the teacher's) parameters."""

    def loss(params):
        changed = dataclasses.replace(inputs, **{which: params})
        if which == 'params':
            outputs = {view: fakes.network(params, x) for view, x in inputs.images.items()}
            outputs = {
                view: x if method.views().get(view) == JOINT else jax.lax.stop_gradient(x)
                for view, x in outputs.items()
            }
            changed = dataclasses.replace(changed, outputs=outputs)
        return method.loss(changed, state).loss

    return jax.jit(jax.grad(loss))(getattr(inputs, which))  # operation by operation takes longer to compile


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


@functools.cache
def outcome(method: Method) -> list:
    """Everything that a method comes to over some steps: views, losses, masks, states, as names and arrays."""
    seen = [method.views(), method.heads(), method.rounds, method.restart]
    state = jax.tree.map(jnp.asarray, method.init_state(fakes.SPEC))
    for i, progress in enumerate((0.0, 0.0015, 0.006, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 0.5, 0.9)):
        scale = (1.0, 0.3, 3.0, 0.1, 0.6)[i % 5]
        inputs = fakes.inputs(method, seed=i, progress=progress, scale=scale, forward=centred)
        if i in (3, 5, 7):
            p = jax.nn.softmax(i / 3 * inputs.images[STRONG].reshape(4, 16)[:, :3])
            state = method.relabel(state, jnp.concatenate([p, p[:3]]), jnp.int32(i - 2))
        result = method.loss(inputs, state)
        state = result.state
        seen += [np.asarray(x) for x in jax.tree.leaves((result.loss, result.metrics, result.pseudo_labels, state))]
    return seen


FIELDS = [
    (name, field.name) for name in (*UNLABELED, 'finetune') for field in dataclasses.fields(methods.create(name, {}))
]


@pytest.mark.parametrize(('name', 'field'), FIELDS)
def test_every_hyper_parameter_does_something(name, field):
    """Temperature, threshold, weight and all others change a loss, a mask, a state, the views or the rounds."""
    defaults = {f.name: f.default for f in dataclasses.fields(methods.create(name, {}))}
    short = {key: value for key, value in SHORT.items() if key in defaults}
    value = other_value(short.get(field, defaults[field]))
    before, after = (outcome(methods.create(name, {**short, **change})) for change in ({}, {field: value}))
    same = len(before) == len(after) and all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(before, after, strict=True)
    )
    assert not same, f'{name}.{field} = {value} changes nothing'


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


# Real steps.


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A method in the engine, half way through training, with a step compiled for two devices and for one."""

    trainer: step_lib.Trainer
    streams: Streams
    first: step_lib.TrainState  # before training
    state: step_lib.TrainState
    step: object
    meshes: tuple

    def batch(self, step: int = 0, mesh=None):
        batch = self.streams.batches(self.trainer.batch_sizes, 0, step)
        return mesh_lib.put_batch(mesh or self.meshes[1], batch)

    def on(self, mesh, steps: int):
        """Returns state and metrics after some steps on a mesh."""
        with jax.set_mesh(mesh):
            state = mesh_lib.put_replicated(mesh, self.state)
            for i in range(steps):
                state, metrics = self.step(state, self.batch(i, mesh))
        return state, metrics


# Methods whose config is that of another, and how it is asked for them.
CONFIG_OF = {name: ('dann', f'methods={name}') for name in ('cdan', 'coral', 'mcc', 'mmd')} | {
    name: ('rotation', f'method={name}') for name in ('barlow_twins', 'byol', 'simclr', 'simsiam', 'vicreg')
}


@pytest.fixture(scope='module', params=UNLABELED)
def prepared(request, make_settings, data_dir):
    name = request.param
    config, arg = CONFIG_OF.get(name, (name, ''))
    overrides = {f'methods.{name}.{key}': value for key, value in let_through(name).items()}
    settings = make_settings(config, arg, **overrides, **{'data.validation': 0})
    streams = Streams.load(settings, data_dir)
    trainer = step_lib.Trainer.create(settings, streams.spec(settings))
    # RandAugment takes as long to compile as all else. It knows no method, and the steps of the other files have it.
    augmentations = dict.fromkeys(('strong', 'distorted'), trainer.augmentations['weak'])
    augmentations = {**trainer.augmentations, **augmentations}
    trainer = dataclasses.replace(trainer, augmentations=augmentations)
    axis_types = (jax.sharding.AxisType.Auto,)
    meshes = tuple(jax.make_mesh((n,), ('data',), axis_types, devices=jax.devices()[:n]) for n in (1, 2))
    first = state = step_lib.init(trainer, streams.batches(trainer.batch_sizes, 0, 0))
    if trainer.round_steps < settings.steps:
        state = dataclasses.replace(state, step=jnp.int32(trainer.round_steps))
        logits = jax.random.normal(jax.random.key(0), (trainer.data.num_unlabeled, 10))
        state = step_lib.next_round(trainer, state, logits)
    else:
        state = dataclasses.replace(state, step=jnp.int32(settings.steps // 2))
    state = jax.device_get(state)
    return Prepared(trainer, streams, first, state, jax.jit(functools.partial(step_lib.step, trainer)), meshes)


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_no_two_parts_of_the_first_state_are_the_same_array(prepared):
    """A step takes over the arrays of its state, each of which it can do once."""
    addresses = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(prepared.first) if x.size]
    assert len(set(addresses)) == len(addresses)


def test_true_classes_of_unlabeled_images_change_nothing_but_the_log(prepared):
    state, metrics = prepared.on(prepared.meshes[1], 1)
    batch = prepared.batch()
    batch['unlabeled']['labels'] = (batch['unlabeled']['labels'] + 1) % 10
    with jax.set_mesh(prepared.meshes[1]):
        other, other_metrics = prepared.step(mesh_lib.put_replicated(prepared.meshes[1], prepared.state), batch)
    assert_same(dataclasses.replace(state, metrics={}), dataclasses.replace(other, metrics={}))
    for key, value in metrics.means.items():
        if 'pseudo_label_accuracy' not in key:
            np.testing.assert_array_equal(value, other_metrics.means[key], err_msg=key)


def test_a_step_moves_every_parameter_and_logs_finite_numbers(prepared):
    state, metrics = prepared.on(prepared.meshes[1], 2)  # the second with whatever the first left in memory
    for path, new in jax.tree_util.tree_leaves_with_path(state.params):
        assert np.all(np.isfinite(new))
        if path[0].key == 'head' and 'labeled' not in prepared.trainer.batch_sizes:
            continue  # without labels there is nothing to classify
        assert np.any(new != functools.reduce(lambda tree, k: tree[k.key], path, prepared.state.params)), path
    for key, value in metrics.means.items():
        assert np.all(np.isfinite(value)), key
    (name,) = prepared.trainer.methods.keys() - {'supervised'}
    assert metrics.means[f'{name}/loss'][0] != 0


def test_running_statistics_follow_the_batches(prepared):
    state, _ = prepared.on(prepared.meshes[1], 1)
    for old, new in zip(leaves(prepared.state.batch_stats), leaves(state.batch_stats), strict=True):
        assert np.any(old != new)


# One of each kind: a threshold, averages over batches, a memory of every image, a queue, the teacher, a forward pass
# of its own, mixed images, small networks, rotated views, embeddings without negatives. The others have nothing that
# devices could split otherwise, and would each be compiled once more.
SPLIT = ['fixmatch', 'freematch', 'simmatch', 'comatch', 'mean_teacher', 'vat', 'mixmatch', 'cdan', 's4l', 'byol']


def test_one_device_equals_two(prepared):
    if not prepared.trainer.methods.keys() & SPLIT:
        pytest.skip('another method of its kind is tested')
    (one, one_metrics), (two, two_metrics) = (prepared.on(mesh, 2) for mesh in prepared.meshes)
    for a, b in ((one.params, two.params), (one.batch_stats, two.batch_stats), (one_metrics, two_metrics)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-3, atol=1e-4), a, b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-3, atol=1e-4), one.methods, two.methods)


def test_training_goes_on_from_a_checkpoint_bit_for_bit(prepared, tmp_path):
    """Everything a method keeps is in the checkpoint: two steps, a save, and the third step from what was read."""
    mesh = prepared.meshes[1]
    reference, _ = prepared.on(mesh, 3)
    state, _ = prepared.on(mesh, 2)
    with jax.set_mesh(mesh):
        with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
            checkpoints.save(2, state, None)
            checkpoints.wait()
        blank = jax.tree.map(jnp.zeros_like, mesh_lib.put_replicated(mesh, prepared.state))
        with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
            restored = checkpoints.latest(like=blank)
        again, _ = prepared.step(restored, prepared.batch(2))
    assert_same(reference, again)


def test_a_method_adds_up_with_rotation_and_supervised_terms(prepared):
    chosen = {
        **prepared.trainer.methods,
        'supervised': methods.create('supervised', {}),
        'rotation': methods.create('rotation', {}),
    }
    heads = {**prepared.trainer.model.network.heads, 'rotation': (4,)}
    model = dataclasses.replace(prepared.trainer.model, network=prepared.trainer.model.network.copy(heads=heads))
    trainer = dataclasses.replace(prepared.trainer, methods=chosen, model=model)
    batch = prepared.streams.batches(trainer.batch_sizes, 0, 0)
    state = jax.eval_shape(lambda: step_lib.init(trainer, batch))
    new, metrics = jax.eval_shape(functools.partial(step_lib.step, trainer), state, batch)
    assert jax.tree.map(jnp.shape, new.params) == jax.tree.map(jnp.shape, state.params)
    assert {f'{name}/loss' for name in chosen} <= metrics.means.keys()
