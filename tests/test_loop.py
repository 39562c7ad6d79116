"""Whole runs: the run folder, exact evaluation, stopping and going on."""

import contextlib
import dataclasses
import functools
import json
import math
import random
import shutil
import signal
import statistics
import time

import jax
import launch
import numpy as np
import pytest
from conftest import TINY

from errors import UserError
from train import checkpoint, diagnostics, evaluation, log, run_folder
from train import run as run_lib
from train.run_folder import RunFolder
from train.streams import Streams
from train.trainer import Metrics

TIMES = {'seconds', 'images_per_second'}  # what may differ between equal runs


def rows(workdir, kind='step'):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [row for row in map(json.loads, lines) if kind in row]


def without_times(workdir):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(workdir)]


def final_state(workdir):
    """Returns every array of the last checkpoint by name."""
    leaves = jax.tree_util.tree_leaves_with_path(checkpoint.read(workdir)[1])
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def assert_same_state(a, b):
    a, b = final_state(a), final_state(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def assert_same_end(a, b):
    assert_same_state(a, b)
    assert without_times(a) == without_times(b)
    results = [json.loads((folder / 'result.json').read_text())['test_accuracy'] for folder in (a, b)]
    assert results[0] == results[1]


@pytest.fixture(scope='module')
def finished(make_settings, data_dir, tmp_path_factory):
    """Returns a function: config -> (settings, folder, result) of a run that was not interrupted."""

    @functools.cache
    def make(name: str, **overrides):
        settings = make_settings(name, **overrides)
        workdir = tmp_path_factory.mktemp('runs') / name
        # A trace changes nothing, or the others would not end alike.
        return settings, workdir, run_lib.run(settings, workdir, data_dir, profile=name == 'self_training')

    return make


# One method without rounds and one with; tests/test_behaviour_steps.py has all of them through a checkpoint.
BOTH = pytest.mark.parametrize('name', ['fixmatch', 'self_training'])


@pytest.fixture
def compiled(caplog):
    """Returns a function: name -> how often JAX has compiled a function of that name, in any thread."""
    jax.config.update('jax_log_compiles', True)  # jax.log_compiles() is for one thread
    yield lambda name: caplog.text.count(f'Compiling jit({name})')
    jax.config.update('jax_log_compiles', False)


@BOTH
def test_a_run_leaves_the_files_it_should(name, finished):
    settings, workdir, result = finished(name)
    assert json.loads((workdir / 'config.json').read_text())['methods'].keys() == settings.methods.keys()
    labels = json.loads((workdir / 'labels.json').read_text())
    assert len(labels['labeled']) == 20
    assert np.bincount(labels['classes']).tolist() == [2] * 10
    assert result == json.loads((workdir / 'result.json').read_text()) == run_folder.finished(workdir)
    assert len(list(workdir.glob('profile/**/*.xplane.pb'))) == (name == 'self_training')
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
    assert result['devices'] == 2
    assert result['device'].startswith('2 x ')
    assert {p.name for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()} == {'8', '12'}
    assert result['versions']['jax'] == jax.__version__
    state = final_state(workdir)
    assert state["['step']"] == settings.steps
    assert any(np.any(v != state[k.replace('ema_params', 'params')]) for k, v in state.items() if 'ema_params' in k)


def test_a_folder_is_named_by_all_methods_and_by_all_settings(make_settings):
    names = [run_folder.default(make_settings(seed=seed)).name for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert all(name.startswith('fixmatch+supervised-digits-20-') for name in names)


def test_a_finished_run_is_not_run_again(finished, data_dir, capsys):
    settings, workdir, result = finished('fixmatch')
    before = (workdir / 'metrics.jsonl').read_bytes()
    assert run_lib.run(settings, workdir, data_dir) == result
    assert (workdir / 'metrics.jsonl').read_bytes() == before
    assert capsys.readouterr().out == f'{workdir} holds this very run, finished.\n'


@BOTH
def test_test_images_reach_no_parameter_and_a_run_compiles_its_step_once(
    name, finished, data_dir, tmp_path, monkeypatch, compiled
):
    settings, reference, _ = finished(name)
    load = Streams.load

    def with_another_test_set(*args):
        streams = load(*args)
        images, labels = streams.held_out['test']
        return dataclasses.replace(streams, held_out={'test': (255 - images, (labels + 1) % 10)})

    monkeypatch.setattr(Streams, 'load', with_another_test_set)
    before = compiled('step')
    run_lib.run(settings, tmp_path / 'run', data_dir)
    assert compiled('step') == before + 1
    assert_same_state(reference, tmp_path / 'run')
    assert rows(reference, 'test_loss') != rows(tmp_path / 'run', 'test_loss')


def test_the_memory_of_a_method_is_whole_on_every_device(make_settings, data_dir, tmp_path, compiled):
    """As it comes from a checkpoint: split over the devices it would make the second step another program."""
    run_lib.run(make_settings('comatch', steps=2), tmp_path / 'run', data_dir)
    assert compiled('step') == 1


@BOTH
def test_a_run_that_died_again_and_again_ends_like_an_uninterrupted_one(name, finished, data_dir, tmp_path, dies_at):
    """Before the first checkpoint, between a checkpoint and a round (after step 6), and shortly before the end."""
    settings, reference, _ = finished(name)
    for step in (3, 6, 11):
        with dies_at(step):
            run_lib.run(settings, tmp_path / 'run', data_dir)
        assert not (tmp_path / 'run' / 'result.json').exists()
    run_lib.run(settings, tmp_path / 'run', data_dir)
    assert_same_end(reference, tmp_path / 'run')


# Real signals, to main.py


@contextlib.contextmanager
def main_process(name, workdir, data_dir, **overrides):
    flags = [f'--config.{key}={value}' for key, value in {**TINY, **overrides}.items()]
    folders = f'--workdir={workdir}', f'--data_dir={data_dir}'
    process = launch.Main(f'--config=configs/{name}.py', *folders, *flags)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process, path):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def test_killed_and_stopped_by_signals_a_run_ends_like_an_uninterrupted_one(finished, data_dir, tmp_path):
    """SIGKILL during a save, SIGTERM and Ctrl-C; the same command continues each time.

    Death between saves is tested above, without a process for each.
    """
    steps = 60  # enough to be stopped three times for sure
    name, workdir = 'self_training', tmp_path / 'run'
    _, reference, _ = finished(name, steps=steps)

    def next_save():
        latest = max((int(p.name) for p in workdir.glob('checkpoints/*') if p.name.isdigit()), default=0)
        return latest // TINY['checkpoint_steps'] * TINY['checkpoint_steps'] + TINY['checkpoint_steps']

    with main_process(name, workdir, data_dir, steps=steps) as process:
        wait_for(process, workdir / 'checkpoints' / f'{next_save()}.orbax-checkpoint-tmp')
        time.sleep(random.uniform(0, 0.02))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert not (workdir / 'result.json').exists()
    for number in (signal.SIGTERM, signal.SIGINT):
        with main_process(name, workdir, data_dir, steps=steps) as process:
            wait_for(process, workdir / 'checkpoints' / str(next_save()))
            process.send_signal(number)
            _, errors = process.communicate()
            assert process.returncode == 128 + number, errors
        step, state = checkpoint.read(workdir)
        assert f'Interrupted after step {step}, saved in {workdir}.' in errors
        assert errors.strip().splitlines()[-1].endswith('The same command continues.')
        assert step == state['step'] < steps
        assert not (workdir / 'result.json').exists()
    with main_process(name, workdir, data_dir, steps=steps) as process:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
    assert f'Continuing after step {step}.' in output
    assert f'--config.model.pretrained={workdir}' in output.splitlines()[-1]
    assert_same_end(reference, workdir)


# Damage


@pytest.mark.filterwarnings('ignore')  # orbax has its own to say
@pytest.mark.parametrize('damage', ['truncated', 'bytes', 'missing'])
def test_damaged_newest_checkpoint_is_reported_and_the_one_before_used(finished, damage, data_dir, tmp_path, caplog):
    settings, reference, _ = finished('fixmatch')
    workdir = tmp_path / 'run'
    shutil.copytree(reference, workdir)
    (workdir / 'result.json').unlink()
    newest = workdir / 'checkpoints' / '12'
    files = [f for f in newest.rglob('*') if f.is_file() and '/d/' in str(f)]
    assert files
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        if damage == 'truncated':
            file.write_bytes(content[:middle])
        elif damage == 'bytes':
            changed = bytes(b ^ 255 for b in content[middle : middle + 64])
            file.write_bytes(content[:middle] + changed + content[middle + 64 :])
        else:
            file.unlink()
    run_lib.run(settings, workdir, data_dir)
    assert 'Checkpoint 12 cannot be read' in caplog.text
    assert_same_end(reference, workdir)


def test_other_settings_are_refused_with_the_difference(finished, make_settings, data_dir):
    _, workdir, _ = finished('fixmatch')
    before = sorted(p.name for p in workdir.iterdir())
    with pytest.raises(UserError, match=r'other settings \(optimizer\.learning_rate was 0\.\d+, now 0\.5\)'):
        run_lib.run(make_settings('fixmatch', **{'optimizer.learning_rate': 0.5}), workdir, data_dir)
    assert sorted(p.name for p in workdir.iterdir()) == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(make_settings, data_dir, tmp_path):
    settings = make_settings('supervised', **{'optimizer.learning_rate': 1e18, 'checkpoint_steps': 1, 'log_steps': 5})
    with pytest.raises(UserError, match=r'not finite at step \d+\.'):
        run_lib.run(settings, tmp_path / 'run', data_dir)
    for name, value in final_state(tmp_path / 'run').items():
        assert np.all(np.isfinite(value)), name


VALIDATED = {'data.validation': 100, 'eval_steps': 2, 'checkpoint_steps': 2}


def test_selection_is_by_validation_and_never_by_test(finished, data_dir):
    settings, workdir, result = finished('supervised', **VALIDATED)
    evaluations = rows(workdir, 'test_accuracy')
    validation = [row['validation_accuracy'] for row in evaluations]
    best = evaluations[validation.index(max(validation))]
    assert result['test_accuracy']['selected'] == best['test_accuracy']
    kept = {int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()}
    assert max(validation) == max(row['validation_accuracy'] for row in evaluations if row['step'] in kept)
    assert {10, 12} <= kept
    assert len(kept) <= 3
    manifest = json.loads((workdir / 'labels.json').read_text())
    streams = Streams.load(settings, data_dir)
    assert len(manifest['validation']) == 100
    assert not set(manifest['validation']) & set(streams.indices['unlabeled'].tolist())


def test_damaged_metrics_of_a_checkpoint_cost_that_checkpoint_only(finished, data_dir, tmp_path, caplog):
    settings, reference, result = finished('supervised', **VALIDATED)
    shutil.copytree(reference, tmp_path / 'run')
    (tmp_path / 'run' / 'result.json').unlink()
    (tmp_path / 'run' / 'checkpoints' / '12' / 'metrics' / 'metrics').write_text('')
    again = run_lib.run(settings, tmp_path / 'run', data_dir)
    assert 'Checkpoint 12 cannot be read' in caplog.text
    assert again['test_accuracy'] == result['test_accuracy']


def test_labels_of_an_earlier_run_can_be_used_again(finished, make_settings, data_dir):
    settings, workdir, _ = finished('fixmatch')
    other = make_settings('supervised', seed=5, **{'data.manifest': str(workdir / 'labels.json')})
    drawn, reused = (Streams.load(s, data_dir) for s in (settings, other))
    np.testing.assert_array_equal(drawn.indices['labeled'], reused.indices['labeled'])
    assert drawn.manifest == reused.manifest


def test_a_run_is_not_continued_with_other_labels(finished, make_settings, data_dir, tmp_path, dies_at):
    _, workdir, _ = finished('fixmatch')
    manifest = json.loads((workdir / 'labels.json').read_text())
    path = tmp_path / 'labels.json'
    path.write_text(json.dumps(manifest))
    settings = make_settings('supervised', **{'data.manifest': str(path)})
    with dies_at(1):
        run_lib.run(settings, tmp_path / 'run', data_dir)
    path.write_text(json.dumps({**manifest, 'seed': 7}))
    with pytest.raises(UserError, match='begun with other labels'):
        run_lib.run(settings, tmp_path / 'run', data_dir)


def test_evaluation_counts_every_example_exactly_once(make_settings, data_dir, mesh, monkeypatch):
    monkeypatch.setattr(evaluation, 'CPU_PIXELS', 128 * 8 * 8)
    trainer, _ = run_lib.prepare(make_settings('supervised'), data_dir)
    variables = trainer.model.init(jax.random.key(0), (8, 8, 1))
    predict = functools.partial(evaluation.create(trainer, mesh), variables['params'], variables['batch_stats'])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (513, 8, 8, 1), np.uint8)
    labels = rng.integers(0, 10, 513).astype(np.int32)
    normalised = (images.astype(np.float32) / 255 - 0.5) / 0.5
    logits = trainer.model.apply(variables, normalised)[0]['logits']
    logits = np.float64(logits)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for count in (1, 7, 512, 513):
        predicted = predict(images[:count])
        np.testing.assert_allclose(predicted, logits[:count], rtol=1e-4, atol=1e-5)
        score = evaluation.score(predicted, labels[:count])
        assert score['accuracy'] == pytest.approx((logits.argmax(-1) == labels)[:count].mean())
        assert score['loss'] == pytest.approx(-log_p[np.arange(count), labels[:count]].mean(), rel=1e-4)


def test_a_folder_that_cannot_be_written_is_a_users_error(make_settings, data_dir, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='Cannot write to'):
        run_lib.run(make_settings(), tmp_path / 'file' / 'run', data_dir)


def test_one_process_at_a_time_works_in_a_folder(make_settings, tmp_path):
    settings = make_settings()
    with RunFolder(tmp_path / 'run', settings), pytest.raises(UserError, match='Another process is at work'):
        RunFolder(tmp_path / 'run', settings)
    with RunFolder(tmp_path / 'run', settings):
        pass


# What a run says on the way


@pytest.mark.parametrize(('name', 'silent'), [('supervised', {'supervised': 12}), ('fixmatch', {'supervised': 12})])
def test_a_labeled_loss_of_zero_is_no_warning(name, silent, make_settings, data_dir, caplog):
    settings = make_settings(name)
    trainer, _ = run_lib.prepare(settings, data_dir)
    assert log.silent_steps(trainer) == silent
    watch = diagnostics.Watch(settings.steps, log.silent_steps(trainer))
    for step in range(settings.steps):
        watch.row(step, {'supervised/loss': 0.0})
    assert not caplog.records


def test_lines_of_a_log_file_have_the_speed_of_now_and_the_time_that_is_left(
    make_settings, data_dir, tmp_path, monkeypatch, capsys
):
    """The first step takes a minute, the others 10 seconds, an evaluation after step 6 100 seconds."""
    settings = make_settings('supervised')  # 12 steps of 4 images, a row every 2
    trainer, _ = run_lib.prepare(settings, data_dir)
    now = 0.0
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    names = ('loss', 'gradient_norm', 'parameter_norm')
    metrics = Metrics({name: np.float32([2, 1]) for name in names}, {})
    with RunFolder(tmp_path / 'run', settings) as folder, log.Log(folder, trainer, 0) as lines:
        for step in range(1, 13):
            now += 60 if step == 1 else 10
            lines.step(step, metrics)
            lines.flush()
            if step == 6:
                now += 100
                lines.evaluation(step, {'test_accuracy': 0.5})
    assert [line.split(', ')[:3] for line in capsys.readouterr().err.splitlines()] == [
        [f'step {step} of 12', f'{left} left', '0.1 steps/s']
        for step, left in ((2, '01:40'), (4, '01:20'), (6, '01:00'), (8, '00:40'), (10, '00:20'))
    ] + [['step 12 of 12', '0.1 steps/s', 'loss 2.000']]
    speeds = [row['images_per_second'] for row in rows(tmp_path / 'run', 'loss')]
    np.testing.assert_allclose(speeds, 0.4)
    assert rows(tmp_path / 'run')[-1]['seconds'] == 60 + 11 * 10 + 100
