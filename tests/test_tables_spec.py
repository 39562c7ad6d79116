"""A table's config expands to runs, named after their settings, and its results to cells; whose code is known."""

import dataclasses
import hashlib
import json
import subprocess

import pytest
from fake_tables import SMALL, expand, table, write_run

from errors import UserError
from tables import record, runner, spec
from train import provenance, run_folder


def test_runs_are_rows_by_columns_by_seeds_with_all_overrides():
    runs = expand()
    expected = [(r, c, s) for r in ('Supervised', 'FixMatch, soft') for c in ('10 labels', '40 labels') for s in (0, 5)]
    assert [(run.row, run.column, run.settings.seed) for run in runs] == expected
    for run in runs:
        assert run.settings.data.labels == int(run.column.split()[0])
        assert (run.settings.steps, run.settings.eval_steps, run.settings.model['blocks']) == (4, 2, (1,))
    assert {run.settings.methods.get('fixmatch', {}).get('temperature') for run in runs} == {None, 0.5}


def test_a_rows_overrides_come_after_the_columns_and_the_tables_last():
    runs = expand(
        rows={'A': {'config': 'supervised', 'overrides': ('steps=7',)}, 'B': {'config': 'supervised'}},
        columns={'C': {'arg': 'digits,labels=20', 'overrides': ('steps=6', 'eval_steps=3')}},
        overrides=('eval_steps=2',),
    )
    assert [run.settings.steps for run in runs] == [7, 7, 6, 6]
    assert {run.settings.eval_steps for run in runs} == {2}


def test_a_row_may_leave_out_columns_and_seeds_and_add_to_the_argument():
    rows = {'A': {'config': 'self_training', 'arg': 'noisy_student=1', 'columns': ('40 labels',)}}
    runs = expand(rows=rows)
    assert [run.column for run in runs] == ['40 labels'] * 2
    rows['B'] = {'config': 'supervised', 'seeds': (3, 1)}
    assert [run.settings.seed for run in expand(rows=rows, seeds=(1, 2)) if run.row == 'B'] == [1, 1]
    assert runs[0].settings.methods['self_training']['view'] == 'strong'


def test_a_run_is_named_by_the_hash_of_its_settings():
    for run in expand():
        text = json.dumps(dataclasses.asdict(run.settings), sort_keys=True)
        methods = '+'.join(run.settings.methods)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        assert run.name == f'{methods}-digits-{run.settings.data.labels}-{digest}'
        assert run_folder.default(run.settings).name == run.name
    names = [run.name for run in expand()]
    assert len(set(names)) == 8
    assert names == [run.name for run in expand(title='Other')]
    assert not set(names) & {run.name for run in expand(overrides=(*SMALL, 'ema_decay=0.5'))}


def test_golden_names():
    """A setting that is added to all runs renames them, and results made before are made anew: on purpose?"""
    names = [run.name for run in expand(seeds=(0,))]
    assert names == GOLDEN, f'If so, let GOLDEN in this file be {names}.'


GOLDEN = [
    'supervised-digits-10-effb7e46',
    'supervised-digits-40-fb114c7d',
    'fixmatch+supervised-digits-10-a5bd245f',
    'fixmatch+supervised-digits-40-a903ed2f',
]


def test_what_is_wrong_with_a_table_is_said_in_a_line():
    for changes, message in (
        ({'seeds': ()}, 'at least one'),
        ({'seeds': (1, 1)}, 'twice'),
        ({'shown': 'lst'}, "Did you mean 'last'"),
        ({'overrides': ('stepz=4',)}, "'stepz=4' cannot be applied"),
        ({'overrides': ('data.name',)}, "'data.name' cannot be applied"),
        ({'rows': {'A': {'config': 'supervised', 'start': 'pretraind'}}}, "Did you mean 'pretrained'"),
        ({'columns': {'10 labels': {'arg': '', 'transfer': 5}, '40 labels': {'arg': ''}}}, 'all columns or none'),
        ({'overrides': ('steps=many',)}, "'steps=many' cannot be applied"),
        ({'rows': {'A': {'config': 'supervised', 'ovrrides': ()}}}, "Did you mean 'overrides'"),
        ({'rows': {'A': {'config': 'supervized'}}}, "Did you mean 'supervised'"),
        ({'rows': {'A': {'config': 'supervised', 'columns': ('10 label',)}}}, "Did you mean '10 labels'"),
        ({'papers': ('fixmach',)}, "Did you mean 'fixmatch'"),
    ):
        with pytest.raises(UserError) as error:
            expand(**changes)
        assert message in str(error.value)
        assert '\n' not in str(error.value)


def test_results_go_to_their_cells(tmp_path):
    small = spec.from_config(table())
    runs = list(spec.expand(small))
    write_run(tmp_path, runs[0], 0.5)
    write_run(tmp_path, runs[1], 0.7)
    content = record.collect(small, runs, tmp_path, {}, {runs[2].name: 'no memory'})
    cells = {(cell['row'], cell['column']): cell for cell in content['cells']}
    assert list(cells) == [(r, c) for r in small.rows for c in small.columns]
    first = cells['Supervised', '10 labels']
    assert [(run['seed'], run['values']['last']) for run in first['runs']] == [(0, 0.5), (5, 0.7)]
    assert first['settings']['data']['labels'] == 10
    assert 'seed' not in first['settings']
    curve = first['runs'][0]['curves']['mask_rate']
    assert len(curve) <= record.POINTS
    assert curve[-1] == [100, 1.0]
    assert first['runs'][0]['curves']['test_accuracy'] == [[100, 0.5]]
    assert cells['Supervised', '40 labels']['runs'] == [
        {'seed': 0, 'folder': runs[2].name, 'failure': 'no memory'},
    ]
    assert cells['FixMatch, soft', '10 labels']['runs'] == []
    json.dumps(content)  # all of it can be written


@pytest.mark.parametrize(
    ('config', 'arg', 'expected'),
    [
        ('supervised', 'digits,labels=20', {'augmentation': 'weak', 'split': 'balanced', 'backbone': 'WRN-10-2'}),
        ('fixmatch', 'cifar10,labels=40', {'augmentation': 'google', 'backbone': 'WRN-28-2', 'steps': '1048576'}),
        ('flexmatch', 'cifar100,labels=400', {'backbone': 'WRN-28-8', 'seeds': '2', 'selection': 'last'}),
        ('mixmatch', 'stl10,labels=1000', {'backbone': 'WRN-37-2', 'augmentation': 'weak'}),
        ('fixmatch', 'svhn,labels=40', {'split': 'proportional'}),
        ('dann', 'digits', {'split': 'all labels', 'test images': 'inductive'}),
        ('rotation', 'method=simclr', {'augmentation': 'crops with colour jitter'}),
        ('finetune', 'digits', {'backbone': 'efficientnet_lite0', 'weights': 'efficientnet_lite0'}),
    ],
)
def test_the_protocol_is_read_off_the_settings(config, arg, expected):
    rows = {'A': {'config': config}, 'One seed': {'config': config, 'seeds': (0,)}}
    chosen = spec.from_config(table(rows=rows, columns={'B': {'arg': arg}}, overrides=()))
    run, _, alone = spec.expand(chosen)
    protocol = record.protocol(chosen, run)
    assert expected.items() <= protocol.items()
    assert record.protocol(chosen, alone) == {**protocol, 'seeds': '1'}
    assert ('test images' in protocol) == (config == 'dann')
    assert ('weights' in protocol) == (config == 'finetune')


def test_old_and_damaged_folders_are_no_tracebacks(tmp_path):
    small = spec.from_config(table())
    run, other, *_ = spec.expand(small)
    write_run(tmp_path, run, 0.5)
    result = json.loads((tmp_path / run.name / 'result.json').read_text())
    del result['sources']
    (tmp_path / run.name / 'result.json').write_text(json.dumps(result))
    with open(tmp_path / run.name / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 3, "lo')
    (tmp_path / other.name).mkdir()
    (tmp_path / other.name / 'result.json').write_bytes(b'\xff{')
    (entry,) = record.collect(small, [run, other], tmp_path, {}, {})['cells'][0]['runs']
    assert entry['sources'] is None
    assert entry['curves']['test_accuracy'] == [[100, 0.5]]


def test_features_are_looked_up_by_labels_and_start(tmp_path):
    columns = {'50': {'arg': 'digits', 'transfer': 50}, '60': {'arg': 'digits', 'transfer': 60}}
    rows = {'Random': {'config': 'rotation', 'start': 'random'}, 'Rotation': {'config': 'rotation'}}
    features = spec.from_config(table(rows=rows, columns=columns, seeds=(0,), shown='linear_probe', overrides=()))
    random, missing, learned, _ = spec.expand(features)
    values = {'neighbours': 0.1, 'linear_probe': 0.2, 'finetune': 0.3}
    evaluated = [
        {'labels': 50, 'start': 'random', **values},
        {'labels': 50, 'start': 'pretrained', **values, 'linear_probe': 0.9},
    ]
    write_run(tmp_path, random, 0.5, transfer=evaluated)
    assert record.of_folder(features, random, tmp_path / random.name)['values'] == values
    assert record.of_folder(features, learned, tmp_path / learned.name)['values']['linear_probe'] == 0.9
    with pytest.raises(UserError, match='no features with 60 labels'):
        record.of_folder(features, missing, tmp_path / missing.name)


def test_time_is_estimated_from_the_nearest_runs_there_are():
    columns = {
        '10 labels': {'arg': 'digits,labels=10', 'seconds_per_step': 99.0 / 4},
        '40 labels': {'arg': 'digits,labels=40'},
    }
    small = spec.from_config(table(columns=columns))
    run = expand()[0]
    known = {('Supervised', '10 labels'): [3.0, 1.0, 2.0], ('Other', '10 labels'): [7.0], ('Supervised', 'x'): [9.0]}
    assert runner.seconds(small, run, known) == 2.0
    del known['Supervised', '10 labels']
    assert runner.seconds(small, run, known) == 7.0
    del known['Other', '10 labels']
    assert runner.seconds(small, run, known) == 9.0
    assert runner.seconds(small, run, {}) == runner.seconds(small, run, {('Other', 'x'): [5.0]}) == 99.0
    assert runner.seconds(small, dataclasses.replace(run, column='40 labels'), {('Other', 'x'): [5.0]}) == 5.0
    assert runner.seconds(small, dataclasses.replace(run, column='40 labels'), {}) is None


@pytest.mark.parametrize(('jobs', 'cores'), [(1, 4), (2, 4), (3, 4), (4, 2)])
def test_jobs_share_the_cores(jobs, cores, monkeypatch):
    monkeypatch.setattr(runner.os, 'sched_getaffinity', lambda _: set(range(cores)))
    shares = [runner._cores(slot, jobs) for slot in range(jobs)]
    assert all(shares)
    assert set().union(*shares) == set(range(cores))
    if jobs <= cores:
        assert sum(map(len, shares)) == cores


def repository(tmp_path, monkeypatch):
    """Makes the code under test a repository of two files, and returns a function that commits."""
    git = ('git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=b')
    subprocess.run((*git, 'init', '-q'), check=True)
    for name, value in (('ROOT', tmp_path), ('_sources', {}), ('_commit', [None])):
        monkeypatch.setattr(provenance, name, value)

    def commit(**files):
        for name, text in files.items():
            path = tmp_path / f'{name.replace("_", "/")}.py'
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        subprocess.run((*git, 'add', '.'), check=True)
        subprocess.run((*git, 'commit', '-qm', 'x'), check=True)
        provenance.read()
        return provenance.commit()

    return commit


def test_the_hash_changes_with_code_that_a_method_depends_on_and_with_nothing_else(tmp_path, monkeypatch):
    commit = repository(tmp_path, monkeypatch)
    loop = 'from train import diagnostics\nimport models.step\n'
    first = commit(train_experiment=loop, models_step='x = 1\n', methods_a='import models.step\n', methods_b='y = 1\n')
    a, b = provenance.digest(['a']), provenance.digest(['b'])
    assert provenance.files(['a']) == ['methods/a.py', 'models/step.py', 'train/experiment.py']
    commit(methods_b='y = 2\n', train_diagnostics='z = 1\n')  # warnings change no number
    assert provenance.digest(['a']) == a
    assert provenance.digest(['b']) != b
    assert provenance.changed(['b'], first) == ['methods/b.py']
    commit(models_step='"""What it is."""\n\nx = 1  # why\n')
    assert provenance.digest(['a']) == a
    assert provenance.changed(['a'], first) == []
    commit(models_step='x = "# 2"\n')
    assert provenance.digest(['a']) != a
    assert provenance.changed(['a'], first) == ['models/step.py']
    assert provenance.changed(['a'], 'unknown') == []
    assert not provenance.commit().endswith('+')
    (tmp_path / 'methods' / 'new.py').write_text('')
    assert not provenance.commit().endswith('+')  # a process runs the code that was there when it began
    provenance.read()
    assert provenance.commit().endswith('+')


def test_code_is_all_but_comments_and_docstrings():
    source = '"""Module."""\n\nA = "#no"  # comment\n\ndef f():\n    """Doc\n    string."""\n    return """x"""\n'
    assert provenance.code(source) == 'A = "#no"\ndef f():\n    return """x"""'
    assert provenance.code('def f(): """Doc."""') != provenance.code('def g(): """Doc."""')
