"""SoftMatch (Chen et al. 2023, arXiv:2301.10921).

    python main.py --config=configs/softmatch.py                    digits, 20 labels
    python main.py --config=configs/softmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 5.06±.02, 4.84±.10, 4.27±.12
with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    arg = common.parse_arg(arg, data='digits', labels=20)
    config = common.base(**arg)
    small = arg['data'] in common.SMALL
    config.methods.supervised = {'weight': 1.0}
    config.methods.softmatch = {
        'weight': 1.0,
        'sigmas': 2.0,
        'decay': 0.99 if small else 0.999,
        'alignment': True,
        'batch_norm': 'no_grad' if small else 'joint',
    }
    return config.lock()
