"""MixMatch (Berthelot et al. 2019, arXiv:1905.02249).

    python main.py --config=configs/mixmatch.py                    digits, 20 labels
    python main.py --config=configs/mixmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
FixMatch's paper (not ours; table 2, error in %, median of the last 20 checkpoints, 5 folds): CIFAR-10 47.54±11.50,
11.05±.86, 6.42±.10 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
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
    config.methods.mixmatch = {
        'temperature': 0.5,
        'alpha': 0.75,
        'weight': 75.0,
        'ramp': 0.4 if small else 1 / 64,  # TorchSSL's; 1/64 of a short run is too soon, see results/README.md
        'per_example': True,
    }
    return config.lock()
