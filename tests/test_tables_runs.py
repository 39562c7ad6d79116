"""Whole tables with real processes: finished, killed, stopped, failing, made from runs of another table.

What needs no process of its own is in tests/test_tables_command.py and tests/test_tables_runner.py.
"""

import csv
import json
import pathlib
import runpy
import signal
import subprocess
import time

import launch
import pytest

from errors import UserError
from tables import command, render

STEPS, EVERY = 400, 40  # of a run that is to be caught at work

TABLE = """
from ml_collections import ConfigDict

def get_config(arg=''):
    rows = {ROWS}
    return ConfigDict({
        'title': 'Tiny',
        'rows': ConfigDict(rows, sort_keys=False),
        'columns': {'20 labels': {'arg': 'digits,labels=20'}},
        'seeds': (0, 1),
        'shown': 'last',
        'overrides': (
            *('steps=STEPS', 'log_steps=2', 'eval_steps=EVERY', 'checkpoint_steps=EVERY', 'batch_size=4'),
            *('data.unlabeled_ratio=1', 'model.blocks=(1,)', 'model.width=1'),
        ),
    }).lock()
"""
SUPERVISED = "'Supervised': {'config': 'supervised'}"
PSEUDO_LABEL = "'Pseudo-Label': {'config': 'pseudo_label'}"
DIVERGING = "'Diverging': {'config': 'supervised', 'overrides': ('optimizer.learning_rate=1e30',)}"


def write(folder, name, *rows, steps=8, every=4):
    """Writes the config of a table."""
    text = TABLE.replace('ROWS', ', '.join(rows)).replace('STEPS', str(steps)).replace('EVERY', str(every))
    (folder / f'{name}.py').write_text(text)


def start(folder, data_dir, name, *flags):
    """Starts main.py."""
    return launch.Main(f'--config={name}.py', f'--data_dir={data_dir}', *flags, cwd=folder)


def finish(*args):
    process = start(*args)
    output, errors = process.communicate()
    return process.returncode, output, errors


def make_command(name):
    """Returns the command of a table in the working directory, in this process."""
    line = f'python main.py --config={name}.py'
    return command.Command(runpy.run_path(f'{name}.py')['get_config'](), name, line, None)


def results(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in (folder / 'runs').glob('*/result.json')}


def shown(folder, name):
    """Returns {(row, seed): accuracy} of a table, from its CSV file."""
    with open(folder / 'runs' / 'tables' / name / 'table.csv') as file:
        rows = list(csv.DictReader(file))
    return {(r['row'], int(r['seed'])): float(r['accuracy']) for r in rows if r['rule'] == 'last' and r['accuracy']}


@pytest.fixture(scope='module')
def finished(tmp_path_factory, data_dir):
    """Returns (folder, what main.py printed) of a table of two methods and two seeds."""
    folder = tmp_path_factory.mktemp('table')
    write(folder, 'tiny', SUPERVISED, PSEUDO_LABEL)
    code, output, errors = finish(folder, data_dir, 'tiny', '--jobs=2')
    assert code == 0, errors
    return folder, output


def test_a_table_is_the_results_of_its_runs(finished):
    folder, output = finished
    accuracies = shown(folder, 'tiny')
    assert accuracies.keys() == {(row, seed) for row in ('Supervised', 'Pseudo-Label') for seed in (0, 1)}
    for result in results(folder).values():
        row = 'Pseudo-Label' if 'pseudo_label' in result['settings']['methods'] else 'Supervised'
        assert accuracies[row, result['settings']['seed']] == pytest.approx(result['test_accuracy']['last'], abs=1e-4)
    pages = folder / 'runs' / 'tables' / 'tiny'
    assert {p.name for p in pages.iterdir()} == {*render.PAGES, 'logs'}
    for line in (pages / 'table.md').read_text().splitlines()[3:6]:
        assert line in output
    means = [sum(accuracies[row, seed] for seed in (0, 1)) / 2 for row in ('Supervised', 'Pseudo-Label')]
    assert all(f'{100 * mean:.2f} ±' in output for mean in means)
    assert output.count('left\n') == 4
    assert '<img' in (pages / 'index.html').read_text()
    for log in (pages / 'logs').iterdir():
        assert 'error' not in log.read_text().lower(), log.read_text()


def test_a_finished_table_runs_nothing_and_says_so(finished, data_dir, monkeypatch, capsys):
    folder, _ = finished
    before = {path: path.read_bytes() for path in (folder / 'runs').glob('*/metrics.jsonl')}
    code, output, _ = finish(folder, data_dir, 'tiny', '--check')
    assert code == 0
    assert '4 of 4 results' in output
    monkeypatch.chdir(folder)
    listing = make_command('tiny').listing(1)
    assert '2 finished' in listing
    assert '0 runs to make' in listing
    make_command('tiny').make(1, [], data_dir)
    assert '4 runs, 0 of them to be made' in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in before}


def test_tables_share_runs_and_a_failed_one_is_reported_in_its_cell_and_stops_nothing(
    finished, data_dir, monkeypatch, capsys
):
    folder, _ = finished
    write(folder, 'other', DIVERGING, SUPERVISED)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match='2 of 2 runs failed'):
        make_command('other').make(1, [], data_dir)
    assert '4 runs, 2 of them to be made' in capsys.readouterr().out
    assert shown(folder, 'other').keys() == {('Supervised', seed) for seed in (0, 1)}
    page = (folder / 'runs' / 'tables' / 'other' / 'table.md').read_text()
    assert 'failed' in page
    assert 'not finite at step 1' in page


def wait_for_work_in(folder, process, number):
    """Waits until `number` runs are finished and another one has a checkpoint."""
    while True:
        at_work = {path.parents[1].name for path in (folder / 'runs').glob('*/checkpoints/[0-9]*')} - {*results(folder)}
        if len(results(folder)) == number and at_work:
            return
        assert process.poll() is None, process.communicate()
        assert len(results(folder)) <= number
        time.sleep(0.01)


def test_a_killed_and_a_stopped_table_go_on_where_they_were(tmp_path, data_dir, finished, monkeypatch):
    write(tmp_path, 'tiny', SUPERVISED, steps=STEPS, every=EVERY)
    process = start(tmp_path, data_dir, 'tiny')
    wait_for_work_in(tmp_path, process, 0)
    process.kill()
    process.communicate()
    wait_until_nobody_is_at_work(tmp_path)
    assert not results(tmp_path)

    process = start(tmp_path, data_dir, 'tiny')
    wait_for_work_in(tmp_path, process, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, errors
    assert errors.strip().endswith('The same command continues.')
    wait_until_nobody_is_at_work(tmp_path)
    (name,) = results(tmp_path)
    metrics = (tmp_path / 'runs' / name / 'metrics.jsonl').read_bytes()
    page = (tmp_path / 'runs' / 'tables' / 'tiny' / 'table.md').read_text()
    assert 'n=1' in page
    assert 'failed' not in page

    monkeypatch.chdir(tmp_path)
    make_command('tiny').make(1, [], data_dir)
    assert len(results(tmp_path)) == 2
    assert (tmp_path / 'runs' / name / 'metrics.jsonl').read_bytes() == metrics
    for name, result in results(tmp_path).items():
        lines = (tmp_path / 'runs' / name / 'metrics.jsonl').read_text().splitlines()
        steps = [row['step'] for row in map(json.loads, lines) if 'test_accuracy' in row]
        assert steps == list(range(EVERY, STEPS + 1, EVERY)), name
        assert result['test_accuracy']['last'] == shown(tmp_path, 'tiny')['Supervised', result['settings']['seed']]
    logs = [path.read_text() for path in (tmp_path / 'runs' / 'tables' / 'tiny' / 'logs').iterdir()]
    assert ''.join(logs).count('Continuing after step') == 2


def wait_until_nobody_is_at_work(folder):
    """A worker whose parent is gone saves and ends by itself."""
    for _ in range(3000):
        workers = subprocess.run(('pgrep', '-f', 'tables.worker'), capture_output=True, text=True).stdout.split()
        here = [pid for pid in workers if working_directory(pid) == folder]
        if not here:
            return
        time.sleep(0.01)
    raise AssertionError(f'still at work: {here}')


def working_directory(pid):
    try:
        return pathlib.Path(f'/proc/{pid}/cwd').readlink()
    except OSError:
        return None


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config=configs/supervised.py', '--list'], '--list is for tables'),
        (['--config=configs/tables/digits.py', '--jobs=0'], 'jobs'),
        (['--config=configs/tables/digitz.py'], "Did you mean 'configs/tables/digits.py'"),
        (['--config=configs/tables/digits.py', '--config.seedz=(0,)'], "Did you mean 'seeds'"),
    ],
)
def test_mistakes_are_said_in_one_line(arguments, message):
    process = launch.main(*arguments)
    assert process.returncode == 1
    assert message in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
