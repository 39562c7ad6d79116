"""UDA (Xie et al. 2020, arXiv:1904.12848) with RandAugment.

    python main.py --config=configs/uda.py                    digits, 20 labels
    python main.py --config=configs/uda.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
FixMatch's paper (not ours; table 2, error in %, median of the last 20 checkpoints, 5 folds): CIFAR-10 29.05±5.93,
8.82±1.08, 4.88±.18 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    arg = common.parse_arg(arg, data='digits', labels=20)
    config = common.base(**arg)
    small = arg['data'] in common.SMALL
    config.methods.supervised = {'weight': 1.0}
    config.methods.uda = {
        'threshold': 0.8,
        'temperature': 0.4,
        'weight': 1.0,
        'batch_norm': 'no_grad' if small else 'joint',
    }
    return config.lock()
