"""AdaMatch (Berthelot et al. 2022, arXiv:2106.04732).

    python main.py --config=configs/adamatch.py                    digits, 20 labels
    python main.py --config=configs/adamatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2), without interpolation, strong labeled
view and ramp: CIFAR-10 5.05±.04, 5.01±.11, 4.29±.06 with 40, 250, 4000 labels. No paper-scale run of this code has
been made yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    arg = common.parse_arg(arg, data='digits', labels=20)
    config = common.base(**arg)
    small = arg['data'] in common.SMALL
    if not small:
        config.data.unlabeled_ratio = 3
        config.optimizer.weight_decay = 1e-3
    config.methods.adamatch = {
        'threshold': 0.9,
        'temperature': 0.0,
        'weight': 1.0,
        'interpolation': True,
        'decay': 0.99 if small else 0.999,
        'average': 128,
        'batch_norm': 'no_grad' if small else 'joint',
    }
    return config.lock()
