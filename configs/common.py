"""What the configs share: reading the argument after the colon, and the data sets' settings and recipes."""

from typing import Any

from ml_collections import ConfigDict

from data.augment import Strong
from errors import UserError, unknown


def parse_arg(arg: str, **defaults: Any) -> dict[str, Any]:
    """Reads 'cifar10,labels=40': a data set's name, then key=value pairs with the types of `defaults`.

    Every config takes model=NAME.

    Raises UserError for a key that is not in defaults or a value of another type.
    """
    defaults = {'model': '', **defaults}
    values = dict(defaults)
    for i, part in enumerate(arg.split(',') if arg else []):
        key, equals, text = part.partition('=')
        if not equals and i == 0:
            key, text = 'data', part
        if key not in defaults:
            raise unknown('config argument', key, defaults)
        try:
            values[key] = type(defaults[key])(text)
        except ValueError as error:
            kind = type(defaults[key]).__name__
            raise UserError(f"Config argument {key}='{text}' is not of type {kind}.") from error
    return values


def base(data: str, labels: int, model: str = '') -> ConfigDict:
    """Returns the settings that all semi-supervised configs share for a data set; methods are left to them.

    cifar10, cifar100, svhn and stl10 follow the FixMatch paper and its official code (section 4 and appendix B
    of arXiv:2001.07685; github.com/google-research/fixmatch): K = 2^20 steps of 64 labeled and 7 * 64 unlabeled
    images. digits and fashion_mnist are our own small settings.

    model: another network than the wide ResNet, with its published weights where it has some.
    """
    if data not in DATA_SETS:
        raise unknown('data set of this config', data, DATA_SETS)
    config = ConfigDict(
        {
            'seed': 0,
            'steps': 2**20,
            'batch_size': 64,
            'data': {
                'name': data,
                'train_split': 'train',
                'unlabeled_split': '',
                'test_split': 'test',
                'labels': labels,
                'label_protocol': 'balanced',
                'label_seed': -1,
                'manifest': '',
                'validation': 0,
                'target': '',
                'target_split': '',
                'protocol': 'inductive',
                'image_size': 0,
                'cache_features': False,
                'unlabeled_ratio': 7,
                'mean': (0.5, 0.5, 0.5),
                'std': (0.5, 0.5, 0.5),
                'weak': {'flip': True, 'vertical_flip': False, 'pad': 4, 'min_area': 0.0},
                'strong': {'protocol': 'google', 'translate': 10, 'cutout': 16, 'ops': Strong.ops},
                'rotated': {'last': True, 'copies': 4},
            },
            'model': {
                'name': 'wide_resnet',
                'blocks': (4, 4, 4),
                'width': 2,
                'bn_momentum': 0.999,
                'bn_epsilon': 1e-3,
                'negative_slope': 0.1,
                **MODEL,
            },
            'methods': {},
            'optimizer': {
                'learning_rate': 0.03,
                'momentum': 0.9,
                'weight_decay': 5e-4,
                'schedule': 'cosine',
                'cosine_cycles': 7 / 16,
                'boundaries': (),
                'inverse_gamma': 10.0,
                'inverse_power': 0.75,
                'warmup': 0.0,
                'layer_rates': (),
                'layer_decay': 1.0,
                'unfreeze_step': 0,
            },
            'ema_decay': 0.999,
            'log_steps': 128,
            'eval_steps': 1024,
            'checkpoint_steps': 4096,
            'selection': 'validation',
            'transfer': {
                'labels': (),
                'layer': 'features',
                'k': 20,
                'temperature': 0.07,
                'metric': 'cosine',
                'standardize': False,
                'steps': 300,
                'batch_size': 16,
                'learning_rate': 0.03,
            },
        }
    )
    config.update_from_flattened_dict(DATA_SETS[data])
    if model and model != config.model.name:
        config.model = {'name': model, **MODEL, **NETWORKS.get(model, {})}
    return config


# What every network has: the weights to begin with, the size images are brought to (0: that of the weights, or none)
# and the part of them that is kept, what batch norm does, a layer below the classifier, dropout of features.
MODEL = {
    'pretrained': '',
    'resolution': 0,
    'crop': 0.0,
    'frozen_statistics': False,
    'batch_norm': 'joint',
    'bottleneck_width': 0,
    'dropout': 0.0,
}

# Published weights of a network, and what of it may be set.
NETWORKS = {
    name: {'pretrained': f'torchvision/{name}'}
    for name in (
        *('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152'),
        *('resnext50_32x4d', 'wide_resnet50_2'),
    )
} | {
    'bit_r50x1': {'pretrained': 'timm/resnetv2_50x1_bit.goog_in21k'},
    'bit_r101x1': {'pretrained': 'timm/resnetv2_101x1_bit.goog_in21k'},
    'efficientnet_lite0': {
        'pretrained': 'efficientnet_lite0',
        'dropout': 0.2,
        'drop_path': 0.2,
        'bn_momentum': 0.99,
        'bn_epsilon': 1e-3,
    },
}


# Ours, made for a run of minutes on two cores; the others are the paper's. Configs take the cheaper batch norm policy
# for the weak view here ('no_grad', methods/fixmatch.py), and the same share of unlabeled images for all methods.
SMALL = ('digits', 'fashion_mnist')

# What differs from the paper's CIFAR-10 recipe above.
DATA_SETS = {
    'cifar10': {},
    'cifar100': {'model.width': 8, 'optimizer.weight_decay': 1e-3},
    # The 73,257 training images without 'extra', as in the paper; digits are not mirrored.
    'svhn': {'data.name': 'svhn_cropped', 'data.label_protocol': 'proportional', 'data.weak.flip': False},
    # 96x96: one more stage, 12 pixels of padding. The paper uses the data set's own folds of 1,000 labels,
    # which tfds leaves out: give their indices as a manifest to have the same.
    'stl10': {'data.unlabeled_split': 'unlabelled', 'data.weak.pad': 12, 'model.blocks': (4, 4, 4, 4)},
    'fashion_mnist': {
        'steps': 1000,
        'batch_size': 16,
        'data.unlabeled_ratio': 3,
        'data.mean': (0.5,),
        'data.std': (0.5,),
        'data.strong.translate': 9,
        'data.strong.cutout': 14,
        'data.weak.pad': 3,
        'model.blocks': (1, 1, 1),
        'model.width': 1,
        'model.bn_momentum': 0.99,
        'ema_decay': 0.99,
        'log_steps': 25,
        'eval_steps': 50,
        'checkpoint_steps': 250,
    },
    'digits': {
        'steps': 2000,
        'batch_size': 8,
        'data.unlabeled_ratio': 3,
        'data.mean': (0.5,),
        'data.std': (0.5,),
        'data.weak.flip': False,
        'data.weak.pad': 1,
        'data.strong.translate': 2,
        'data.strong.cutout': 4,
        'model.blocks': (1, 1, 1),
        'model.bn_momentum': 0.99,
        'optimizer.weight_decay': 2e-3,
        'ema_decay': 0.99,
        'log_steps': 50,
        'eval_steps': 50,
        'checkpoint_steps': 500,
    },
}
