"""Runs of two processes on this machine, over gloo: the same numbers, one end for all, and what a death leaves."""

import contextlib
import functools
import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import launch
import numpy as np
import pytest
from conftest import TINY
from test_loop import final_state

from errors import UserError
from train import checkpoint, failure, processes
from train import mesh as mesh_lib
from train import run as run_lib
from train import step as step_lib
from train.run_folder import rows

# Global batch norm, with pseudo-labels, two domains and a discriminator, and negatives from the whole batch.
METHODS = {'fixmatch': ('fixmatch', ''), 'dann': ('dann', ''), 'simclr': ('rotation', 'method=simclr')}
RUN = {'steps': 100, 'eval_steps': 50, 'checkpoint_steps': 10, 'log_steps': 1}


def flags_of(count):
    """Returns the flags of every process of a run of several."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    return [(f'--coordinator={address}', f'--num_processes={count}', f'--process_id={i}') for i in range(count)]


def close(a, b):
    """Checks that two dicts of arrays are equal but for rounding."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], rtol=1e-3, atol=1e-4, err_msg=name)


# What two processes compute


def after_steps(settings, data_dir):
    """Returns {name: array} of the state after three steps."""
    from test_behaviour_steps import small_trainer  # only now: it uses JAX when it is imported

    trainer, streams = small_trainer(settings, data_dir)
    mesh = mesh_lib.create(*trainer.batch_sizes.values())
    step = jax.jit(functools.partial(step_lib.step, trainer), out_shardings=jax.P())
    with jax.set_mesh(mesh):
        batch = mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, settings.seed, 0))
        state = mesh_lib.put_replicated(mesh, step_lib.init(trainer, batch))
        for i in range(3):
            batch = mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, settings.seed, i))
            state, _ = step(state, batch)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}


def process(flags, folder, every_settings, data_dir):
    """One of two processes: steps of several methods."""
    jax.config.update('jax_num_cpu_devices', 1)
    coordinator, count, index = (flag.partition('=')[2] for flag in flags)
    with processes.joined(coordinator, int(count), int(index)):
        for name, settings in every_settings.items():
            np.savez(folder / f'{name}-{index}.npz', **after_steps(settings, data_dir))


def test_two_processes_compute_what_one_with_two_devices_does(make_settings, data_dir, tmp_path):
    let = {'fixmatch': {'methods.fixmatch.threshold': 0.1}, 'dann': {'methods.dann.widths': (8,)}}
    made = {
        name: make_settings(*config, **{'data.validation': 0, **let.get(name, {})}) for name, config in METHODS.items()
    }
    alone = {name: after_steps(settings, data_dir) for name, settings in made.items()}
    started = [launch.CONTEXT.Process(target=process, args=(f, tmp_path, made, data_dir)) for f in flags_of(2)]
    for each in started:
        each.start()
    for each in started:
        each.join()
    assert [each.exitcode for each in started] == [0, 0]
    for name, state in alone.items():
        first, second = (dict(np.load(tmp_path / f'{name}-{i}.npz')) for i in (0, 1))
        close(first, state)
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key], err_msg=key)


# One run: begun by one process or two, gone on with by one, by two, and on four devices


@pytest.fixture(scope='module')
def settings(make_settings):
    return make_settings('supervised', **RUN)


@pytest.fixture(scope='module')
def reference(settings, data_dir, tmp_path_factory):
    """The folder of a run of one process that nothing interrupted."""
    workdir = tmp_path_factory.mktemp('reference') / 'run'
    run_lib.run(settings, workdir, data_dir)
    return workdir


@contextlib.contextmanager
def two(workdir, data_dir, devices=1):
    """Starts main.py twice, as the processes of one run."""
    words = ['--config=configs/supervised.py', f'--workdir={workdir}', f'--data_dir={data_dir}']
    words += [f'--config.{key}={value}' for key, value in {**TINY, **RUN}.items()]
    started = [launch.Main(*words, *flags, devices=devices) for flags in flags_of(2)]
    try:
        yield started
    finally:
        for each in started:
            each.kill()
            each.communicate()


def wait_for_steps_after_a_checkpoint(workdir, started):
    """Waits for a new checkpoint and a few steps more, so that the next one is far."""

    def checkpoint_and_step():
        saved = max((int(p.name) for p in workdir.glob('checkpoints/*') if p.name.isdigit()), default=0)
        return saved, max((row['step'] for row in rows(workdir)), default=0) if saved else 0

    before, _ = checkpoint_and_step()
    saved = step = before
    while saved == before or step < saved + 3:
        assert all(each.poll() is None for each in started), [each.communicate() for each in started]
        time.sleep(0.01)
        saved, step = checkpoint_and_step()


@pytest.fixture(scope='module')
def interrupted(data_dir, tmp_path_factory):
    """(folder, exit codes, outputs) of a run of two processes of which the second was told to stop."""
    workdir = tmp_path_factory.mktemp('processes') / 'run'
    with two(workdir, data_dir) as started:
        wait_for_steps_after_a_checkpoint(workdir, started)
        started[1].send_signal(signal.SIGTERM)
        outputs = [each.communicate() for each in started]
    return workdir, [each.returncode for each in started], outputs


def test_a_signal_to_any_process_stops_all_after_the_same_step(interrupted):
    workdir, codes, ((_, errors), others) = interrupted
    assert codes == [128 + signal.SIGTERM] * 2, (errors, others)
    step, state = checkpoint.read(workdir)
    assert step == state['step'] < RUN['steps']
    assert errors.splitlines()[-1] == f'Interrupted after step {step}, saved in {workdir}. The same command continues.'
    assert others == ('', '')
    assert not (workdir / 'result.json').exists()


def test_one_process_goes_on_with_what_two_began(interrupted, settings, reference, data_dir, tmp_path, caplog):
    shutil.copytree(interrupted[0], tmp_path / 'run')
    run_lib.run(settings, tmp_path / 'run', data_dir)
    assert 'Begun on 2 devices of 2 processes, continued on 2: equal but for rounding.' in caplog.text
    close(final_state(tmp_path / 'run'), final_state(reference))


def test_two_processes_go_on_after_the_death_of_one_and_on_other_devices(interrupted, reference, data_dir, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(interrupted[0], workdir)
    with two(workdir, data_dir) as started:
        wait_for_steps_after_a_checkpoint(workdir, started)
        started[1].send_signal(signal.SIGKILL)
        began = time.monotonic()
        output, errors = started[0].communicate()
        assert time.monotonic() - began < 60
    assert started[0].returncode not in (0, None)
    assert 'Continuing after step' in output
    (line,) = (line for line in errors.splitlines() if not line.startswith(('step ', 'warning:')))
    assert line.startswith(failure.LINE)
    with two(workdir, data_dir, devices=2) as started:
        (output, errors), others = (each.communicate() for each in started)
    assert [each.returncode for each in started] == [0, 0], (errors, others)
    assert others == ('', '')
    assert 'Continuing after step' in output
    assert 'Begun on 2 devices of 2 processes, continued on 4 of 2 processes' in errors
    close(final_state(workdir), final_state(reference))
    ends = [json.loads((folder / 'result.json').read_text()) for folder in (workdir, reference)]
    for rule, value in ends[0]['test_accuracy'].items():
        assert value is None or math.isclose(value, ends[1]['test_accuracy'][rule], abs_tol=0.005)


def test_two_processes_go_on_with_what_one_began(settings, reference, data_dir, tmp_path, dies_at):
    workdir = tmp_path / 'run'
    with dies_at(RUN['steps'] - 10):
        run_lib.run(settings, workdir, data_dir)
    with two(workdir, data_dir) as started:
        outputs = [each.communicate() for each in started]
    assert [each.returncode for each in started] == [0, 0], outputs
    assert 'Begun on 2 devices, continued on 2 of 2 processes: equal but for rounding.' in outputs[0][1]
    close(final_state(workdir), final_state(reference))


# How processes are started


@pytest.mark.parametrize(
    ('coordinator', 'count', 'index', 'message'),
    [
        ('localhost:1', None, None, 'without --num_processes=N and --process_id=I here'),
        (None, 2, 0, 'without --coordinator=HOST:PORT here'),
        ('localhost:1', 2, 2, '--process_id=2 must be from 0 to 1'),
        ('localhost', 2, 0, "--coordinator must be HOST:PORT, such as localhost:1234, not 'localhost'"),
    ],
)
def test_mistakes_in_the_numbers_of_processes(coordinator, count, index, message):
    with pytest.raises(UserError, match=message), processes.joined(coordinator, count, index):
        pass


SLURM = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'node1', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}


@pytest.mark.parametrize(
    ('environment', 'given', 'starts'),
    [
        ({}, (None, None, None), False),
        ({}, ('localhost:1', 1, 0), False),
        ({**SLURM, 'SLURM_NTASKS': '1'}, (None, None, None), False),
        ({**SLURM, 'SLURM_NTASKS': '2'}, (None, None, None), True),
        ({'JAX_COORDINATOR_ADDRESS': 'localhost:1'}, (None, 2, 1), True),
        ({'JAX_COORDINATOR_ADDRESS': 'localhost:1'}, (None, None, None), False),
    ],
)
def test_only_several_processes_start_the_distributed_service(environment, given, starts, monkeypatch):
    def start(**values):
        raise RuntimeError('it starts')

    monkeypatch.setattr(jax.distributed, 'initialize', start)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    expected = pytest.raises(UserError, match='it starts') if starts else contextlib.nullcontext()
    with expected, processes.joined(*given):
        pass


FATAL = 'F1128 14:24:45.960917    6376 client.h:80] Terminating process because the JAX distributed service detected'
ERROR = 'E1128 14:25:10.303021    6682 coordination_service_agent.cc:289] Polled an error from coordination service'


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (f'one\n{FATAL} fatal errors.\n*** Check failure stack trace: ***\n', f'one\n{failure.LINE}\n'),
        (f'{ERROR} (this can be an error from this).\n{FATAL} fatal errors.\n', f'{failure.LINE}\n'),
        (f'{failure.LINE} (why)\n{FATAL} fatal errors.\n', f'{failure.LINE} (why)\n'),
        ('F1128 14:24:45.9 1 buffer.cc:1] Check failed: x\nE1128 of another kind\n', None),
    ],
)
def test_one_line_stands_for_all_that_is_written_when_a_process_is_gone(text, expected):
    done = subprocess.run((sys.executable, failure.__file__), input=text, capture_output=True, text=True, check=True)
    assert done.stderr == (text if expected is None else expected)
