"""Config files: they state what differs from the defaults, faithful to the papers, and can be run on any data set."""

import dataclasses
import functools
import importlib
import os
import pathlib
from collections.abc import Mapping

import conftest
import jax
import ml_collections
import numpy as np
import pytest

import methods
import models
from configs import dann, data_sets, finetune, fixmatch, rotation, supervised
from data import datasets
from data.builders import idx
from errors import UserError
from methods.base import DataSpec
from tables import worker
from train import experiment, transfer
from train import settings as settings_lib
from train import step as step_lib
from train.streams import Streams

CONFIGS = {name: importlib.import_module(f'configs.{name}') for name in conftest.CONFIGS}
FLAGS = pathlib.Path(__file__).parent / 'golden' / 'flags.txt'
# Those to be compared with each other: same network, same labels, same steps.
SEMI_SUPERVISED = [name for name in CONFIGS if name not in ('dann', 'finetune', 'rotation')]
RECIPES = [name for name, record in data_sets.RECORDS.items() if record.recipe is not None]
SMALL = [name for name in RECIPES if data_sets.RECORDS[name].small]
DOMAINS = [
    *(f'digits,methods={name}' for name in dann.METHODS),
    'digits,methods=dann+fixmatch',
    'digits,methods=adamatch+cdan',
    *('mnist,target=usps', 'usps,target=mnist', 'svhn_cropped,target=mnist', 'mnist,target=mnist_m'),
    *('office31/amazon,target=office31/dslr', 'office31/dslr,target=office31/webcam,methods=target'),
    *('office_home/art,target=office_home/product,methods=mcc', 'visda/train,target=visda/validation'),
    'domainnet/real,target=domainnet/sketch,methods=cdan',
]


def flat(values: Mapping, prefix: str = '') -> dict:
    """Returns {'data.weak.pad': value} of nested settings."""
    leaves = {}
    for key, value in values.items():
        leaves |= flat(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value}
    return leaves


def test_the_flags_are_those_of_the_golden_list():
    """Shared settings, and those of each method and network in the list, which a new one need not be in."""

    def block(values, prefix='config.'):
        return '\n'.join(f'{name}={value!r}' for name, value in sorted(flat(values, prefix).items()))

    shared = settings_lib.to_config().to_dict()
    del shared['model'], shared['methods']
    blocks = [block(shared)]
    blocks += [block(methods.defaults(name), f'config.methods.{name}.') for name in methods.names()]
    blocks += [block({'name': name, **models.settings(name)}, 'config.model.') for name in models.MODELS]
    if os.environ.get('UPDATE_GOLDEN'):
        FLAGS.write_text('\n\n'.join(blocks) + '\n')
    for golden in FLAGS.read_text().strip().split('\n\n'):
        assert golden in blocks, (
            f'The settings that users may give have changed:\n{golden}\nIf they are meant to: UPDATE_GOLDEN=1 pytest '
            'tests/test_configs.py -k golden, and name the change in the commit.'
        )


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_can_be_used_with_every_recorded_data_set(name):
    args = DOMAINS if name == 'dann' else data_sets.RECORDS
    for arg in args:
        config = CONFIGS[name].get_config(arg)
        assert config.is_locked
        settings = settings_lib.from_config(config)
        settings_lib.idle(settings)  # also creates the methods


def test_both_names_of_svhn_are_one_data_set():
    assert fixmatch.get_config('svhn') == fixmatch.get_config('svhn_cropped')
    assert dann.get_config('svhn,target=mnist') == dann.get_config('svhn_cropped,target=mnist')


@pytest.mark.parametrize(
    ('data', 'labels', 'expected'),
    [
        ('cifar10', 40, {'data.name': 'cifar10', 'model.width': 2, 'optimizer.weight_decay': 5e-4}),
        ('cifar100', 400, {'model.width': 8, 'optimizer.weight_decay': 1e-3, 'data.weak.flip': True}),
        (
            'svhn',
            250,
            {
                'optimizer.weight_decay': 5e-4,
                'data.name': 'svhn_cropped',
                'data.weak.flip': False,
                'data.label_protocol': 'proportional',
            },
        ),
        (
            'stl10',
            1000,
            {
                'optimizer.weight_decay': 5e-4,
                'data.unlabeled_split': 'unlabelled',
                'data.weak.pad': 12,
                'model.blocks': (4, 4, 4, 4),
            },
        ),
    ],
)
def test_paper_scale_settings_are_the_papers(data, labels, expected):
    config = fixmatch.get_config(f'{data},labels={labels}')
    paper = {
        'steps': 2**20,
        'batch_size': 64,
        'data.unlabeled_ratio': 7,
        'data.labels': labels,
        'data.mean': (0.5, 0.5, 0.5),
        'data.std': (0.5, 0.5, 0.5),
        'data.strong.protocol': 'google',
        'data.strong.translate': 10,
        'data.strong.cutout': 16,
        'model.bn_momentum': 0.999,
        'model.bn_epsilon': 1e-3,
        'model.negative_slope': 0.1,
        'methods.fixmatch.threshold': 0.95,
        'methods.fixmatch.weight': 1.0,
        'methods.fixmatch.statistics': 'joint',
        'methods.supervised.weight': 1.0,
        'optimizer.learning_rate': 0.03,
        'optimizer.momentum': 0.9,
        'optimizer.cosine_cycles': 7 / 16,
        'ema_decay': 0.999,
    }
    for key, value in (paper | expected).items():
        node = config
        for part in key.split('.'):
            node = node[part]
        assert node == value, key
    assert len(config.data.strong.ops) == 14
    assert config.methods.fixmatch.statistics == 'joint'


# From the scripts of the official MixMatch and ReMixMatch, TorchSSL's models/freematch and USB's configs for CoMatch.
OF_A_DATA_SET = [
    *(
        ('mixmatch', f'{data},labels=250', {'weight': weight, 'alpha': 0.75})
        for data, weight in (('cifar10', 75.0), ('svhn', 250.0))
    ),
    *(
        ('mixmatch', f'{data},labels=1000', {'weight': weight, 'alpha': 0.75})
        for data, weight in (('cifar100', 150.0), ('stl10', 50.0))
    ),
    ('remixmatch', 'cifar10,labels=40', {'strong_views': 1, 'rotation_weight': 2.0, 'ramp': 8192 / 65536}),
    ('remixmatch', 'svhn,labels=40', {'strong_views': 1, 'rotation_weight': 3.0, 'ramp': 1024 / 65536}),
    ('remixmatch', 'stl10,labels=1000', {'strong_views': 4, 'rotation_weight': 0.5, 'ramp': 1024 / 65536}),
    *(
        ('remixmatch', f'{data},labels=250', {'strong_views': 8, 'rotation_weight': 0.5, 'ramp': 1024 / 65536})
        for data in ('cifar10', 'svhn')
    ),
    ('freematch', 'cifar10,labels=40', {'lowest': 0.0, 'highest': 1.0}),
    *(('freematch', f'{data},labels=250', {'lowest': 0.9, 'highest': 0.95}) for data in ('svhn', 'svhn_cropped')),
    ('comatch', 'cifar10,labels=40', {'contrast_weight': 1.0}),
    ('comatch', 'stl10,labels=1000', {'contrast_weight': 5.0}),
    ('dash', 'cifar10,labels=40', {'variant': 'code', 'gamma': 1.27, 'rho_min': 0.05, 'temperature': 0.5}),
    ('supervised', 'cifar10,labels=40', {'annealing': ''}),
]


@pytest.mark.parametrize(
    ('name', 'arg', 'expected'), OF_A_DATA_SET, ids=lambda value: str(value) * isinstance(value, str)
)
def test_a_method_has_the_published_settings_for_a_data_set_and_number_of_labels(name, arg, expected):
    chosen = CONFIGS[name].get_config(arg).methods[name]
    assert {key: chosen[key] for key in expected} == expected
    assert CONFIGS[name].get_config(arg).data.unlabeled_ratio == (1 if name in ('mixmatch', 'remixmatch') else 7)


@pytest.mark.parametrize('name', SEMI_SUPERVISED)
@pytest.mark.parametrize('data', SMALL)
def test_every_config_differs_from_the_supervised_baseline_in_its_methods_only(name, data):
    config, baseline = (module.get_config(data).to_dict() for module in (CONFIGS[name], supervised))
    assert name in config.pop('methods')
    assert list(baseline.pop('methods')) == ['supervised']
    assert config == baseline


def trace(settings: settings_lib.Settings, image: tuple[int, int, int], classes: int, augmented: bool = True):
    """Traces a step on images of that shape. Returns the shapes of its state.

    Tracing RandAugment takes as long as all else; with `augmented=False` strong views are weak ones.
    """
    sizes = {'labeled': settings.batch_size, 'unlabeled': settings.batch_size * settings.data.unlabeled_ratio}
    labels = np.arange(500) % classes
    trainer = step_lib.Trainer.create(settings, DataSpec(classes, image, labels, 5000, sizes))
    if not augmented:
        weak = dict.fromkeys(('strong', 'distorted'), trainer.augmentations['weak'])
        trainer = dataclasses.replace(trainer, augmentations={**trainer.augmentations, **weak})
    batch = {
        stream: {'images': jax.ShapeDtypeStruct((n, *image), 'uint8')}
        | dict.fromkeys(('labels', 'indices'), jax.ShapeDtypeStruct((n,), 'int32'))
        for stream, n in trainer.batch_sizes.items()
    }
    state = jax.eval_shape(functools.partial(step_lib.init, trainer), batch)
    new, _ = jax.eval_shape(functools.partial(step_lib.step, trainer), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert new.params['head']['kernel'].shape[1] == classes
    return new


# The data set with the most classes for all; its part is the same for every method, as is a network's depth.
@pytest.mark.parametrize(
    ('name', 'data'),
    [('fixmatch', 'stl10'), ('finetune', 'stl10'), *((name, 'cifar100') for name in [*SEMI_SUPERVISED, 'rotation'])],
)
def test_paper_scale_steps_can_be_traced(name, data):
    settings = settings_lib.from_config(CONFIGS[name].get_config(data))
    if data == 'cifar100':
        settings = dataclasses.replace(settings, model={**settings.model, 'blocks': (1, 1)})
    record = data_sets.get(data)
    trace(settings, (record.side, record.side, record.channels), record.classes, augmented=data == 'stl10')


@pytest.mark.parametrize(
    'arg',
    [
        *(arg for arg in DOMAINS if arg.startswith('digits') and not arg.endswith(('=fixmatch', '=adamatch'))),
        *('mnist,target=usps', 'svhn_cropped,target=mnist,methods=mmd'),
        *('office31/amazon,target=office31/dslr', 'office31/amazon,target=office31/dslr,methods=fixmatch'),
        'domainnet/real,target=domainnet/sketch,methods=cdan',
    ],
)
def test_domain_adaptation_can_be_traced(arg):
    config = dann.get_config(arg)
    config.model.pretrained = ''
    if 'blocks' in config.model:
        config.model.blocks = (1, 1)
    settings = settings_lib.from_config(config)
    side = settings.data.image_size or 8
    new = trace(settings, (side, side, len(settings.data.mean)), 10, augmented='office31' in arg)
    if settings.model['bottleneck_width']:
        assert new.params['head']['kernel'].shape[0] == settings.model['bottleneck_width']


# What TLlib's scripts for Office-31, Office-Home, VisDA, DomainNet and digits pass, or have by default
# (github.com/thuml/Transfer-Learning-Library, examples/domain_adaptation/image_classification/*.sh and *.py):
# --lr, --lr-gamma, --wd, -b, --epochs * -i, --bottleneck-dim (0: no such layer).
TLLIB = {
    'office31/amazon,target=office31/webcam': {
        'erm.py': (0.001, 0.0003, 0.0005, 32, 5 * 500, 0),
        'dann.py': (0.01, 0.001, 0.001, 32, 20 * 1000, 256),
        'cdan.py': (0.01, 0.001, 0.001, 32, 20 * 1000, 256),
        'dan.py': (0.003, 0.0003, 0.0005, 32, 20 * 500, 256),
        'jan.py': (0.003, 0.0003, 0.0005, 32, 20 * 500, 256),
        'mcc.py': (0.005, 0.001, 0.001, 36, 20 * 500, 1024),
        'fixmatch.py': (0.001, 0.0004, 0.001, 32, 20 * 1000, 256),
    },
    'office_home/art,target=office_home/clipart': {
        'erm.py': (0.001, 0.0003, 0.0005, 32, 5 * 500, 0),
        'dann.py': (0.01, 0.001, 0.001, 32, 30 * 1000, 256),
        'cdan.py': (0.01, 0.001, 0.001, 32, 30 * 1000, 256),
        'dan.py': (0.003, 0.0003, 0.0005, 32, 20 * 500, 256),
        'jan.py': (0.003, 0.0003, 0.0005, 32, 20 * 500, 256),
        'mcc.py': (0.005, 0.001, 0.001, 36, 30 * 1000, 2048),
        'fixmatch.py': (0.003, 0.0004, 0.001, 32, 20 * 1000, 1024),
    },
    'visda/train,target=visda/validation': {
        'erm.py': (0.001, 0.0003, 0.0005, 32, 20 * 1000, 0),
        'dann.py': (0.01, 0.001, 0.001, 32, 30 * 1000, 256),
        'cdan.py': (0.01, 0.001, 0.001, 32, 30 * 1000, 256),
        'dan.py': (0.003, 0.0003, 0.0005, 32, 20 * 500, 256),
        'jan.py': (0.003, 0.0003, 0.0005, 32, 20 * 500, 256),
        'mcc.py': (0.002, 0.001, 0.001, 36, 30 * 1000, 256),
        'fixmatch.py': (0.003, 0.0004, 0.001, 32, 20 * 1000, 2048),
    },
    'domainnet/clipart,target=domainnet/painting': {
        'erm.py': (0.01, 0.0003, 0.0005, 32, 20 * 2500, 0),
        'dann.py': (0.01, 0.001, 0.001, 32, 30 * 2500, 1024),
        'cdan.py': (0.01, 0.001, 0.001, 32, 30 * 2500, 1024),
        'dan.py': (0.003, 0.0003, 0.0005, 32, 30 * 2500, 1024),
        'jan.py': (0.003, 0.0003, 0.0005, 32, 30 * 2500, 1024),
        'mcc.py': (0.005, 0.001, 0.001, 32, 30 * 2500, 2048),
    },
    'mnist,target=usps': {
        'erm.py': (0.01, 0.0003, 0.0005, 128, 20 * 2500, 0),
        'dann.py': (0.01, 0.001, 0.001, 128, 20 * 2500, 256),
        'cdan.py': (0.01, 0.001, 0.001, 128, 20 * 2500, 256),
        'dan.py': (0.01, 0.0003, 0.0005, 128, 20 * 2500, 256),
        'jan.py': (0.01, 0.0003, 0.0005, 128, 20 * 2500, 256),
        'mcc.py': (0.01, 0.001, 0.001, 128, 20 * 2500, 256),
    },
    'usps,target=mnist': {
        'erm.py': (0.1, 0.0003, 0.0005, 128, 20 * 2500, 0),
        'dann.py': (0.1, 0.001, 0.001, 128, 20 * 2500, 256),
        'cdan.py': (0.1, 0.001, 0.001, 128, 20 * 2500, 256),
        'dan.py': (0.1, 0.0003, 0.0005, 128, 20 * 2500, 256),
        'jan.py': (0.1, 0.0003, 0.0005, 128, 20 * 2500, 256),
        'mcc.py': (0.1, 0.001, 0.001, 128, 20 * 2500, 256),
    },
    'svhn,target=mnist': {
        'erm.py': (0.1, 0.0003, 0.0005, 128, 20 * 2500, 0),
        'dann.py': (0.03, 0.001, 0.001, 128, 20 * 2500, 256),
        'cdan.py': (0.01, 0.001, 0.001, 128, 20 * 2500, 256),
        'dan.py': (0.01, 0.0003, 0.0005, 128, 20 * 2500, 256),
        'jan.py': (0.03, 0.0003, 0.0005, 128, 20 * 2500, 256),
        'mcc.py': (0.01, 0.001, 0.001, 128, 20 * 2500, 256),
    },
}
SCRIPTS = {'erm.py': ('source_only', 'adabn', 'target'), 'cdan.py': ('cdan', 'cdan_e'), 'dan.py': ('mmd',)}


def setting(config: ml_collections.ConfigDict, name: str):
    """Returns the value of a setting such as 'data.weak.pad'."""
    for part in name.split('.'):
        config = config[part]
    return config


@pytest.mark.parametrize('pair', TLLIB)
def test_recipes_are_those_of_tllibs_scripts(pair):
    for script, (rate, gamma, decay, batch_size, steps, bottleneck) in TLLIB[pair].items():
        for name in SCRIPTS.get(script, (script.removesuffix('.py'),)):
            config = dann.get_config(f'{pair},methods={name}')
            expected = {
                'optimizer.learning_rate': rate,
                'optimizer.weight_decay': decay,
                'optimizer.momentum': 0.9,
                'optimizer.schedule': 'inverse',
                'optimizer.inverse_gamma': pytest.approx(gamma * steps),
                'optimizer.inverse_power': 0.75,
                'batch_size': batch_size,
                'steps': steps,
                'ema_decay': 0.0,
                'model.batch_norm': 'adabn' if name == 'adabn' else 'joint',
                'model.bottleneck_width': bottleneck,
                # tllib/alignment/dan.py and jan.py: the bottleneck of ImageClassifier
                'model.bottleneck_norm': name != 'mmd',
                'model.dropout': 0.5 if name in ('mmd', 'jan') else 0.0,
            }
            for key, value in expected.items():
                assert setting(config, key) == value, (name, key)
            settings_lib.from_config(config)


SHARED = {
    # tllib/modules/grl.py in dann.py and cdan.py: 2 / (1 + exp(-i / 1000)) - 1 at step i
    'dann': {'office31': {'methods.dann.gamma': 20.0}, 'domainnet': {'methods.dann.gamma': 75.0}},
    'cdan': {
        'visda': {'methods.cdan.gamma': 30.0, 'methods.cdan.entropy': False, 'methods.cdan.randomized': 0},
        'domainnet': {'methods.cdan.randomized': 51200, 'methods.cdan.entropy': False},  # cdan.sh: -r -rd 51200
        'svhn_cropped': {'methods.cdan.gamma': 50.0, 'methods.cdan.randomized': 0},
    },
    'cdan_e': {'domainnet': {'methods.cdan.randomized': 51200, 'methods.cdan.entropy': True}},
    # dan.py: linear unless --non-linear; jan.py: not unless --linear
    'mmd': {'office31': {'methods.mmd.linear': True, 'methods.mmd.joint': False, 'methods.mmd.weight': 1.0}},
    'jan': {'office31': {'methods.mmd.linear': False, 'methods.mmd.joint': True, 'methods.mmd.weight': 1.0}},
    'mcc': {
        'office31': {'methods.mcc.temperature': 2.5, 'methods.mcc.weight': 1.0},
        'visda': {'methods.mcc.temperature': 3.0, 'methods.mcc.weight': 1.0},
        'domainnet': {'methods.mcc.temperature': 2.0, 'methods.mcc.weight': 10.0},
    },
    'fixmatch': {
        # -ub 96, and 32 and 64; --scale of the target 0.5 to 1, that of the source 0.08 to 1
        'office31': {
            'methods.fixmatch.threshold': 0.9,
            'methods.fixmatch.statistics': 'separate',
            'data.unlabeled_ratio': 3,
            'data.weak.min_area': 0.08,
            'data.unlabeled_min_area': 0.5,
            'data.strong.translate': round(0.45 * 256),
            'data.strong.cutout': 0,
        },
        'office_home': {'methods.fixmatch.threshold': 0.9, 'data.unlabeled_ratio': 1, 'data.unlabeled_min_area': 0.5},
        # --train-resizing cen.crop
        'visda': {'methods.fixmatch.threshold': 0.8, 'data.unlabeled_ratio': 2, 'data.unlabeled_min_area': 0.0},
    },
    # Not TLlib's: github.com/google-research/adamatch, domain_adaptation/adamatch.py
    'adamatch': {
        name: {
            'methods.adamatch.decay': 0.999,
            'methods.adamatch.threshold': 0.9,
            'methods.adamatch.statistics': 'joint',
            'data.unlabeled_ratio': 3,
            'ema_decay': 0.999,
            'optimizer.weight_decay': 0.001,
        }
        for name in ('office31', 'domainnet', 'mnist')
    },
    # utils.py: crops of 0.08 to 1 of the area, or the centre (224 of 256 pixels) with cen.crop; digits as they are
    'source_only': {
        'office31': {'data.weak.min_area': 0.08, 'data.weak.flip': True, 'data.image_size': 256},
        'domainnet': {'data.weak.min_area': 0.08, 'data.weak.flip': True, 'data.image_size': 256},
        'visda': {'data.weak.min_area': 0.0, 'data.weak.pad': 0, 'data.weak.flip': True, 'data.image_size': 256},
        'usps': {'data.weak.min_area': 0.0, 'data.weak.pad': 0, 'data.weak.flip': False, 'data.image_size': 28},
    },
}


@pytest.mark.parametrize('name', SHARED)
def test_what_a_method_has_in_tllibs_scripts_beside_the_optimizer(name):
    for data, expected in SHARED[name].items():
        pair = next(pair for pair in [*TLLIB, 'svhn_cropped,target=mnist'] if pair.startswith(data))
        config = dann.get_config(f'{pair},methods={name}')
        for key, value in expected.items():
            assert setting(config, key) == value, (data, key)
        if data in ('office31', 'visda', 'domainnet'):
            weights = models.pretrained.PREPROCESSING['ResNet']
            assert (weights.resolution, weights.crop, config.model.resolution, config.model.crop) == (224, 0.875, 0, 0)


@pytest.mark.parametrize('name', ['fixmatch', 'adamatch', 'dann+fixmatch'])
def test_pseudo_labels_are_of_crops_of_half_the_area_and_strong_views_in_proportion(name):
    data = dann.get_config(f'domainnet/real,target=domainnet/sketch,methods={name}').data
    assert (data.weak.min_area, data.unlabeled_min_area) == (0.08, 0.5)
    assert (data.strong.translate, data.strong.cutout) == (80, 128)  # 10 and 16 of 32 pixels, of 256
    digits = dann.get_config(f'usps,target=mnist,methods={name}').data
    assert (digits.strong.translate, digits.strong.cutout) == (9, 14)  # of 28
    assert not digits.unlabeled_min_area


def test_of_several_methods_each_has_its_own_hyperparameters_and_none_the_others_training():
    config = dann.get_config('domainnet/real,target=domainnet/sketch,methods=cdan+mcc')
    assert (config.methods.cdan.randomized, config.methods.mcc.weight, config.model.bottleneck_width) == (
        51200,
        10,
        1024,
    )
    # A run of minutes has settings of its own for both.
    assert dann.get_config('digits,methods=dann+fixmatch').methods.fixmatch.statistics == 'no_grad'
    assert dann.get_config('digits,methods=adamatch').methods.adamatch.decay == 0.99


# --- data sets without a record


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Sets a data folder. Returns a function that prepares a data set in it.

    Its arguments: name, shape of an image, number of classes, {split: images of a class}, the first class with images.
    """
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))

    def prepare(name, shape, classes, splits=None, first=0):
        content = {}
        for split, number in (splits or {'train': 8, 'test': 8}).items():
            labels = np.repeat(np.arange(first, classes), number)
            content[split] = np.random.default_rng(0).integers(0, 256, (len(labels), *shape), np.uint8), labels
        datasets.write(idx.from_arrays(name, content, str(tmp_path)))

    return prepare


def test_a_prepared_data_set_needs_no_record(prepared):
    prepared('kmnist', (28, 28, 1), 10)
    assert data_sets.get('kmnist') == dataclasses.replace(
        data_sets.get('mnist'), name='kmnist', train=80, turned=True, label_protocol='proportional', adaptation=None
    )
    config = fixmatch.get_config('kmnist,labels=40')
    mnist = fixmatch.get_config('mnist,labels=40').unlock()
    mnist.data.update(name='kmnist', label_protocol='proportional')
    assert config.to_dict() == mnist.to_dict()
    expected = {'weak.pad': 3, 'weak.flip': False, 'strong.cutout': 14, 'strong.translate': 9, 'mean': (0.5,)}
    assert expected.items() <= flat(config.data.to_dict()).items()


# {name: (shape of an image, {split: images of a class}, first class with images)}
UNUSUAL = {
    'kmnist': ((28, 28, 1), {'train': 8, 'test': 8}, 1),  # as emnist/letters, whose class 0 is empty
    'tf_flowers': ((40, 50, 3), {'train': 8}, 0),
    'cifar10_corrupted': ((32, 32, 3), {'extra': 2, 'test': 8}, 0),  # no training images
}


@pytest.mark.parametrize('name', UNUSUAL)
def test_every_config_takes_any_prepared_data_set(name, prepared):
    shape, splits, first = UNUSUAL[name]
    classes = 5 if name == 'tf_flowers' else 10
    prepared(name, shape, classes, splits, first)
    for module in CONFIGS.values():
        arg = f'{name},target={name}' if module is dann else name
        settings_lib.from_config(module.get_config(arg))
    pair = f'{name},target={name}'
    for module, arg in (
        *((module, name) for module in (fixmatch, finetune, rotation)),  # the others have the data of fixmatch
        *((dann, arg) for arg in (pair, f'{pair},methods=target')),
    ):
        settings = settings_lib.from_config(module.get_config(arg))
        streams = Streams.load(settings, None)
        transfer.check(settings)
        assert data_sets.assumed(settings).startswith(f'{name} ({classes} classes, ')
        assert len(streams.held_out['test'][0]) == (72 if name == 'kmnist' else 8 * classes // 5)
    labels = rotation.get_config(name).transfer.labels
    assert labels == {'kmnist': (50, -1), 'tf_flowers': (25, -1), 'cifar10_corrupted': (50, -1)}[name]


def test_what_is_assumed_is_what_follows_from_the_data(prepared):
    prepared('kmnist', (28, 28, 1), 10)
    config = fixmatch.get_config('kmnist')
    assert data_sets.assumed(settings_lib.from_config(config)) == (
        'kmnist (10 classes, 28x28 pixels, gray): no recipe in configs/data_sets.py, assumed '
        'data.label_protocol=proportional, data.mean=(0.5,), data.std=(0.5,), data.weak.flip=False, data.weak.pad=3, '
        'data.strong.translate=9, data.strong.cutout=14, data.labels=20, steps=1000'
    )
    config.update_from_flattened_dict({'steps': 7, 'data.labels': 10, 'data.weak.pad': 2, 'data.image_size': 14})
    line = data_sets.assumed(settings_lib.from_config(config))
    assert line.endswith('data.weak.flip=False, data.strong.translate=9, data.strong.cutout=14')
    # All labels are used, and nothing is distorted but for the methods that do.
    line = data_sets.assumed(settings_lib.from_config(CONFIGS['supervised'].get_config('kmnist,labels=-1')))
    assert 'labels' not in line
    assert 'strong' not in line
    line = data_sets.assumed(settings_lib.from_config(dann.get_config('digits,target=kmnist')))
    assert line.startswith('kmnist (10 classes, 28x28 pixels, gray): no recipe')
    assert line.endswith('steps=1500')
    for arg in ('digits', 'fashion_mnist', 'cifar10'):
        assert not data_sets.assumed(settings_lib.from_config(fixmatch.get_config(arg)))
    assert not data_sets.assumed(settings_lib.from_config(dann.get_config('mnist,target=usps')))


def test_a_cell_of_a_table_logs_what_it_assumes(prepared, tmp_path, monkeypatch, capsys):
    prepared('kmnist', (28, 28, 1), 10)
    monkeypatch.setattr(experiment, 'run', lambda *_: None)
    settings = settings_lib.from_config(fixmatch.get_config('kmnist'))
    capsys.readouterr()  # of tfds, which has prepared it
    worker._run(settings, tmp_path, None)
    assert capsys.readouterr().out == data_sets.assumed(settings) + '\n'


def test_rotation_has_the_epochs_of_the_papers_code_and_no_more_labels_than_images():
    # 200 epochs, as NUM_EPOCHS of the official config. STL-10 has 100,000 images without labels beside its 5,000.
    for data, images in (('cifar10', 50_000), ('svhn', 73_257), ('stl10', 105_000)):
        config = rotation.get_config(data)
        assert config.steps == 200 * (images // config.data.unlabeled_ratio)
        assert config.eval_steps * 20 == config.steps
    assert rotation.get_config('cifar10').transfer.labels == (50, 200, 1000)
    assert rotation.get_config('domainnet').transfer.labels == (5 * 345, 20 * 345)
    assert rotation.get_config('office31').transfer.labels == (5 * 31, -1)  # DSLR, divided, has 398 images


def test_a_records_normalisation_and_label_protocol_are_those_of_its_runs(monkeypatch):
    digits = dataclasses.replace(data_sets.get('digits'), mean=0.25, std=0.125, label_protocol='proportional')
    monkeypatch.setitem(data_sets.RECORDS, 'digits', digits)
    for data in (
        *(module.get_config('digits').data for module in (fixmatch, finetune, rotation)),
        dann.get_config('digits,target=usps').data,
        dann.get_config('usps,target=digits,methods=target').data,
    ):
        assert (data.mean, data.std, data.label_protocol) == ((0.25,), (0.125,), 'proportional')
    data = dann.get_config('digits,target=digits_m').data
    assert (data.mean, data.std) == ((0.25,) * 3, (0.125,) * 3)
    data = dann.get_config('digits,target=digits_m,methods=target').data
    assert (data.mean, data.std, data.label_protocol) == ((0.5,) * 3, (0.5,) * 3, 'balanced')


@pytest.mark.parametrize(
    'name', [name for name, record in data_sets.RECORDS.items() if record.recipe or record.adaptation]
)
def test_a_recipe_states_what_differs_from_the_defaults(name):
    record = data_sets.get(name)
    defaults = flat(settings_lib.to_config().to_dict()) | record.settings
    for recipe in (record.recipe or {}, record.adaptation.settings if record.adaptation else {}):
        # A recipe that begins with MINUTES may have to state a default again.
        assert [key for key, value in recipe.items() if defaults[key] == value and key not in data_sets.MINUTES] == []


def test_images_of_any_size_are_brought_to_one(prepared):
    prepared('tf_flowers', (50, 70, 3), 5, {'train': 8})
    settings = settings_lib.from_config(fixmatch.get_config('tf_flowers'))
    streams = Streams.load(settings, None)
    assert streams.images.shape[1:] == (64, 64, 3)
    assert (len(streams.images), len(streams.held_out['test'][0])) == (32, 8)  # a fifth is held out
    assert settings.data.weak['flip']
    settings = dataclasses.replace(settings, model={**settings.model, 'blocks': (1,)})
    trace(settings, streams.images.shape[1:], len(streams.class_names))


def test_the_default_number_of_labels_suits_the_classes(prepared):
    prepared('rock_paper_scissors', (300, 300, 3), 3)
    data = fixmatch.get_config('rock_paper_scissors').data
    assert (data.labels, data.image_size) == (12, 64)
    assert fixmatch.get_config('cifar100').data.labels == 400
    assert fixmatch.get_config('cifar10').data.labels == 20


def test_domains_of_different_size_are_brought_to_that_of_the_source(prepared):
    prepared('kmnist', (28, 28, 1), 10)
    data = dann.get_config('kmnist,target=svhn').data
    assert (data.image_size, data.mean, data.target) == (28, (0.5,) * 3, 'svhn_cropped')
    assert dann.get_config('digits,target=usps').data.image_size == 8
    assert dann.get_config('svhn,target=mnist,methods=target').data.mean == (0.5,)


def test_a_data_set_that_cannot_be_used_says_why(prepared):
    with pytest.raises(UserError, match=r'imagenette/\S+ is not prepared in .*python -m data.prepare imagenette'):
        fixmatch.get_config('imagenette')
    with pytest.raises(UserError, match=r"Unknown data set 'oxford_flower102'\. Did you mean 'oxford_flowers102'"):
        fixmatch.get_config('oxford_flower102')
    with pytest.raises(UserError, match="celeb_a is not a data set of images with one 'label' each"):
        data_sets.get('celeb_a')


def test_noisy_student_is_a_setting_of_self_training():
    fields = CONFIGS['self_training'].get_config('digits,noisy_student=1').methods.self_training
    assert (fields.view, fields.soft, fields.growing) == ('strong', True, False)


@pytest.mark.parametrize(
    ('arg', 'message'),
    [
        ('cifar11', "Unknown data set 'cifar11'. Did you mean 'cifar10'"),
        ('cifar10,label=4', "Unknown config argument 'label'. Did you mean 'labels'"),
        ('cifar10,labels=many', "labels='many' is not of type int"),
        ('cifar10,40', "Unknown config argument '40'"),
    ],
)
def test_mistakes_in_the_argument_are_named(arg, message):
    with pytest.raises(UserError) as error:
        fixmatch.get_config(arg)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ('config', 'arg', 'message'),
    [
        (dann, 'digit', "Unknown data set 'digit'. Did you mean 'digits'"),
        (dann, 'mnist', 'Name the target domain, as in configs/dann.py:mnist,target=...'),
        (dann, 'methods=dan', "Unknown method of this config 'dan'. Did you mean 'dann'"),
        (rotation, 'digits,method=simclear', "Did you mean 'simclr'"),
        (rotation, 'digits,labels=4', "Unknown config argument 'labels'"),
    ],
)
def test_mistakes_in_the_argument_of_other_configs_are_named(config, arg, message):
    with pytest.raises(UserError) as error:
        config.get_config(arg)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'data.protocol': 'transductiv'}, "Unknown data.protocol 'transductiv'. Did you mean 'transductive'"),
        ({'data.protocol': 'transductive'}, 'name the data.target'),
        ({'data.target': 'digits', 'data.unlabeled_split': 'train'}, 'leave data.unlabeled_split empty'),
        ({'selection': 'dew'}, "Unknown selection 'dew'. Did you mean 'dev'"),
        ({'selection': 'iwcv'}, 'name a data.target'),
        ({'selection': 'iwcv', 'data.target': 'digits'}, 'set data.validation'),
        ({'optimizer.schedule': 'invers'}, "Did you mean 'inverse'"),
        ({'stepz': 1}, "Unknown setting 'stepz'. Did you mean 'steps'"),
        ({'data.lables': 1}, "Unknown setting of data 'lables'. Did you mean 'labels'"),
        ({'optimizer.learning_rat': 1}, "Did you mean 'learning_rate'"),
        ({'steps': 0}, 'steps must be at least 1'),
        ({'seed': -1}, 'seed must be in'),
        ({'methods': {}}, 'methods is empty'),
        ({'transfer.steps': -7}, 'transfer.steps must be at least 1, not -7'),
        ({'transfer.labels': (50, 0)}, 'transfer.labels must be at least 1, or -1'),
        ({'transfer.learning_rate': -0.1}, 'transfer.learning_rate must be at least 0'),
        ({'transfer.stepz': 1}, "Did you mean 'steps'"),
        ({'optimizer.learning_rate': -0.1}, 'optimizer.learning_rate must be at least 0'),
        ({'optimizer.learning_rate': float('nan')}, 'optimizer.learning_rate must be at least 0'),
        ({'optimizer.momentum': 1.5}, 'optimizer.momentum must be from 0 to 1'),
        ({'optimizer.inverse_gamma': -1.0}, 'optimizer.inverse_gamma must be at least 0'),
        ({'ema_decay': 1.01}, 'ema_decay must be from 0 to 1'),
        ({'data.validation': -1}, 'data.validation must be at least 0'),
        ({'data.unlabeled_ratio': 0}, 'data.unlabeled_ratio must be at least 1'),
        ({'data.labels': 0}, 'data.labels must be at least 1'),
        ({'data.mean': (0.5, 0.5)}, 'need one value a channel'),
        ({'data.mean': ('x',)}, "'mean' must be a tuple of float"),
        ({'data.image_size': -8}, 'data.image_size must be at least 0'),
        ({'data.validation': 10, 'checkpoint_steps': 7, 'eval_steps': 3}, 'checkpoint_steps must be a multiple'),
    ],
)
def test_a_key_that_nothing_reads_or_a_value_out_of_range_is_an_error(change, message):
    config = fixmatch.get_config().unlock()
    for key, value in change.items():
        node, _, leaf = key.rpartition('.')
        (config[node] if node else config)[leaf] = ml_collections.ConfigDict(value) if value == {} else value
    with pytest.raises(UserError) as error:
        settings_lib.from_config(config)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'data.weak': {'pad': -1}}, 'data.weak.pad must be at least 0, not -1'),
        ({'data.weak': {'min_area': 1.5}}, 'data.weak.min_area must be from 0 to 1'),
        ({'data.strong': {'cutout': -1}}, 'data.strong.cutout must be at least 0'),
        ({'data.strong': {'protocol': 'gogle'}}, "Did you mean 'google'"),
        ({'data.strong': {'ops': ()}}, 'data.strong.ops must name at least one operation'),
        ({'data.strong': {'ops': (1, 2)}}, "'ops' must be a tuple of str"),
        ({'data.rotated': {'copies': 3}}, 'data.rotated.copies must be 4, or 1, not 3'),
        ({'model': {'blocks': (1.5,)}}, "'blocks' must be a tuple of int"),
        ({'model': {'name': 'resnet'}}, "Unknown model 'resnet'"),
    ],
)
def test_impossible_augmentations_and_networks_are_refused(change, message):
    config = fixmatch.get_config().unlock()
    for key, fields in change.items():
        config.update_from_flattened_dict({f'{key}.{name}': value for name, value in fields.items()})
    settings = settings_lib.from_config(config)
    with pytest.raises(UserError) as error:
        step_lib.Trainer.create(settings, DataSpec(10, (8, 8, 1), np.arange(10), 10, {'labeled': 1, 'unlabeled': 1}))
    assert message in str(error.value)


_JITTER = {'jitter': 0.8, 'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1, 'gray': 0.2}
_SIMCLR = _JITTER | {'scale': (0.08, 1.0), 'interpolation': 'bicubic', 'blur': (0, 0), 'solarize': (0, 0)}
_BYOL = _SIMCLR | {'saturation': 0.2, 'solarize': (0, 0.2)}
_MOCO = _JITTER | {'scale': (0.2, 1.0), 'interpolation': 'bilinear', 'blur': (0, 0), 'solarize': (0, 0)}
_DOUBLE = {'brightness': 0.8, 'contrast': 0.8, 'saturation': 0.8, 'hue': 0.2, 'blur': (0.5, 0.5)}


@pytest.mark.parametrize(
    ('method', 'small', 'large'),
    [
        ('simclr', _SIMCLR, _DOUBLE),
        ('simsiam', _MOCO, {'blur': (0.5, 0.5)}),
        *((name, _BYOL, {'blur': (1.0, 0.1)}) for name in ('byol', 'barlow_twins', 'vicreg')),
    ],
)
def test_views_are_distorted_as_published(method, small, large):
    def distorted(data):
        values = rotation.get_config(f'{data},method={method}').data.distorted.to_dict()
        assert values.keys() == small.keys()
        return values

    assert distorted('cifar10') == small
    assert distorted('stl10') == small | large
    assert distorted('svhn_cropped') == small | {'scale': (0.2, 1.0)}  # a part of a character is none
    assert distorted('digits') == small | {'scale': (25 / 64, 1.0)}
    comatch = CONFIGS['comatch'].get_config('cifar10,labels=40').data.distorted.to_dict()
    assert comatch == _MOCO
    assert not CONFIGS['comatch'].get_config('svhn,labels=40').data.weak.flip  # which the distorted view has, too


@pytest.mark.parametrize(
    ('name', 'change', 'setting'),
    [
        ('fixmatch', {}, 'data.target_split'),
        ('fixmatch', {}, 'transfer.steps'),
        ('fixmatch', {}, 'transfer.k'),
        ('fixmatch', {}, 'optimizer.inverse_gamma'),
        ('fixmatch', {}, 'optimizer.boundaries'),
        ('fixmatch', {}, 'data.rotated'),
        ('fixmatch', {'data.manifest': 'labels.json'}, 'data.label_seed'),
        ('fixmatch', {'data.strong.protocol': 'torchssl'}, 'data.strong.cutout'),
        ('dann', {}, 'optimizer.cosine_cycles'),
        ('supervised', {}, 'data.unlabeled_ratio'),
        ('supervised', {}, 'data.strong'),
        ('fixmatch', {}, 'data.distorted'),
        ('comatch', {}, 'data.distorted.hue'),
    ],
)
def test_settings_without_effect_are_known(name, change, setting):
    config = CONFIGS[name].get_config()
    config.update_from_flattened_dict(change)
    assert setting in settings_lib.idle(settings_lib.from_config(config))


def test_settings_with_effect_are_not_called_idle():
    idle = {name: settings_lib.idle(settings_lib.from_config(CONFIGS[name].get_config())) for name in CONFIGS}
    assert not {'data.unlabeled_ratio', 'data.strong', 'data.weak', 'optimizer.cosine_cycles'} & idle['fixmatch'].keys()
    assert not {'transfer.k', 'transfer.steps', 'data.rotated', 'data.label_protocol'} & idle['rotation'].keys()
    assert not {'data.distorted', 'data.distorted.scale'} & idle['comatch'].keys()
    assert not {'data.target_split', 'optimizer.inverse_gamma', 'data.validation'} & idle['dann'].keys()
    # Nearest neighbours are the test accuracy of a run that reads no label.
    config = rotation.get_config()
    config.transfer.labels = ()
    without = settings_lib.idle(settings_lib.from_config(config))
    assert 'transfer.k' not in without
    assert 'transfer.steps' in without


SMALL_NETWORK = 'digits,labels=20,model=efficientnet_lite0'


@pytest.mark.parametrize(('arg', 'policy'), [('digits', 'no_grad'), (SMALL_NETWORK, 'separate'), ('cifar10', 'joint')])
def test_small_recipes_normalise_views_in_their_own_way(arg, policy):
    for name in ('fixmatch', 'adamatch', 'uda'):
        assert importlib.import_module(f'configs.{name}').get_config(arg).methods[name].statistics == policy


@pytest.mark.parametrize('name', ['fixmatch', 'mean_teacher', 'simmatch', 's4l', 'finetune'])
def test_pretrained_networks_have_one_recipe_on_small_images(name):
    config = importlib.import_module(f'configs.{name}').get_config(SMALL_NETWORK)
    assert (config.data.image_size, config.model.resolution, config.steps, config.batch_size) == (64, 64, 300, 16)
    assert (config.data.strong.cutout, config.data.strong.translate, config.data.weak.pad) == (32, 20, 8)
    assert (config.optimizer.weight_decay, config.model.bn_momentum) == (0.0, 0.9)
    # A teacher that is the network itself would teach nothing.
    assert (config.ema_decay > 0) == (name in ('mean_teacher', 'simmatch'))


def test_pictures_in_colour_keep_the_running_statistics_of_pretrained_weights():
    for arg, frozen in (
        ('emoji/all,labels=50', True),
        ('emoji/all,labels=50,strategy=decay', True),
        ('emoji/all,labels=50,strategy=scratch', False),  # has none
        ('emoji/all,labels=50,model=bit_r50x1', False),  # has no batch norm
        ('mnist_m,labels=50', False),  # characters
        ('fashion_mnist,labels=50', False),  # gray
    ):
        config = importlib.import_module('configs.finetune').get_config(arg)
        assert config.model.frozen_statistics == frozen, arg
        assert (config.optimizer.learning_rate <= 0.001) == frozen, arg
    for name in ('fixmatch', 'adamatch'):
        config = importlib.import_module(f'configs.{name}').get_config('emoji/all,model=efficientnet_lite0')
        assert config.model.frozen_statistics
        assert config.methods[name].statistics == 'no_grad'
    assert (
        not importlib.import_module('configs.rotation')
        .get_config('emoji/all,method=simclr,model=efficientnet_lite0')
        .model.frozen_statistics
    )  # new features
    # Two domains have statistics to adapt.
    arg = 'emoji/noto,target=emoji/twemoji,model=efficientnet_lite0'
    assert not importlib.import_module('configs.dann').get_config(arg).model.frozen_statistics


def test_vats_step_is_the_same_for_a_pixel_of_images_that_are_enlarged():
    sides = {'digits,labels=20': 8, SMALL_NETWORK: 64}
    for arg, side in sides.items():
        epsilon = importlib.import_module('configs.vat').get_config(arg).methods.vat.epsilon
        assert epsilon == pytest.approx(6 * (side**2 / (32 * 32 * 3)) ** 0.5, abs=0.06)


def test_regularizers_stand_beside_other_methods_with_their_own_settings():
    config = importlib.import_module('configs.fixmatch').get_config(f'{SMALL_NETWORK},beside=l2_sp+delta')
    assert set(config.methods) == {'supervised', 'fixmatch', 'l2_sp', 'delta'}
    assert config.methods.delta.alpha == 0.0004
    for wrong in ('vat', 'fixmatch', 'l2_sp+l2_sp', 'nothing'):
        with pytest.raises(UserError, match='regularizer'):
            importlib.import_module('configs.fixmatch').get_config(f'{SMALL_NETWORK},beside={wrong}')


@pytest.mark.parametrize('name', ['mean_teacher', 'simmatch'])
def test_a_teacher_that_is_the_network_itself_is_an_error(name, make_settings):
    settings = make_settings(name, ema_decay=0.0)
    data = DataSpec(10, (8, 8, 1), np.arange(10), num_unlabeled=20, batch_sizes={'labeled': 4, 'unlabeled': 8})
    with pytest.raises(UserError, match='learns from the averaged network'):
        step_lib.Trainer.create(settings, data)
