"""Supervised training on the labeled images alone: the baseline of every semi-supervised config.

    python main.py --config=configs/supervised.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py and differs from it in nothing but the methods: same labels, network,
optimizer, steps and weak augmentation. Measured here: results/README.md.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    arg = common.parse_arg(arg, data='digits', labels=20)
    config = common.base(**arg)
    config.methods.supervised = {'weight': 1.0}
    return config.lock()
