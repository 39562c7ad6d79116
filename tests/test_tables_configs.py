"""The tables that come with the code: complete, faithful to the methods' own configs, beside the papers they name."""

import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

import configs
import models
from data import datasets
from errors import UserError
from tables import papers, report, spec
from train import experiment, settings
from train import step as step_lib
from train.streams import Streams

FOLDER = pathlib.Path(next(iter(configs.__path__))) / 'tables'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != 'common')
TABLES = {name: spec.from_config(importlib.import_module(f'configs.tables.{name}').get_config()) for name in NAMES}
SMALL = ('digits', 'fashion_mnist', 'transfer', 'rotation', 'domains', 'pretrained', 'emoji_domains', 'few_labels')


def get_config(name):
    return importlib.import_module(f'configs.{name}').get_config


@pytest.mark.parametrize('name', NAMES)
def test_a_table_expands_to_runs_of_its_size(name):
    table = TABLES[name]
    runs = list(spec.expand(table))
    assert len(runs) == sum(
        len(row.columns or table.columns) * len(row.seeds or table.seeds) for row in table.rows.values()
    )
    # Features of one network with several numbers of labels; one upper bound for all that adapt to the same target.
    shares = any(column.transfer for column in table.columns.values()) or name == 'emoji_domains'
    assert (len({run.name for run in runs}) < len(runs)) == shares
    docstring = importlib.import_module(f'configs.tables.{name}').__doc__
    assert f'python main.py --config=configs/tables/{name}.py' in docstring


def test_sizes_of_the_benchmarks():
    methods = {
        *('supervised', 'pseudo_label', 'self_training', 'pi_model', 'mean_teacher', 'vat', 'mixmatch', 'remixmatch'),
        *('uda', 'fixmatch', 'flexmatch', 'dash', 'comatch', 'adamatch', 'simmatch', 'softmatch', 'freematch'),
    }
    for name in ('digits', 'fashion_mnist', 'cifar10', 'cifar100', 'svhn', 'stl10'):
        assert methods <= {row.config for row in TABLES[name].rows.values() if not row.columns}, name
    labels = {name: [run.settings.data.labels for run in spec.expand(TABLES[name])] for name in NAMES}
    for name, expected in (
        ('digits', {10, 20, 40}),
        ('fashion_mnist', {40, 100, 400}),
        ('transfer', {50, 200, 1000}),
        ('cifar10', {40, 250, 4000}),
        ('cifar100', {400, 2500, 10000}),
        ('svhn', {40, 250, 1000}),
        ('stl10', {40, 250, 1000}),
    ):
        assert set(labels[name]) == expected, name
    assert len(TABLES['digits'].seeds) == 3
    assert {run.settings.data.target for run in spec.expand(TABLES['domains'])} == {'digits_m', ''}


@pytest.mark.parametrize(
    ('name', 'row', 'column', 'config', 'arg'),
    [
        ('digits', 'FixMatch', '20 labels', 'fixmatch', 'digits,labels=20'),
        ('digits', 'S4L, upright labels', '40 labels', 's4l', 'digits,labels=40'),
        ('domains', 'DANN + FixMatch', 'digits -> digits_m', 'dann', 'methods=dann+fixmatch'),
        ('rotation', 'SimCLR', 'Digits, 50 labels', 'rotation', 'method=simclr'),
        ('cifar100', 'UDA', 'CIFAR-100, 400 labels', 'uda', 'cifar100,labels=400'),
        ('digits_domains', 'CDAN', 'SVHN -> MNIST', 'dann', 'svhn_cropped,target=mnist,methods=cdan'),
    ],
)
def test_a_row_is_its_methods_own_config(name, row, column, config, arg):
    expected = settings.from_config(get_config(config)(arg))
    runs = [r for r in spec.expand(TABLES[name]) if (r.row, r.column, r.settings.seed) == (row, column, 0)]
    assert [run.settings for run in runs] == [expected]


def test_office31_is_tested_on_the_images_that_are_adapted_to():
    for run in spec.expand(TABLES['office31']):
        data = run.settings.data
        assert (data.protocol, data.train_split, data.target_split) == ('transductive', 'train', 'train')
        assert {data.name, data.target} < {'office31/amazon', 'office31/dslr', 'office31/webcam'}
        assert run.settings.model['name'] == 'resnet50'


@pytest.mark.parametrize('name', [name for name in NAMES if name not in SMALL])
def test_what_needs_a_gpu_says_what_it_costs_and_on_what_basis(name):
    assert 'No GPU' in TABLES[name].cost
    for run in spec.expand(TABLES[name]):
        assert 10 < TABLES[name].columns[run.column].seconds_per_step * run.settings.steps < 1e6


@pytest.mark.parametrize('name', papers.PAPERS)
def test_every_published_number_has_a_cell_of_ours(name):
    paper = papers.PAPERS[name]
    beside = [table for table in TABLES.values() if name in table.papers]
    assert beside
    cells = {(run.row, run.column) for table in beside for run in spec.expand(table)}
    for row, numbers in paper.results.items():
        for column, text in numbers.items():
            assert (row, column) in cells
            published = report.compare(None, text)
            assert 0 < published.mean <= 100
            assert published.std is None or 0 <= published.std < 30
    ours = {'augmentation', 'split', 'backbone', 'weights', 'steps', 'seeds', 'selection', 'evaluation', 'test images'}
    assert paper.protocol.keys() <= ours


def test_some_published_numbers():
    """Typed from the sources once more."""
    for paper, row, column, text in (
        ('fixmatch', 'FixMatch', 'CIFAR-10, 40 labels', '13.81±3.37'),
        ('fixmatch', 'ReMixMatch', 'STL-10, 1000 labels', '5.23±0.45'),
        ('torchssl', 'FlexMatch', 'CIFAR-100, 400 labels', '39.94±1.62'),
        ('torchssl', 'VAT', 'SVHN, 1000 labels', '4.11±0.20'),
        ('usb', 'AdaMatch', 'CIFAR-100, 400 labels', '47.82±1.48'),
        ('usb', 'FreeMatch', 'CIFAR-10, 40 labels', '4.97±0.09'),
        ('tllib_digits', 'CDAN', 'MNIST -> USPS', '96.0'),
        ('tllib_office31', 'MCC', 'W -> A', '74.2'),
        ('rotnet', 'Rotation', '1000 labels', '24.72'),
        ('solo_learn', 'BYOL', '50000 labels', '92.58'),
    ):
        assert papers.PAPERS[paper].results[row][column] == text
    assert 'Mean Teacher' not in papers.PAPERS['usb'].results
    assert 'Pi-Model' not in papers.PAPERS['fixmatch'].results


# Mock data has classes without examples.
TINY = (
    *('steps=2', 'batch_size=2', 'data.unlabeled_ratio=1', 'model.blocks=(1,)', 'model.width=1'),
    *('data.label_protocol=proportional', "data.strong.ops=('Rotate',)"),
)
FEW = ('data.labels=100',)
EVALUATED = ('transfer.labels=(100,)', 'transfer.layer=stage1', 'transfer.steps=2')


@pytest.mark.parametrize(
    ('name', 'row', 'overrides'),
    [
        ('cifar10', 'Pseudo-Label', TINY + FEW),
        ('cifar100', 'Supervised', TINY + FEW),
        ('svhn', 'Supervised', TINY + FEW),
        ('stl10', 'FixMatch', TINY + FEW),
        ('cifar10_features', 'Rotation', TINY + EVALUATED),
    ],
)
def test_paper_scale_tables_run_on_mock_data(name, row, overrides, tmp_path):
    config = importlib.import_module(f'configs.tables.{name}').get_config().unlock()
    config.overrides = (*config.overrides, *overrides)
    run = next(run for run in spec.expand(spec.from_config(config)) if run.row == row)
    with tfds.testing.mock_data(num_examples=120):
        result = experiment.run(run.settings, tmp_path / run.name, str(tmp_path / 'data'))
    assert 0 <= result['test_accuracy']['last'] <= 1
    assert all(0 <= row['linear_probe'] <= 1 for row in result.get('transfer', []))


@pytest.mark.parametrize(
    ('name', 'row', 'shape', 'num_classes'),
    [
        ('office31', 'DANN', (256, 256, 3), 31),
        ('office31', 'FixMatch', (256, 256, 3), 31),
        ('digits_domains', 'JAN', (32, 32, 3), 10),
    ],
)
def test_paper_scale_tables_are_traced_on_mock_images(name, row, shape, num_classes, monkeypatch):
    """Their data sets are not all of tfds, which has mock data of its own only. Of ResNet-50, a block a stage."""
    network, options = models.MODELS['resnet50']
    monkeypatch.setitem(models.MODELS, 'resnet50', (network, {**options, 'blocks': (1, 1, 1, 1)}))
    labels = np.arange(62, dtype=np.int32) % num_classes
    classes = tuple(map(str, range(num_classes)))
    arrays = datasets.Arrays(np.zeros((62, *shape), np.uint8), labels, num_classes, classes)
    monkeypatch.setattr(datasets, 'load', lambda *_: arrays)
    run = next(run for run in spec.expand(TABLES[name]) if run.row == row)
    streams = Streams.load(run.settings, None)
    assert len(streams.held_out['test'][0]) == len(streams.indices['unlabeled']) == 62
    trainer = step_lib.Trainer.create(run.settings, streams.spec(run.settings))  # without the published weights
    batch = streams.batches(trainer.batch_sizes, 0, 0)
    state = jax.eval_shape(lambda: step_lib.init(trainer, batch))
    new, _ = jax.eval_shape(functools.partial(step_lib.step, trainer), state, batch)
    assert jax.tree.map(jnp.shape, new.params) == jax.tree.map(jnp.shape, state.params)


def test_an_argument_is_refused():
    for name in NAMES:
        with pytest.raises(UserError, match='Unknown data set' if name == 'few_labels' else 'takes no argument'):
            importlib.import_module(f'configs.tables.{name}').get_config('labels=20')


def test_few_labels_are_so_many_of_each_class_of_a_folder(tmp_path, monkeypatch):
    for i, name in enumerate(('cat', 'dog', 'owl')):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for j in range(4):
            noise = np.random.default_rng([i, j]).integers(0, 256, (9, 9, 3), np.uint8)
            PIL.Image.fromarray(noise).save(tmp_path / 'photos' / name / f'{j}.png')
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'prepared'))
    get_table = importlib.import_module('configs.tables.few_labels').get_config
    runs = list(spec.expand(spec.from_config(get_table(f'{tmp_path}/photos/'))))
    assert {run.settings.data.labels for run in runs} == {9, 15, 30}
    assert {run.settings.data.label_protocol for run in runs} == {'balanced'}
    assert {run.settings.data.name for run in runs} == {f'{tmp_path}/photos/'}
