"""Rotation prediction (RotNet, Gidaris et al. 2018, arXiv:1803.07728): features without labels, and their worth.

    python main.py --config=configs/rotation.py                        digits
    python main.py --config=configs/rotation.py:fashion_mnist
    python main.py --config=configs/rotation.py:cifar10                the paper's schedule, on a wide ResNet

trains on the unlabeled images alone and ends with nearest neighbours, linear probe and fine-tuning with few labels,
from the features learned and from random weights. `method=simclr`, `simsiam` or `byol` after the colon learns from two
strong views instead. While it trains, the test accuracy is that of the nearest neighbours; no label is read for
anything else. Measured here: results/README.md.

cifar10 is 200 epochs of 128 images in 4 rotations with SGD, as in the paper's code (config/CIFAR10_RotNet_NIN4blocks.py
of github.com/gidariss/FeatureLearningRotNet), whose network is another one. Not run here.
"""

from ml_collections import ConfigDict

from configs import common
from errors import unknown

METHODS = ('rotation', 'simclr', 'simsiam', 'byol')


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,method=NAME,model=NAME'."""
    arg = common.parse_arg(arg, method='rotation')
    method = arg.pop('method')
    if method not in METHODS:
        raise unknown('method of this config', method, METHODS)
    config = common.base(**arg, labels=-1, methods=(method,))
    data = arg['data']
    few = data.train < 5000
    config.batch_size = 1
    if data.small:
        for width in ('hidden', 'width', 'predictor'):
            if width in config.methods[method]:
                config.methods[method][width] = 128
        config.data.unlabeled_ratio = 32
        if few:
            config.eval_steps = config.steps // 5
        else:  # nearest neighbours among so many labeled images take their time
            config.eval_steps = config.transfer.steps = config.steps
    else:
        epoch = 50000 // 128
        config.data.unlabeled_ratio = 128
        config.steps = 200 * epoch
        config.eval_steps = 10 * epoch
        config.optimizer.update(learning_rate=0.1, schedule='steps', boundaries=(0.3, 0.6, 0.8))
    if not arg['model']:
        config.transfer.layer = 'stage2'  # the paper's choice, too: the last layers know rotations best
    config.transfer.labels = (5 * data.classes, 20 * data.classes, -1 if few else 100 * data.classes)
    return config.lock()
