"""What a table's command makes, keeps, lists and checks; the runs themselves are fakes."""

import json
import pathlib
import shutil

import pytest
from fake_tables import SMALL, expand, table, write_run

from errors import UserError
from tables import command, page, record, runner, spec
from train import provenance

FOLDER = pathlib.Path('results/small')


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """Makes everything in an empty folder, and pages without the curves, which take a second to draw."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, '_figure', lambda curves: None)


def make_command(renew=False, workdir=FOLDER, **changes):
    return command.Command(table(**changes), 'small', 'python main.py', workdir, renew)


def make(**kwargs):
    """Returns what the command prints at its end."""
    return make_command(**kwargs).make(1, [], None)


def record_results(accuracy=0.958, **changes):
    """Makes the table in FOLDER, without the run folders it was made from, as it is in a repository."""
    for run in expand():
        write_run(command.RUNS, run, accuracy, **changes)
    make()
    shutil.rmtree(command.RUNS)


def pages():
    return {path.name: path.read_text() for path in FOLDER.iterdir()}


def entries():
    """Returns the recorded runs."""
    content = json.loads((FOLDER / 'table.json').read_text())
    return [run for cell in content['cells'] for run in cell['runs']]


@pytest.fixture
def fake_make(monkeypatch):
    """Makes runs of accuracy 0.5 in no time. Returns the names of those made; of more than `limit` none is made."""
    made = []

    def fake(cells, folder, logs, tell, *others):
        for run in (run for cell in cells for run in cell):
            if len(made) == fake.limit:
                raise runner.Stopped(2)
            write_run(folder, run, 0.5)
            made.append(run.name)
            tell(run, None)

    fake.made, fake.limit = made, None
    monkeypatch.setattr(runner, 'make', fake)
    return fake


def test_the_runs_of_a_user_do_not_change_recorded_results(monkeypatch):
    """The README's first command on two devices, then the command of a table that records that run on one."""
    record_results(device='1 x cpu (x86_64)')
    before = pages()
    write_run(command.RUNS, expand()[0], 0.97, device='2 x cpu (x86_64)')
    monkeypatch.setattr(provenance, 'commit', lambda: 'a later commit')
    text = make()
    assert '95.80' in text
    assert 'renew' not in text
    assert pages() == before
    make(renew=True)  # they are of the present code
    assert pages() == before
    fresh, text = make_command().check()
    assert fresh
    assert text.startswith('8 of 8 results')


def test_the_run_of_a_user_in_a_table_without_recorded_results_is_marked(fake_make):
    run, *others = expand()
    write_run(command.RUNS, run, 0.97, device='2 x cpu (x86_64)')
    text = make()
    assert fake_make.made == [run.name for run in others]
    assert [(run['devices'], run['values']['last']) for run in entries()] == [(2, 0.97), *[(1, 0.5)] * 7]
    assert text.count('devices') == 1
    assert '(1 and 2 devices)' in text


def test_results_of_other_code_stay_until_they_are_renewed(fake_make):
    record_results(sources='123')
    before = pages()
    run, *others = expand()
    write_run(command.RUNS, run, 0.97)  # of the present code
    text = make()
    assert '8 results are of other code than the present; --renew makes them again' in text
    assert pages() == before
    assert fake_make.made == []
    assert make_command(renew=True).listing(1).splitlines()[-1].startswith('7 runs to make')

    fake_make.limit = 3
    with pytest.raises(runner.Stopped):
        make(renew=True)
    assert [run['values']['last'] for run in entries()] == [0.97, 0.5, 0.5, 0.5, *[0.958] * 4]
    fake_make.limit = None
    assert '--renew' not in make(renew=True)
    assert fake_make.made == [run.name for run in others]
    assert [run['values']['last'] for run in entries()] == [0.97, *[0.5] * 7]
    assert make_command().check()[0]


def test_a_renewed_run_leaves_the_old_folder_aside(fake_make):
    for run in expand():
        write_run(command.RUNS, run, 0.9, sources='123')
    assert '8 results are of other code' in make()
    assert {run['sources'] for run in entries()} == {'123'}
    make(renew=True)
    assert [run['values']['last'] for run in entries()] == [0.5] * 8
    aside = sorted(path.name for path in (command.RUNS / 'stale').iterdir())
    assert aside == sorted(f'{run.name}-1' for run in expand())


def test_recorded_results_of_other_settings_are_lost_by_renewing_only(fake_make):
    record_results()
    before = pages()
    with pytest.raises(UserError, match='8 results that are not of this table'):
        make(overrides=(*SMALL, 'ema_decay=0.5'))
    with pytest.raises(UserError, match='4 results that are not of this table'):
        make(seeds=(0,))
    with pytest.raises(UserError, match='4 results that are not of this table'):
        make(seeds=(0,), renew=True)  # does not make those again
    assert pages() == before
    make(overrides=(*SMALL, 'ema_decay=0.5'), renew=True)
    assert len(fake_make.made) == 8
    assert [run['values']['last'] for run in entries()] == [0.5] * 8


def test_what_an_earlier_table_has_is_not_made_again():
    runs = expand()
    write_run(command.RUNS, runs[0], 0.5)
    small = spec.from_config(table())
    content = record.collect(small, runs, command.RUNS, {}, {runs[1].name: 'died'})
    recorded = record.known(content)
    assert list(recorded) == [('Supervised', '10 labels', runs[0].name)]
    shutil.rmtree(command.RUNS)
    (again,) = record.collect(small, runs, command.RUNS, recorded, {})['cells'][0]['runs']
    assert again == content['cells'][0]['runs'][0]
    FOLDER.mkdir(parents=True)
    (FOLDER / 'table.json').write_text(json.dumps(content))
    assert [run.name for cell in make_command().unfinished() for run in cell] == [run.name for run in runs[1:]]
    # With other settings it is another run.
    assert sum(map(len, make_command(overrides=(*SMALL, 'ema_decay=0.5')).unfinished())) == len(runs)


def test_a_run_that_two_rows_share_is_made_once():
    cells = make_command(rows={'A': {'config': 'supervised'}, 'The same': {'config': 'supervised'}}).unfinished()
    assert [len(cell) for cell in cells] == [2, 2]
    assert {run.row for cell in cells for run in cell} == {'A'}


def test_the_list_says_what_is_there_and_what_is_not():
    runs = expand()
    write_run(command.RUNS, runs[0], 0.5)
    (command.RUNS / runs[1].name / 'checkpoints' / '2').mkdir(parents=True)
    lines = make_command().listing(jobs=2).splitlines()
    assert lines[0].split() == 'Supervised 10 labels 20 s a run 1 finished, 1 at step 2 of 4'.split()  # noqa: SIM905
    # The rest is estimated by what was measured, 20 s: half a run and six, by two jobs.
    assert lines[-1] == '7 runs to make or to go on with: about 65 s with --jobs=2'


def test_check_names_the_rows_that_other_code_made():
    with pytest.raises(UserError, match='holds no table'):
        make_command().check()
    runs = expand()
    for run in runs[:4]:
        write_run(command.RUNS, run, 0.5)
    write_run(command.RUNS, runs[4], 0.5, sources='123', git_commit=provenance.commit())
    content = {'name': 'small', **record.collect(spec.from_config(table()), runs, command.RUNS, {}, {})}
    FOLDER.mkdir(parents=True)
    (FOLDER / 'table.json').write_text(json.dumps(content))
    fresh, text = make_command().check()
    assert not fresh
    first, second, third = text.splitlines()
    assert first.startswith('FixMatch, soft: 1 runs are stale; changed: ')
    assert second.startswith('4 of 5 results')
    assert '--renew' in third
    content['cells'][2]['runs'] = []
    (FOLDER / 'table.json').write_text(json.dumps(content))
    fresh, text = make_command().check()
    assert fresh
    assert text.startswith('4 of 4 results')
    fresh, text = make_command(overrides=(*SMALL, 'ema_decay=0.5')).check()
    assert not fresh
    assert text.splitlines()[0] == 'Supervised: 4 runs are stale; changed: settings'


@pytest.mark.parametrize(
    ('text', 'message'),
    [('{}', 'not a valid table'), ('{"cells": [{"row": 1}]}', 'not a valid table'), ('{', 'damaged')],
)
def test_a_file_that_is_not_a_valid_table_is_named(text, message):
    FOLDER.mkdir(parents=True)
    (FOLDER / 'table.json').write_text(text)
    with pytest.raises(UserError, match=message):
        make_command()
