"""SimMatch (Zheng et al. 2022, arXiv:2203.06915).

    python main.py --config=configs/simmatch.py                    digits, 20 labels
    python main.py --config=configs/simmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 5.18±.15, 4.99±.12, 4.51±.08
with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    arg = common.parse_arg(arg, data='digits', labels=20)
    config = common.base(**arg)
    config.methods.supervised = {'weight': 1.0}
    config.methods.simmatch = {
        'threshold': 0.95,
        'temperature': 0.1,
        'weight': 1.0,
        'instance_weight': 1.0,
        'alpha': 0.9,
        'embedding': 128,
        'average': 32,
    }
    return config.lock()
