"""Whole runs: the run folder, exact evaluation, stopping and going on."""

import dataclasses
import json
import math
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from errors import UserError
from train import evaluation, loop
from train import step as step_lib
from train.checkpoint import Checkpoints
from train.run_folder import RunFolder
from train.streams import Streams

ROOT = pathlib.Path(__file__).parents[1]
TIMES = {'seconds', 'images_per_second'}  # what may differ between equal runs


def rows(workdir, kind='step'):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [row for row in map(json.loads, lines) if kind in row]


def without_times(workdir):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(workdir)]


def final_state(settings, workdir, data_dir):
    """Returns every array of the last checkpoint by name."""
    streams = Streams.load(settings, data_dir)
    trainer = step_lib.Trainer.create(settings, streams.spec(settings))
    batch = streams.batches(trainer.batch_sizes, 0, 0)
    like = step_lib.init(trainer, batch)
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        state = checkpoints.latest(like)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def assert_same_end(settings, a, b, data_dir):
    a_state, b_state = (final_state(settings, folder, data_dir) for folder in (a, b))
    assert a_state.keys() == b_state.keys()
    for name, value in a_state.items():
        np.testing.assert_array_equal(value, b_state[name], err_msg=name)
    assert without_times(a) == without_times(b)
    results = [json.loads((folder / 'result.json').read_text())['test_accuracy'] for folder in (a, b)]
    assert results[0] == results[1]


# One method without rounds and one with; tests/test_behaviour.py has all of them through a checkpoint.
@pytest.fixture(scope='module', params=['fixmatch', 'self_training'])
def finished(request, make_settings, data_dir, tmp_path_factory):
    """Returns (name of the config, settings, folder of an uninterrupted run, its result)."""
    settings = make_settings(request.param)
    workdir = tmp_path_factory.mktemp('runs') / request.param
    return request.param, settings, workdir, loop.run(settings, workdir, data_dir)


def test_a_run_leaves_the_files_it_should(finished):
    name, settings, workdir, result = finished
    assert json.loads((workdir / 'config.json').read_text())['methods'].keys() == settings.methods.keys()
    labels = json.loads((workdir / 'labels.json').read_text())
    assert len(labels['labeled']) == 20
    assert np.bincount(labels['classes']).tolist() == [2] * 10
    assert result == json.loads((workdir / 'result.json').read_text())
    assert [row['step'] for row in rows(workdir, 'loss')] == [2, 4, 6, 8, 10, 12]
    assert [row['step'] for row in rows(workdir, 'test_accuracy')] == [3, 6, 9, 12]
    accuracies = [row['test_accuracy'] for row in rows(workdir, 'test_accuracy')]
    assert result['test_accuracy'] == {
        'last': accuracies[-1],
        'median_last_20': statistics.median(accuracies),
        'selected': None,
        'best_on_test': max(accuracies),
    }
    assert all(math.isfinite(row['loss']) for row in rows(workdir, 'loss'))
    assert result['protocol']['methods'].keys() == {'supervised', name}
    assert result['seconds'] > 0
    assert {p.name for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()} == {'8', '12'}
    assert result['versions']['jax'] == jax.__version__


def test_a_finished_run_is_not_run_again(finished, data_dir):
    _, settings, workdir, result = finished
    before = (workdir / 'metrics.jsonl').read_bytes()
    assert loop.run(settings, workdir, data_dir) == result
    assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_last_checkpoint_counts_the_steps_and_holds_the_ema(finished, data_dir):
    _, settings, workdir, _ = finished
    state = final_state(settings, workdir, data_dir)
    assert state['.step'] == settings.steps
    assert any(np.any(v != state[k.replace('.ema_params', '.params')]) for k, v in state.items() if '.ema_' in k)


def test_test_images_reach_no_parameter_and_a_run_compiles_its_step_once(
    finished, data_dir, tmp_path, monkeypatch, caplog
):
    _, settings, reference, _ = finished
    load = Streams.load

    def with_another_test_set(*args):
        streams = load(*args)
        images, labels = streams.held_out['test']
        return dataclasses.replace(streams, held_out={'test': (255 - images, (labels + 1) % 10)})

    monkeypatch.setattr(Streams, 'load', with_another_test_set)
    with jax.log_compiles():
        loop.run(settings, tmp_path / 'run', data_dir)
    assert caplog.text.count('Compiling jit(step)') == 1
    monkeypatch.undo()
    states = [final_state(settings, folder, data_dir) for folder in (reference, tmp_path / 'run')]
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)
    assert rows(reference, 'test_loss') != rows(tmp_path / 'run', 'test_loss')


class Killed(BaseException):
    """Ends a run in the middle of the loop, as nothing that the loop handles would."""


@pytest.mark.parametrize('stop', [3, 6, 11])
def test_a_run_that_died_ends_like_an_uninterrupted_one(finished, stop, data_dir, tmp_path, monkeypatch):
    _, settings, reference, _ = finished
    draw = Streams.batch

    def batch(self, stream, seed, step, size):
        if step == stop:
            raise Killed
        return draw(self, stream, seed, step, size)

    with monkeypatch.context() as patch:
        patch.setattr(Streams, 'batch', batch)
        with pytest.raises(Killed):
            loop.run(settings, tmp_path / 'run', data_dir)
    assert not (tmp_path / 'run' / 'result.json').exists()
    loop.run(settings, tmp_path / 'run', data_dir)
    assert_same_end(settings, reference, tmp_path / 'run', data_dir)


def main_process(name, workdir, data_dir, steps):
    tiny = {'batch_size': 4, 'data.unlabeled_ratio': 2, 'model.blocks': '(1,)', 'model.width': 1}
    every = {'steps': steps, 'log_steps': 2, 'eval_steps': 3, 'checkpoint_steps': 4}
    flags = [f'--config.{key}={value}' for key, value in (tiny | every).items()]
    command = (sys.executable, 'main.py', f'--config=configs/{name}.py', f'--workdir={workdir}')
    return subprocess.Popen((*command, f'--data_dir={data_dir}', *flags), cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for(process, path):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)


@pytest.fixture(scope='module', params=['fixmatch', 'self_training'])
def longer(request, make_settings, data_dir, tmp_path_factory):
    """Returns the same as `finished` for a run that lasts long enough to be stopped for sure."""
    settings = make_settings(request.param, steps=60)
    workdir = tmp_path_factory.mktemp('runs') / request.param
    loop.run(settings, workdir, data_dir)
    return request.param, settings, workdir


@pytest.mark.parametrize('moment', ['4', '8.orbax-checkpoint-tmp'])
def test_sigkill_loses_nothing_but_steps_even_during_a_save(longer, moment, data_dir, tmp_path):
    name, settings, reference = longer
    workdir = tmp_path / 'run'
    process = main_process(name, workdir, data_dir, settings.steps)
    wait_for(process, workdir / 'checkpoints' / moment)
    time.sleep(random.uniform(0, 0.02))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / 'result.json').exists()
    again = main_process(name, workdir, data_dir, settings.steps)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert_same_end(settings, reference, workdir, data_dir)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_the_step_saves_and_says_so(longer, number, data_dir, tmp_path):
    name, settings, reference = longer
    workdir = tmp_path / 'run'
    process = main_process(name, workdir, data_dir, settings.steps)
    wait_for(process, workdir / 'checkpoints' / '4')
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number, errors
    assert errors.strip().splitlines()[-1].endswith('The same command continues.')
    assert not (workdir / 'result.json').exists()
    loop.run(settings, workdir, data_dir)
    assert_same_end(settings, reference, workdir, data_dir)


@pytest.mark.parametrize('damage', ['truncated', 'bytes', 'missing'])
def test_damaged_newest_checkpoint_is_reported_and_the_one_before_used(finished, damage, data_dir, tmp_path, caplog):
    _, settings, reference, _ = finished
    workdir = tmp_path / 'run'
    shutil.copytree(reference, workdir)
    (workdir / 'result.json').unlink()
    newest = workdir / 'checkpoints' / '12'
    files = [f for f in newest.rglob('*') if f.is_file() and '/d/' in str(f)]
    assert files
    for file in files:
        content = file.read_bytes()
        if damage == 'truncated':
            file.write_bytes(content[: len(content) // 2])
        elif damage == 'bytes':
            middle = len(content) // 2
            file.write_bytes(
                content[:middle] + bytes(b ^ 255 for b in content[middle : middle + 64]) + content[middle + 64 :]
            )
        else:
            file.unlink()
    loop.run(settings, workdir, data_dir)
    assert 'Checkpoint 12 cannot be read' in caplog.text
    assert_same_end(settings, reference, workdir, data_dir)


def test_other_settings_are_refused_with_the_difference(finished, make_settings, data_dir):
    name, _, workdir, _ = finished
    before = sorted(p.name for p in workdir.iterdir())
    with pytest.raises(UserError, match=r'other settings \(optimizer\.learning_rate was 0\.\d+, now 0\.5\)'):
        loop.run(make_settings(name, **{'optimizer.learning_rate': 0.5}), workdir, data_dir)
    assert sorted(p.name for p in workdir.iterdir()) == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(make_settings, data_dir, tmp_path):
    settings = make_settings('supervised', **{'optimizer.learning_rate': 1e18, 'checkpoint_steps': 1, 'log_steps': 5})
    with pytest.raises(UserError, match=r'not finite at step \d+\.'):
        loop.run(settings, tmp_path / 'run', data_dir)
    for name, value in final_state(settings, tmp_path / 'run', data_dir).items():
        assert np.all(np.isfinite(value)), name


def test_selection_is_by_validation_and_never_by_test(make_settings, data_dir, tmp_path):
    settings = make_settings('supervised', **{'data.validation': 100, 'eval_steps': 2, 'checkpoint_steps': 2})
    result = loop.run(settings, tmp_path / 'run', data_dir)
    evaluations = rows(tmp_path / 'run', 'test_accuracy')
    validation = [row['validation_accuracy'] for row in evaluations]
    best = evaluations[validation.index(max(validation))]
    assert result['test_accuracy']['selected'] == best['test_accuracy']
    kept = {int(path.name) for path in (tmp_path / 'run' / 'checkpoints').iterdir() if path.name.isdigit()}
    assert max(validation) == max(row['validation_accuracy'] for row in evaluations if row['step'] in kept)
    assert {10, 12} <= kept
    assert len(kept) <= 3
    manifest = json.loads((tmp_path / 'run' / 'labels.json').read_text())
    streams = Streams.load(settings, data_dir)
    assert len(manifest['validation']) == 100
    assert not set(manifest['validation']) & set(streams.indices['unlabeled'].tolist())


def test_labels_of_an_earlier_run_can_be_used_again(finished, make_settings, data_dir):
    _, settings, workdir, _ = finished
    other = make_settings('supervised', seed=5, **{'data.manifest': str(workdir / 'labels.json')})
    drawn, reused = (Streams.load(s, data_dir) for s in (settings, other))
    np.testing.assert_array_equal(drawn.indices['labeled'], reused.indices['labeled'])
    assert drawn.manifest == reused.manifest


@pytest.mark.parametrize('count', [1, 7, 512, 513])
def test_evaluation_counts_every_example_exactly_once(count, make_settings, data_dir, mesh, monkeypatch):
    monkeypatch.setattr(evaluation, 'PIXELS', 256 * 8 * 8)
    settings = make_settings('supervised')
    trainer = step_lib.Trainer.create(settings, Streams.load(settings, data_dir).spec(settings))
    variables = trainer.model.init(jax.random.key(0), (8, 8, 1))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 1), np.uint8)
    labels = rng.integers(0, 10, count).astype(np.int32)
    predicted = evaluation.create(trainer, mesh)(variables['params'], variables['batch_stats'], images)
    score = evaluation.score(predicted, labels)
    normalised = (images.astype(np.float32) / 255 - 0.5) / 0.5
    logits = trainer.model.apply(variables, normalised)[0]['logits']
    logits = np.float64(logits)
    np.testing.assert_allclose(predicted, logits, rtol=1e-4, atol=1e-5)
    assert score['accuracy'] == pytest.approx((logits.argmax(-1) == labels).mean())
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert score['loss'] == pytest.approx(-log_p[np.arange(count), labels].mean(), rel=1e-4)


def test_a_folder_that_cannot_be_written_is_a_users_error(make_settings, data_dir, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='Cannot write to'):
        loop.run(make_settings(), tmp_path / 'file' / 'run', data_dir)


def test_one_process_at_a_time_works_in_a_folder(make_settings, tmp_path):
    settings = make_settings()
    with RunFolder(tmp_path / 'run', settings), pytest.raises(UserError, match='Another process is at work'):
        RunFolder(tmp_path / 'run', settings)
    with RunFolder(tmp_path / 'run', settings):
        pass


def test_damaged_metrics_of_a_checkpoint_cost_that_checkpoint_only(make_settings, data_dir, tmp_path, caplog):
    settings = make_settings('supervised', **{'data.validation': 100, 'eval_steps': 2, 'checkpoint_steps': 2})
    result = loop.run(settings, tmp_path / 'run', data_dir)
    (tmp_path / 'run' / 'result.json').unlink()
    (tmp_path / 'run' / 'checkpoints' / '12' / 'metrics' / 'metrics').write_text('')
    again = loop.run(settings, tmp_path / 'run', data_dir)
    assert 'Checkpoint 12 cannot be read' in caplog.text
    assert again['test_accuracy'] == result['test_accuracy']


def test_a_run_is_not_continued_with_other_labels(finished, make_settings, data_dir, tmp_path):
    _, _, workdir, _ = finished
    manifest = json.loads((workdir / 'labels.json').read_text())
    path = tmp_path / 'labels.json'
    path.write_text(json.dumps(manifest))
    settings = make_settings('supervised', **{'data.manifest': str(path)})
    loop.run(settings, tmp_path / 'run', data_dir)
    (tmp_path / 'run' / 'result.json').unlink()
    path.write_text(json.dumps({**manifest, 'seed': 7}))
    with pytest.raises(UserError, match='begun with other labels'):
        loop.run(settings, tmp_path / 'run', data_dir)


def test_a_labeled_loss_of_zero_is_no_warning(make_settings, tmp_path, data_dir, caplog):
    settings = make_settings('supervised')
    trainer, _ = loop.prepare(settings, data_dir)
    with RunFolder(tmp_path / 'run', settings) as folder, loop._Log(folder, trainer, 0) as log:
        for step in range(settings.steps):
            log._watch.row(step, {'supervised/loss': 0.0})
    assert not caplog.records
