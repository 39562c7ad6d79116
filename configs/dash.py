"""Dash (Xu et al. 2021).

    python main.py --config=configs/dash.py                    digits, 20 labels
    python main.py --config=configs/dash.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 15.01±3.70, 5.13±.26,
4.35±.09 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    arg = common.parse_arg(arg, data='digits', labels=20)
    config = common.base(**arg)
    small = arg['data'] in common.SMALL
    config.methods.supervised = {'weight': 1.0}
    config.methods.dash = {
        'weight': 1.0,
        'temperature': 0.5,
        'C': 1.0001,
        'gamma': 1.27,
        'rho_min': 0.05,
        'decays': 102.4,
        'warm_up': 1 / 512,
        'select': 'weak' if small else 'strong',  # 'strong' learns nothing here, see results/README.md
        'batch_norm': 'no_grad' if small else 'joint',
    }
    return config.lock()
