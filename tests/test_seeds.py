"""Runs that differ only by seed, trained as one program, are the runs that they are one by one."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import augment
from errors import UserError
from train import loop
from train import step as step_lib
from train.checkpoint import Checkpoints
from train.streams import Streams

SEEDS = (0, 3)
TIMES = {'seconds', 'images_per_second'}


def seeds_of(settings):
    return [dataclasses.replace(settings, seed=seed) for seed in SEEDS]


def rows(folder):
    lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in TIMES} for row in lines]


def assert_same_rows(a, b):
    assert [row.keys() for row in a] == [row.keys() for row in b]
    for x, y in zip(a, b, strict=True):
        for key, value in x.items():
            if value is None:
                assert y[key] is None, key
            else:
                # Sums are rounded in another order; over 12 steps that grows to this much.
                np.testing.assert_allclose(y[key], value, rtol=5e-3, atol=1e-4, err_msg=f'{key}, step {x["step"]}')


@pytest.fixture(scope='module')
def together(make_settings, data_dir, tmp_path_factory):
    """Returns a function: config -> (settings of each seed, folders of the runs made as one, their results)."""

    @functools.cache
    def run(name):
        each = seeds_of(make_settings(name, **({'optimizer.unfreeze_step': 5} if name == 'supervised' else {})))
        folders = [tmp_path_factory.mktemp(name) / f'many{seed}' for seed in SEEDS]
        return each, folders, loop.run_seeds(each, folders, data_dir)

    return run


# Two views of two policies; rounds, each with new parameters; the classifier first, then all.
@pytest.fixture(scope='module', params=['fixmatch', 'self_training', 'supervised'])
def runs(request, together, data_dir, tmp_path_factory):
    """Returns (settings of each seed, folders of the runs made as one, their results, folders of those one by one)."""
    each, many, results = together(request.param)
    one = [tmp_path_factory.mktemp(request.param) / f'one{seed}' for seed in SEEDS]
    for settings, workdir in zip(each, one, strict=True):
        loop.run(settings, workdir, data_dir)
    return each, many, results, one


def test_each_seed_learns_what_it_learns_alone(runs):
    _, many, results, one = runs
    for a, b, result in zip(one, many, results, strict=True):
        assert_same_rows(rows(a), rows(b))
        assert json.loads((a / 'labels.json').read_text()) == json.loads((b / 'labels.json').read_text())
        assert result == json.loads((b / 'result.json').read_text())
        assert result['seeds_together'] == 2
        assert json.loads((a / 'result.json').read_text())['seeds_together'] == 1
    assert rows(many[0]) != rows(many[1])


@pytest.mark.parametrize('together_first', [True, False])
def test_runs_go_on_alone_that_began_together_and_the_other_way(
    together_first, together, data_dir, tmp_path, monkeypatch
):
    each, reference, _ = together('fixmatch')
    folders = [tmp_path / str(seed) for seed in SEEDS]
    stop_at(monkeypatch, 10)
    if together_first:
        with pytest.raises(KeyboardInterrupt):
            loop.run_seeds(each, folders, data_dir)
    else:
        for settings, folder in zip(each, folders, strict=True):
            with pytest.raises(KeyboardInterrupt):
                loop.run(settings, folder, data_dir)
    monkeypatch.undo()
    assert not (folders[0] / 'result.json').exists()
    if together_first:
        for settings, folder in zip(each, folders, strict=True):
            loop.run(settings, folder, data_dir)
    else:
        loop.run_seeds(each, folders, data_dir)
    for a, b in zip(reference, folders, strict=True):
        assert_same_rows(rows(a), rows(b))


def stop_at(monkeypatch, step):
    draw = Streams.batch

    def batch(self, stream, seed, at, size):
        if at == step:
            raise KeyboardInterrupt
        return draw(self, stream, seed, at, size)

    monkeypatch.setattr(Streams, 'batch', batch)


def test_a_finished_seed_is_not_trained_again(make_settings, data_dir, tmp_path):
    each = seeds_of(make_settings('supervised'))
    folders = [tmp_path / str(seed) for seed in SEEDS]
    first = loop.run(each[0], folders[0], data_dir)
    before = (folders[0] / 'metrics.jsonl').read_bytes()
    results = loop.run_seeds(each, folders, data_dir)
    assert results[0] == first
    assert (folders[0] / 'metrics.jsonl').read_bytes() == before
    assert results[1]['settings']['seed'] == SEEDS[1]


def test_what_cannot_be_one_program_is_refused(make_settings, data_dir, tmp_path, monkeypatch):
    each = seeds_of(make_settings('supervised'))
    folders = [tmp_path / str(seed) for seed in SEEDS]
    with pytest.raises(ValueError, match='nothing but their seed'):
        loop.run_seeds([each[0], dataclasses.replace(each[1], ema_decay=0.5)], folders, data_dir)
    stop_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        loop.run(each[0], folders[0], data_dir)
    monkeypatch.undo()
    with pytest.raises(UserError, match='different steps'):
        loop.run_seeds(each, folders, data_dir)


def test_every_seed_is_in_its_own_checkpoint(runs, data_dir):
    each, many, _, one = runs
    for settings, a, b in zip(each, one, many, strict=True):
        trainer, streams = loop.prepare(settings, data_dir)
        like = step_lib.init(trainer, streams.batches(trainer.batch_sizes, settings.seed, 0))
        states = []
        for folder in (a, b):
            with Checkpoints(folder / 'checkpoints') as checkpoints:
                states.append(checkpoints.latest(like))
        assert states[1].seed == settings.seed
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-3), states[0].params, states[1].params
        )


@pytest.mark.parametrize('view', [augment.Weak(pad=1), augment.Strong(pad=1), augment.Rotated(pad=1)])
def test_augmentation_of_several_seeds_is_that_of_each(view):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), np.uint8)
    draws = [view.draw(jax.random.key(seed), images[0].shape) for seed in SEEDS]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *draws)
    together = jax.jit(jax.vmap(step_lib.over_all_seeds(view.apply)))(stacked, images)
    for i, own in enumerate(draws):
        np.testing.assert_array_equal(together[i], jax.jit(view.apply)(own, images[i]))
    # What all seeds share is not copied by the caller.
    shared = jax.jit(jax.vmap(step_lib.over_all_seeds(view.apply), in_axes=(0, None)))(stacked, images[0])
    np.testing.assert_array_equal(shared[1], jax.jit(view.apply)(draws[1], images[0]))


# A forward pass of the method's own, a memory of every image, a small network on top, a rotated view.
@pytest.mark.parametrize(('name', 'arg'), [('vat', ''), ('simmatch', ''), ('dann', 'methods=cdan'), ('rotation', '')])
def test_other_methods_can_be_stacked(name, arg, make_settings, data_dir):
    trainer, streams = loop.prepare(make_settings(name, arg, **{'data.validation': 0}), data_dir)
    batch = streams.batches(trainer.batch_sizes, 0, 0)
    state = jax.eval_shape(lambda: step_lib.init(trainer, batch))
    two = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), (state, batch))
    new, _ = jax.eval_shape(jax.vmap(functools.partial(step_lib.step, trainer)), *two)
    assert jax.tree.map(jnp.shape, new.params) == jax.tree.map(jnp.shape, two[0].params)
