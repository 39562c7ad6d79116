"""Rotation prediction (RotNet, Gidaris et al. 2018, arXiv:1803.07728): features without labels.

    python main.py --config=configs/rotation.py                        digits
    python main.py --config=configs/rotation.py:fashion_mnist
    python main.py --config=configs/rotation.py:cifar10                the paper's schedule, on a wide ResNet

trains on the unlabeled images alone. An evaluation of the learned features follows: nearest neighbours, linear probe
and fine-tuning with few labels, beside the same from random weights. `method=simclr`, `simsiam`, `byol`, `barlow_twins`
or `vicreg` after the colon learns from two distorted views instead. During training the test accuracy is that of the
nearest neighbours; labels are read for nothing else. Measured here: results/README.md.

cifar10 is 200 epochs of 128 images in 4 rotations with SGD, as in the paper's code (config/CIFAR10_RotNet_NIN4blocks.py
of github.com/gidariss/FeatureLearningRotNet), whose network is another one. All methods have that schedule; their own
papers train for longer, with other optimizers. Not run here.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from errors import unknown

# How the authors distort, where it differs from data.distorted's defaults. Sources: SimCLR's appendix B.9 and README;
# simsiam/main_simsiam.py; byol/utils/augmentations.py; barlowtwins/main.py; vicreg/augmentations.py. All but SimSiam's
# draw crops from 0.08 of the area on.
_BYOL = {'interpolation': 'bicubic', 'saturation': 0.2, 'solarize': (0.0, 0.2)}
METHODS: dict[str, dict[str, Any]] = {
    'rotation': {},
    'simclr': {'interpolation': 'bicubic'},
    'simsiam': {},
    'byol': _BYOL,
    'barlow_twins': _BYOL,
    'vicreg': _BYOL,
}
# For images of more than 32 pixels, as ImageNet's. On smaller ones SimCLR and SimSiam do not blur, nor solo-learn BYOL.
_LARGE: dict[str, dict[str, Any]] = {
    'simclr': {'brightness': 0.8, 'contrast': 0.8, 'saturation': 0.8, 'hue': 0.2, 'blur': (0.5, 0.5)},
    'simsiam': {'blur': (0.5, 0.5)},
    **{method: {'blur': (1.0, 0.1)} for method in ('byol', 'barlow_twins', 'vicreg')},
}


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,method=NAME,model=NAME'."""
    options = common.parse_arg(arg, method='rotation')
    method = options.pop('method')
    if method not in METHODS:
        raise unknown('method of this config', method, METHODS)
    # New features need statistics of their own.
    config = common.base(**options, labels=-1, names=(method,), natural=False)
    data = options['data']
    few = data.train < 5000
    config.batch_size = 1
    config.data.distorted.update(METHODS[method])
    if method not in ('rotation', 'simsiam'):
        config.data.distorted.scale = (data.least_crop(0.08), 1.0)
    if data.side > 32:
        config.data.distorted.update(_LARGE.get(method, {}))
    if data.small:
        for width in ('hidden', 'width', 'predictor'):
            if width in config.methods[method]:
                config.methods[method][width] = 128
        if method == 'barlow_twins':  # its loss is a sum over dimensions, at 1 too steep for SGD
            config.methods.barlow_twins.weight = 0.024
        config.data.unlabeled_ratio = 32
        if few:
            config.eval_steps = config.steps // 5
        else:  # nearest neighbours among so many labeled images take their time
            config.eval_steps = config.transfer.steps = config.steps
        config.checkpoint_steps = config.eval_steps
    else:
        epoch = (data.train + data.unlabeled) // 128
        config.data.unlabeled_ratio = 128
        config.steps = 200 * epoch
        config.eval_steps = 10 * epoch
        config.optimizer.update(learning_rate=0.1, schedule='steps', boundaries=(0.3, 0.6, 0.8))
        if method in ('barlow_twins', 'vicreg'):  # solo-learn's for CIFAR
            config.methods[method].update(hidden=2048, width=2048)
        if method == 'barlow_twins':
            config.methods.barlow_twins.weight = 0.1  # solo-learn's, too
    if not options['model']:
        config.transfer.layer = 'stage2'  # the paper's choice, too: the last layers know rotations best
    labels = (5 * data.classes, 20 * data.classes, -1 if few else 100 * data.classes)
    config.transfer.labels = tuple(number for number in labels if number <= data.train)
    return config.lock()
