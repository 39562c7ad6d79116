"""Config files: complete, overridable, faithful to the papers, and runnable on mock data."""

import dataclasses
import functools
import importlib
import pathlib

import conftest
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import methods
import models
from configs import common, dann, fixmatch, rotation, supervised
from data.augment import Rotated, Strong, Weak
from errors import UserError
from methods.base import DataSpec
from train import settings as settings_lib
from train import step as step_lib
from train.transfer import Transfer

CONFIGS = {name: importlib.import_module(f'configs.{name}') for name in conftest.CONFIGS}


def test_every_config_file_is_tested_here():
    files = {path.stem for path in pathlib.Path(common.__file__).parent.glob('*.py')}
    assert files - {'common', '__init__'} == CONFIGS.keys()


# Those that take a number of labels, and those to be compared with each other: same network, same labels, same steps.
WITH_LABELS = [name for name in CONFIGS if name not in ('dann', 'rotation')]
SEMI_SUPERVISED = [name for name in WITH_LABELS if name != 'finetune']
# {config: arguments}
OTHERS = {
    'rotation': [*common.DATA_SETS, *(f'digits,method={name}' for name in rotation.METHODS)],
    'dann': [
        *(f'digits,methods={name}' for name in dann.METHODS),
        'digits,methods=dann+fixmatch',
        'digits,methods=adamatch+cdan',
        *('mnist,target=usps', 'usps,target=mnist', 'svhn_cropped,target=mnist', 'mnist,target=mnist_m'),
        *('office31/amazon,target=office31/dslr', 'office31/dslr,target=office31/webcam,methods=target'),
        *('office_home/art,target=office_home/product,methods=mcc', 'visda/train,target=visda/validation'),
        'domainnet/real,target=domainnet/sketch,methods=cdan',
    ],
}


def names(cls, *but):
    return {f.name for f in dataclasses.fields(cls) if f.init} - set(but)


@pytest.mark.parametrize(
    ('name', 'arg'),
    [(name, f'{data},labels=100') for name in WITH_LABELS for data in common.DATA_SETS]
    + [(name, arg) for name, args in OTHERS.items() for arg in args],
)
def test_every_setting_is_there_to_be_overridden(name, arg):
    config = CONFIGS[name].get_config(arg)
    assert config.is_locked
    assert set(config) == names(settings_lib.Settings)
    assert set(config.data) == names(settings_lib.Data)
    assert set(config.optimizer) == names(settings_lib.Optimizer)
    assert set(config.data.weak) == names(Weak)
    assert set(config.data.strong) == names(Strong) - names(Weak)
    assert set(config.data.rotated) == names(Rotated) - names(Weak)
    assert set(config.transfer) == names(Transfer)
    module, _ = models.MODELS[config.model.name]
    of_every_network = {'name', 'resolution', 'crop', 'pretrained'}
    valid = names(module, 'parent', 'num_classes', 'heads') | of_every_network
    assert set(config.model) <= valid if name == 'dann' else set(config.model) == valid
    for method, fields in config.methods.items():
        assert set(fields) == names(type(methods.create(method, {})))
    assert settings_lib.from_config(config).data.labels == (100 if name in WITH_LABELS else -1)


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
        'methods.fixmatch.batch_norm': 'joint',
        'methods.supervised.weight': 1.0,
        'optimizer.learning_rate': 0.03,
        'optimizer.momentum': 0.9,
        'optimizer.cosine_cycles': 7 / 16,
        'ema_decay': 0.999,
    }
    for key, value in (paper | expected).items():
        assert config[key.split('.')[0]] is not None
        node = config
        for part in key.split('.'):
            node = node[part]
        assert node == value, key
    assert len(config.data.strong.ops) == 14


@pytest.mark.parametrize('name', SEMI_SUPERVISED)
@pytest.mark.parametrize('data', common.SMALL)
def test_every_config_differs_from_the_supervised_baseline_in_its_methods_only(name, data):
    config, baseline = (module.get_config(data).to_dict() for module in (CONFIGS[name], supervised))
    assert name in config.pop('methods')
    assert list(baseline.pop('methods')) == ['supervised']
    assert config == baseline


# {data set: (shape of an image, classes)}
PAPER_SCALE = {
    'cifar10': ((32, 32, 3), 10),
    'cifar100': ((32, 32, 3), 100),
    'svhn': ((32, 32, 3), 10),
    'stl10': ((96, 96, 3), 10),
}


# All data sets with one method, since their part is the same for all; the most classes and the largest images with all.
@pytest.mark.parametrize(
    ('name', 'data'),
    [('fixmatch', 'cifar10'), ('fixmatch', 'svhn')]
    + [(name, data) for name in CONFIGS if name != 'dann' for data in ('cifar100', 'stl10')],
)
def test_paper_scale_steps_can_be_traced_as_they_are(name, data):
    image, classes = PAPER_SCALE[data]
    settings = settings_lib.from_config(CONFIGS[name].get_config(data))
    # A network of fewer blocks where only the methods' part is in question.
    if name in SEMI_SUPERVISED and name != 'fixmatch':
        settings = dataclasses.replace(settings, model={**settings.model, 'blocks': (1,)})
    sizes = {'labeled': 64, 'unlabeled': 64 * settings.data.unlabeled_ratio}
    labels = np.arange(settings.data.labels) % classes
    trainer = step_lib.Trainer.create(settings, DataSpec(classes, image, labels, 5000, sizes))
    batch = {
        stream: {'images': jax.ShapeDtypeStruct((n, *image), 'uint8')}
        | dict.fromkeys(('labels', 'indices'), jax.ShapeDtypeStruct((n,), 'int32'))
        for stream, n in trainer.batch_sizes.items()
    }
    state = jax.eval_shape(functools.partial(step_lib.init, trainer), batch)
    new, _ = jax.eval_shape(functools.partial(step_lib.step, trainer), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert new.params['head']['kernel'].shape[1] == classes


@pytest.mark.parametrize('arg', OTHERS['dann'])
def test_domain_adaptation_can_be_traced_as_it_is(arg):
    config = dann.get_config(arg)
    config.model.pretrained = ''
    settings = settings_lib.from_config(config)
    side = settings.data.image_size or 8
    sizes = dict.fromkeys(('labeled', 'unlabeled'), settings.batch_size)
    trainer = step_lib.Trainer.create(settings, DataSpec(10, (side, side, 3), np.arange(500) % 10, 500, sizes))
    batch = {
        stream: {'images': jax.ShapeDtypeStruct((n, side, side, 3), 'uint8')}
        | dict.fromkeys(('labels', 'indices'), jax.ShapeDtypeStruct((n,), 'int32'))
        for stream, n in trainer.batch_sizes.items()
    }
    state = jax.eval_shape(functools.partial(step_lib.init, trainer), batch)
    new, _ = jax.eval_shape(functools.partial(step_lib.step, trainer), state, batch)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    if settings.model['bottleneck_width']:
        assert new.params['head']['kernel'].shape[0] == settings.model['bottleneck_width']


@pytest.mark.parametrize('name', [*SEMI_SUPERVISED, 'rotation'])
def test_paper_scale_hyper_parameters_are_the_methods_defaults(name):
    config = CONFIGS[name].get_config('cifar10')
    for method, fields in config.methods.items():
        assert methods.create(method, fields) == methods.create(method, {})


def test_noisy_student_is_a_setting_of_self_training():
    fields = CONFIGS['self_training'].get_config('digits,noisy_student=1').methods.self_training
    assert (fields.view, fields.soft, fields.growing) == ('strong', True, False)


@pytest.mark.parametrize(
    ('arg', 'message'),
    [
        ('cifar11', "Unknown data set of this config 'cifar11'. Did you mean 'cifar10'"),
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
        (dann, 'digit', "Unknown source domain of this config 'digit'. Did you mean 'digits'"),
        (dann, 'mnist', 'Name the target domain'),
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
