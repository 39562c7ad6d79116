"""Pi-Model (Laine & Aila 2017, arXiv:1610.02242).

    python main.py --config=configs/pi_model.py                    digits, 20 labels
    python main.py --config=configs/pi_model.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
TorchSSL's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 74.34±1.76, 46.24±1.29,
13.13±0.59 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
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
    config.methods.pi_model = {
        'weight': 10.0,
        'ramp': 0.4,
    }
    return config.lock()
