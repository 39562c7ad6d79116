"""Whole tables by main.py, as users make them: finished, killed, stopped, failing, made from runs of another table."""

import csv
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]

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
            *('steps=STEPS', 'log_steps=2', 'eval_steps=4', 'checkpoint_steps=4', 'batch_size=4'),
            *('data.unlabeled_ratio=1', 'model.blocks=(1,)', 'model.width=1', "data.strong.ops=('Rotate', 'Solarize')"),
        ),
    }).lock()
"""
SUPERVISED = "'Supervised': {'config': 'supervised'}"
FIXMATCH = "'FixMatch': {'config': 'fixmatch'}"
DIVERGING = "'Diverging': {'config': 'supervised', 'overrides': ('optimizer.learning_rate=1e30',)}"


def write(folder, name, *rows, steps=8):
    folder.mkdir(exist_ok=True)
    text = TABLE.replace('ROWS', ', '.join(rows)).replace('STEPS', str(steps))
    (folder / f'{name}.py').write_text(text)


def start(folder, data_dir, name, *flags):
    command = (sys.executable, ROOT / 'main.py', f'--config={name}.py', f'--data_dir={data_dir}', *flags)
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*args):
    process = start(*args)
    output, errors = process.communicate()
    return process.returncode, output, errors


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
    write(folder, 'tiny', SUPERVISED, FIXMATCH)
    code, output, errors = finish(folder, data_dir, 'tiny', '--jobs=2')
    assert code == 0, errors
    return folder, output


def test_a_table_is_the_results_of_its_runs(finished):
    folder, output = finished
    found = shown(folder, 'tiny')
    assert found.keys() == {(row, seed) for row in ('Supervised', 'FixMatch') for seed in (0, 1)}
    for result in results(folder).values():
        row = 'FixMatch' if 'fixmatch' in result['settings']['methods'] else 'Supervised'
        assert found[row, result['settings']['seed']] == pytest.approx(result['test_accuracy']['last'], abs=1e-4)
        assert result['seeds_together'] == 1
    pages = folder / 'runs' / 'tables' / 'tiny'
    assert {p.name for p in pages.iterdir()} >= {'table.md', 'table.tex', 'table.csv', 'table.json', 'index.html'}
    for line in (pages / 'table.md').read_text().splitlines()[1:4]:
        assert line in output
    means = [sum(found[row, seed] for seed in (0, 1)) / 2 for row in ('Supervised', 'FixMatch')]
    assert all(f'{100 * mean:.2f} ±' in output for mean in means)
    assert output.count('left\n') == 4
    assert '<img' in (pages / 'index.html').read_text()
    for log in (pages / 'logs').iterdir():
        assert 'error' not in log.read_text().lower(), log.read_text()


def test_a_finished_table_runs_nothing_and_says_so(finished, data_dir):
    folder, _ = finished
    before = {path: path.read_bytes() for path in (folder / 'runs').glob('*/metrics.jsonl')}
    code, output, _ = finish(folder, data_dir, 'tiny', '--list')
    assert code == 0
    assert '2 finished' in output
    assert '0 runs to make' in output
    code, output, _ = finish(folder, data_dir, 'tiny')
    assert code == 0
    assert '4 runs, 0 of them to be made' in output
    assert before == {path: path.read_bytes() for path in before}
    code, output, _ = finish(folder, data_dir, 'tiny', '--check')
    assert code == 0
    assert '4 of 4 results' in output


def test_tables_share_runs_and_a_failed_one_is_reported_in_its_cell_and_stops_nothing(finished, data_dir):
    folder, _ = finished
    write(folder, 'other', DIVERGING, SUPERVISED, "'Soft': {'config': 'fixmatch', 'overrides': ('ema_decay=0.5',)}")
    code, output, errors = finish(folder, data_dir, 'other', '--seeds_together')
    assert code == 1
    assert errors.splitlines()[-1].startswith('error: 2 of 4 runs failed')
    assert '6 runs, 4 of them to be made' in output
    assert shown(folder, 'other').keys() == {(row, seed) for row in ('Supervised', 'Soft') for seed in (0, 1)}
    page = (folder / 'runs' / 'tables' / 'other' / 'table.md').read_text()
    assert 'failed' in page
    assert 'not finite at step 1' in page
    together = [r['seeds_together'] for r in results(folder).values() if r['settings']['ema_decay'] == 0.5]
    assert together == [2, 2]


def checkpoints(folder):
    return [path for path in (folder / 'runs').glob('*/checkpoints/[0-9]*') if path.name.isdigit()]


def test_a_killed_and_a_stopped_table_go_on_where_they_were(tmp_path, data_dir, finished):
    write(tmp_path, 'tiny', SUPERVISED, FIXMATCH, steps=120)
    process = start(tmp_path, data_dir, 'tiny')
    while not results(tmp_path) or len({path.parents[1] for path in checkpoints(tmp_path)}) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()  # in the middle of the second run
    process.communicate()
    wait_until_nobody_is_at_work(tmp_path)
    before = results(tmp_path)
    assert 1 <= len(before) < 4
    metrics = {name: (tmp_path / 'runs' / name / 'metrics.jsonl').read_bytes() for name in before}

    process = start(tmp_path, data_dir, 'tiny')
    while len(results(tmp_path)) < len(before) + 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, errors
    assert errors.strip().endswith('The same command continues.')
    wait_until_nobody_is_at_work(tmp_path)
    assert '—' in (tmp_path / 'runs' / 'tables' / 'tiny' / 'table.md').read_text() or len(results(tmp_path)) > 2

    code, _, errors = finish(tmp_path, data_dir, 'tiny', '--jobs=2')
    assert code == 0, errors
    assert len(results(tmp_path)) == 4
    for name, content in metrics.items():
        assert (tmp_path / 'runs' / name / 'metrics.jsonl').read_bytes() == content
    for name, result in results(tmp_path).items():
        lines = (tmp_path / 'runs' / name / 'metrics.jsonl').read_text().splitlines()
        steps = [row['step'] for row in map(json.loads, lines) if 'test_accuracy' in row]
        assert steps == list(range(4, 121, 4)), name
        assert (
            result['test_accuracy']['last']
            == shown(tmp_path, 'tiny')[
                'FixMatch' if 'fixmatch' in result['settings']['methods'] else 'Supervised', result['settings']['seed']
            ]
        )


def wait_until_nobody_is_at_work(folder):
    """A worker whose parent is gone saves and ends by itself."""
    for _ in range(3000):
        found = subprocess.run(('pgrep', '-f', 'tables.worker'), capture_output=True, text=True).stdout.split()
        here = [pid for pid in found if working_directory(pid) == folder]
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
        (['--config=configs/tables/digits.py', '--config.shown=lats'], "Did you mean 'last'"),
        (['--config=configs/tables/digits.py', '--jobs=0'], 'jobs'),
        (['--config=configs/tables/digitz.py'], "Did you mean 'configs/tables/digits.py'"),
        (['--config=configs/tables/digits.py', '--config.seedz=(0,)'], "Did you mean 'seeds'"),
    ],
)
def test_mistakes_are_said_in_one_line(arguments, message):
    process = subprocess.run((sys.executable, 'main.py', *arguments), cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert message in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
