"""Whole runs of the settings beside semi-supervised learning: self-supervision, S4L, domain adaptation."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from data import datasets
from errors import UserError
from train import checkpoint, evaluation, experiment, provenance, run_folder, transfer
from train import mesh as mesh_lib
from train import run as run_lib
from train.settings import SELECTIONS


@pytest.fixture(scope='module')
def rotation(make_settings, data_dir, tmp_path_factory):
    """A finished run of rotation prediction and its folder."""
    settings = make_settings(
        'rotation',
        **{'steps': 4, 'eval_steps': 2, 'transfer.labels': (20, -1), 'transfer.steps': 2, 'transfer.layer': 'stage1'},
    )
    workdir = tmp_path_factory.mktemp('rotation') / 'run'
    return settings, workdir, experiment.run(settings, workdir, data_dir)


def test_self_supervision_ends_with_what_its_features_are_worth(rotation):
    _, workdir, result = rotation
    assert [(row['labels'], row['start']) for row in result['transfer']] == [
        (n, start) for n in (20, 1297) for start in ('random', 'pretrained')
    ]
    for row in result['transfer']:
        assert all(0 <= row[key] <= 1 for key in ('neighbours', 'linear_probe', 'finetune'))
    started = [
        json.loads((workdir / 'transfer' / f'{start}-20' / 'config.json').read_text()) for start in transfer.STARTS
    ]
    assert [bool(config['weights']) for config in started] == [False, True]
    assert '1297   pretrained' in transfer.table(result['transfer'])


def test_features_of_the_report_are_those_of_the_averaged_network(rotation, data_dir):
    settings, workdir, result = rotation
    trainer, streams = run_lib.prepare(transfer.finetuning(settings, -1, str(workdir)), data_dir)
    weights = checkpoint.weights(str(workdir)).tensors
    kernel = trainer.model.weights.tensors['params/stem/kernel']
    np.testing.assert_array_equal(kernel, weights['params/stem/kernel'])
    mesh = mesh_lib.create(*trainer.batch_sizes.values())
    streams = evaluation.features(trainer, streams, mesh, 'stage1')
    images, test = datasets.load('digits', 'test', data_dir).images, streams.held_out['test']
    assert test[0].shape == (len(images), 16)
    labeled = streams.indices['labeled']
    accuracy = evaluation.neighbours(settings.transfer, (streams.images[labeled], streams.labels[labeled]), test)
    assert accuracy == result['transfer'][-1]['neighbours'] == result['test_accuracy']['last']


def test_an_interrupted_report_goes_on(rotation, data_dir):
    settings, workdir, result = rotation
    trained = {key: value for key, value in result.items() if key != 'transfer'}
    run_folder.write_json(workdir / 'result.json', trained)
    assert run_folder.finished(workdir) is None
    shutil.rmtree(workdir / 'transfer' / 'pretrained--1')
    before = (workdir / 'transfer' / 'random-20' / 'metrics.jsonl').read_text()
    again = experiment.run(settings, workdir, data_dir)
    assert again == result == run_folder.finished(workdir)
    assert (workdir / 'transfer' / 'random-20' / 'metrics.jsonl').read_text() == before


def test_the_method_that_fine_tunes_is_a_setting(make_settings):
    settings = make_settings('rotation')
    chosen = dataclasses.replace(settings.transfer, labels=(20,), method='finetune')
    assert transfer.finetuning(dataclasses.replace(settings, transfer=chosen), 20, '').methods == {'finetune': {}}
    with pytest.raises(UserError, match="Did you mean 'finetune'"):
        dataclasses.replace(chosen, method='finetun')


def test_labels_that_the_evaluation_lacks_are_an_error_before_training(make_settings, data_dir, tmp_path):
    settings = make_settings('rotation', **{'transfer.labels': (20, 5000)})
    with pytest.raises(UserError, match='5000 balanced labels need 500'):
        experiment.run(settings, tmp_path / 'run', data_dir)
    assert not (tmp_path / 'run').exists()


def test_a_layer_that_the_network_lacks_is_an_error_before_training(make_settings, data_dir, tmp_path):
    settings = make_settings('rotation', **{'transfer.labels': (20,), 'transfer.layer': 'stage9'})
    with pytest.raises(UserError, match=r"output of the network.*'stage9'.*stage1"):
        experiment.run(settings, tmp_path / 'run', data_dir)
    assert not (tmp_path / 'run').exists()


def test_code_of_a_run_is_that_of_its_methods_and_of_what_fine_tunes_its_features(rotation):
    settings, _, result = rotation
    assert provenance.used_methods(result['settings']) == ['rotation', 'supervised']
    without = dataclasses.replace(settings, transfer=dataclasses.replace(settings.transfer, labels=()))
    assert provenance.used_methods(dataclasses.asdict(without)) == ['rotation']
    files = provenance.files(['rotation'])
    assert {'methods/rotation.py', 'train/experiment.py', 'train/loop.py', 'train/step.py'} <= set(files)
    assert not {'methods/supervised.py', 'train/log.py', 'train/diagnostics.py'} & set(files)


def test_s4l_is_evaluated_upright_and_averaged_over_rotations(make_settings, data_dir, tmp_path):
    settings = make_settings('s4l', steps=3, eval_steps=3, **{'methods.s4l.all_copies': True})
    result = run_lib.run(settings, tmp_path / 'run', data_dir)
    trainer, _ = run_lib.prepare(settings, data_dir)
    tensors = checkpoint.weights(str(tmp_path / 'run')).tensors
    variables = {'params': {}, 'batch_stats': {}}
    for name, value in tensors.items():
        collection, layer, leaf = name.split('/')
        variables[collection].setdefault(layer, {})[leaf] = value
    test = datasets.load('digits', 'test', data_dir)

    def logits(images):
        x = trainer.model.preprocess(images.astype(np.float32) / 255)
        return np.asarray(trainer.model.apply(variables, x)[0]['logits'])

    turned = [logits(np.rot90(test.images, k, axes=(1, 2))) for k in range(4)]
    expected = [(x.argmax(-1) == test.labels).mean() for x in (turned[0], sum(turned))]
    accuracies = [result['test_accuracy'][key] for key in ('last', 'rotation_averaged')]
    np.testing.assert_allclose(accuracies, expected, atol=0.005)  # an image on the edge may fall to either side
    upright, _ = run_lib.prepare(make_settings('s4l'), data_dir)
    assert [trainer.methods['s4l'].rotation_averaged, upright.methods['s4l'].rotation_averaged] == [True, False]


@pytest.fixture(scope='module')
def domains(make_settings, data_dir, tmp_path_factory):
    """A finished run of domain adaptation and its folder."""
    overrides = {'steps': 4, 'eval_steps': 2, 'methods.dann.widths': (8,), 'selection': 'iwcv'}
    settings = make_settings('dann', **overrides)
    workdir = tmp_path_factory.mktemp('dann') / 'run'
    return settings, workdir, experiment.run(settings, workdir, data_dir)


def test_domain_adaptation_is_also_chosen_without_target_labels(domains):
    _, workdir, result = domains
    assert set(result['selection']) == set(SELECTIONS)
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    accuracy = {row['step']: row['test_accuracy'] for row in rows if 'test_accuracy' in row}
    for choice in result['selection'].values():
        assert choice['step'] is None or choice['test_accuracy'] == accuracy[choice['step']]
    assert result['test_accuracy']['selected'] == result['selection']['iwcv']['test_accuracy']
    if (selected := result['test_accuracy']['selected']) is not None:
        assert result['gap'] == max(accuracy.values()) - selected >= 0
    assert (result['protocol']['target'], result['protocol']['test_images']) == ('digits_m', 'inductive')


def test_log_of_domain_adaptation_has_the_discriminator_and_the_target_s_classes(domains):
    _, workdir, _ = domains
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    names = {'domain_accuracy', 'a_distance', 'lambda', 'pseudo_label_entropy', 'pseudo_label_top_class'}
    assert {f'dann/{name}' for name in names} <= set().union(*rows)


def test_test_labels_of_the_target_choose_nothing(domains, data_dir, tmp_path, monkeypatch):
    settings, _, result = domains
    load = datasets.load

    def other(name, split, *args):
        arrays = load(name, split, *args)
        if (name, split) == ('digits_m', 'test'):
            arrays.labels[:] = (arrays.labels + 1) % 10
        return arrays

    monkeypatch.setattr(datasets, 'load', other)
    again = run_lib.run(settings, tmp_path / 'run', data_dir)
    for rule, choice in result['selection'].items():
        assert (again['selection'][rule]['step'], again['selection'][rule]['score']) == (
            choice['step'],
            choice['score'],
        )
    assert again['test_accuracy']['last'] != result['test_accuracy']['last']
