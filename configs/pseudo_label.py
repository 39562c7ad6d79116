"""Pseudo-Label (Lee 2013) with a confidence threshold.

    python main.py --config=configs/pseudo_label.py                    digits, 20 labels
    python main.py --config=configs/pseudo_label.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
TorchSSL's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 74.61±0.26, 46.49±2.20,
15.08±0.19 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    arg = common.parse_arg(arg, data='digits', labels=20)
    config = common.base(**arg)
    small = arg['data'] in common.SMALL
    if not small:
        config.data.unlabeled_ratio = 1
    config.methods.supervised = {'weight': 1.0}
    config.methods.pseudo_label = {
        'threshold': 0.95,
        'weight': 1.0,
        'ramp': 0.4,
    }
    return config.lock()
