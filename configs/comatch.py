"""CoMatch (Li et al. 2021, arXiv:2011.11183).

    python main.py --config=configs/comatch.py                    digits, 20 labels
    python main.py --config=configs/comatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 5.44±.05, 5.33±.12, 4.29±.04
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
    config.methods.comatch = {
        'threshold': 0.95,
        'contrast_threshold': 0.8,
        'temperature': 0.2,
        'weight': 1.0,
        'contrast_weight': 1.0,
        'alpha': 0.9,
        'embedding': 64,
        'batches': 5,
        'average': 32,
        'batch_norm': 'no_grad' if small else 'joint',
    }
    return config.lock()
