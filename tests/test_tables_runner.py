"""The processes of a table, with workers that only say what they are told to: none is left behind or waited for."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tables import runner
from tables.spec import Run
from train import provenance

# A worker that says of each run that it is done. Of seed 7 it dies, and at seed 9 it waits to be stopped.
WORKER = """
import json, os, pickle, sys, time
sys.path.insert(0, sys.argv[1])
task = pickle.load(sys.stdin.buffer)
for settings, folder in zip(task.settings, task.folders):
    if settings.seed == 7:
        os._exit(3)
    while settings.seed == 9 and os.read(0, 1):
        pass
    if settings.seed == 9:
        sys.exit(143)
    print(json.dumps({'folder': folder.name, 'failure': None}), flush=True)
"""


@pytest.fixture
def make(tmp_path, monkeypatch, make_settings):
    """Returns a function: (cells, as lists of seeds; tell) -> runs `runner.make` on them."""
    started = []

    def start(slot, jobs, gpus, log):
        del slot, jobs, gpus
        command = (sys.executable, '-c', WORKER, str(provenance.ROOT))
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, start_new_session=True))
        return started[-1]

    monkeypatch.setattr(runner, '_start', start)

    def run(cells, tell, jobs=2):
        runs = [
            [Run('row', f'column {i}', make_settings('supervised', seed=s)) for s in c] for i, c in enumerate(cells)
        ]
        runner.make(runs, tmp_path, tmp_path / 'logs', tell, jobs)

    yield run
    assert all(process.poll() is not None for process in started), 'a worker is left behind'


def test_every_run_is_told_of_once(make):
    told = []
    make([[0, 1], [2], [3, 4, 5]], lambda run, failure: told.append((run.column, run.settings.seed, failure)))
    assert sorted(told) == [
        (column, seed, None)
        for column, seeds in (('column 0', (0, 1)), ('column 1', (2,)), ('column 2', (3, 4, 5)))
        for seed in seeds
    ]


def test_a_worker_that_dies_costs_the_run_that_it_was_at(make):
    told = {}
    make([[0, 7, 1]], lambda run, failure: told.update({run.settings.seed: failure}))
    assert told[0] is told[1] is None
    assert 'ended with 3' in told[7]


def test_an_error_in_the_program_ends_it(make):
    def tell(run, failure):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make([[0], [1], [2], [9]], tell)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_workers(make, number):
    def tell(run, failure):
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    with pytest.raises(runner.Stopped) as stopped:
        make([[0, 9], [9], [9]], tell)
    assert stopped.value.signal_number == number
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
