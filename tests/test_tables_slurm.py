"""A table as an array job of SLURM: the tasks, what one of them makes, and how one is stopped."""

import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from absl import flags
from fake_tables import table
from ml_collections import config_flags
from test_tables_configs import NAMES, TABLES

from errors import UserError
from tables import command, spec
from train import settings

pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # which ml_collections calls

TINY = ('steps=2', 'eval_steps=2', 'batch_size=4', 'data.unlabeled_ratio=1', 'model.blocks=(1,)', 'model.width=1')


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_command(**changes):
    return command.Command(table(overrides=TINY, **changes), 'small', 'python main.py', None)


def tasks(script):
    """Returns the command of each task."""
    return [shlex.split(line)[0] for line in re.search(r'\nruns=\(\n(.*?)\n\)\n', script, re.S)[1].splitlines()]


def folder_of(words, monkeypatch):
    """Returns the name of the folder in which main.py makes a run with these flags."""
    monkeypatch.setattr(sys, 'argv', words)  # where ml_collections looks for --config.<name>
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file('config', flag_values=values)
    values(words)
    return spec.Run('', '', settings.from_config(config.value)).name


def start(path, task, **environment):
    """Starts a task as SLURM does."""
    where = {'SLURM_ARRAY_TASK_ID': str(task), 'SLURM_ARRAY_JOB_ID': '7', **environment}
    return subprocess.Popen(('bash', path), env={**os.environ, **where}, start_new_session=True)


def test_the_tasks_are_the_runs_that_the_list_says_are_to_be_made(monkeypatch):
    made = make_command()
    wanted = [run.name for cell in made.unfinished() for run in cell]
    script = made.slurm(None)
    assert f'#SBATCH --array=0-{len(wanted) - 1}\n' in script
    assert f'{len(wanted)} runs to make' in made.listing(1)
    assert [folder_of(shlex.split(task)[1:], monkeypatch) for task in tasks(script)] == wanted


@pytest.mark.parametrize('name', NAMES)
def test_what_a_table_overrides_can_be_said_as_flags(name, monkeypatch):
    whole, seen = TABLES[name], set()
    rows = {label: row for label, row in whole.rows.items() if row.overrides or row.arg}
    for run in spec.expand(dataclasses.replace(whole, rows=rows or whole.rows, seeds=whole.seeds[:1])):
        row, column = whole.rows[run.row], whole.columns[run.column]
        if (what := (row.arg, row.overrides, column.overrides)) not in seen:
            seen.add(what)
            assert folder_of(['main.py', *spec.flags(whole, run)], monkeypatch) == run.name


def test_a_task_makes_a_run_that_the_table_takes(data_dir, tmp_path):
    changes = {'seeds': (0,), 'rows': {'Supervised': {'config': 'supervised'}}}
    (tmp_path / 'job.sh').write_text(make_command(**changes).slurm(data_dir))
    before = [run.name for cell in make_command(**changes).unfinished() for run in cell]
    assert start(tmp_path / 'job.sh', 1).wait() == 0
    assert [path.parent.name for path in pathlib.Path('runs').glob('*/result.json')] == before[1:]
    assert [run.name for cell in make_command(**changes).unfinished() for run in cell] == before[:1]
    assert len(tasks(make_command(**changes).slurm(data_dir))) == 1


@pytest.mark.parametrize(
    ('number', 'takes', 'code', 'requeued'),
    [
        (None, 0.01, 3, False),  # it fails of itself
        (signal.SIGUSR1, 99, 143, True),  # near the time limit
        (signal.SIGTERM, 99, 143, False),  # preempted, after which SLURM requeues it, or cancelled
    ],
)
def test_a_task_that_is_told_to_stop_lets_its_run_save(number, takes, code, requeued, tmp_path, monkeypatch):
    programs = {
        'main': f"trap 'kill $!; sleep 0.3; touch saved; exit 143' TERM; sleep {takes} & touch begun; wait $!; exit 3",
        'scontrol': f'echo "$@" > {tmp_path}/requeued',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f'#!/bin/bash\n{text}\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'main'))
    (tmp_path / 'job.sh').write_text(make_command().slurm(None))
    process = start(tmp_path / 'job.sh', 2, PATH=f'{tmp_path}:{os.environ["PATH"]}')
    while not (tmp_path / 'begun').exists():
        time.sleep(0.01)
    if number:
        process.send_signal(number)
    assert process.wait() == code
    assert (tmp_path / 'saved').exists() == bool(number)
    assert (tmp_path / 'requeued').exists() == requeued
    if requeued:
        assert (tmp_path / 'requeued').read_text() == 'requeue 7_2\n'


def test_there_has_to_be_something_to_make():
    with pytest.raises(UserError, match='leave one out'):
        command.Command(table(), 'small', 'python main.py', None, renew=True).slurm(None)
