"""What every method must do in a step of the engine: found by their files, as in tests/test_behaviour.py."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_behaviour import UNLABELED, let_through

import methods
from models.layers import BatchNorm, Conv
from train import mesh as mesh_lib
from train import step as step_lib
from train.checkpoint import Checkpoints
from train.streams import Streams


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


class Small(nn.Module):
    """A backbone that compiles faster than any of models/."""

    @nn.compact
    def __call__(self, images, train):
        x = BatchNorm(0.9, 1e-5, name='norm')(Conv(4, stride=2, name='stem')(images), train)
        return {'features': nn.leaky_relu(x).mean((1, 2))}


def small_trainer(settings, data_dir):
    """Returns the trainer of a run and its data, with what compiles fast instead of its backbone and RandAugment."""
    streams = Streams.load(settings, data_dir)
    trainer = step_lib.Trainer.create(settings, streams.spec(settings))
    # RandAugment takes as long to compile as all else. It knows no method, and the steps of the other files have it.
    augmentations = dict.fromkeys(('strong', 'distorted'), trainer.augmentations['weak'])
    augmentations = {**trainer.augmentations, **augmentations}
    model = dataclasses.replace(trainer.model, network=trainer.model.network.copy(backbone=Small()))
    return dataclasses.replace(trainer, augmentations=augmentations, model=model), streams


@pytest.fixture(scope='module', params=UNLABELED)
def prepared(request, make_settings, data_dir):
    name = request.param
    config, arg = CONFIG_OF.get(name, (name, ''))
    overrides = {f'methods.{name}.{key}': value for key, value in let_through(name).items()}
    settings = make_settings(config, arg, **overrides, **{'data.validation': 0})
    trainer, streams = small_trainer(settings, data_dir)
    axis_types = (jax.sharding.AxisType.Auto,)
    meshes = tuple(jax.make_mesh((n,), ('data',), axis_types, devices=jax.devices()[:n]) for n in (1, 2))
    with jax.set_mesh(meshes[1]):  # on the devices of the steps, which then share its trace
        batch = mesh_lib.put_batch(meshes[1], streams.batches(trainer.batch_sizes, 0, 0))
        first = state = step_lib.init(trainer, batch)
    if trainer.round_steps < settings.steps:
        state = dataclasses.replace(state, step=jnp.int32(trainer.round_steps))
        logits = jax.random.normal(jax.random.key(0), (trainer.data.num_unlabeled, 10))
        state = step_lib.next_round(trainer, state, logits)
    else:
        state = dataclasses.replace(state, step=jnp.int32(settings.steps // 2))
    state = jax.device_get(state)
    step = jax.jit(functools.partial(step_lib.step, trainer), out_shardings=jax.P())
    return Prepared(trainer, streams, first, state, step, meshes)


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_no_two_parts_of_the_first_state_are_the_same_array(prepared):
    """A step takes over the arrays of its state, each of which it can do once."""
    addresses = [x.addressable_data(0).unsafe_buffer_pointer() for x in jax.tree.leaves(prepared.first) if x.size]
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
