"""ReMixMatch (Berthelot et al. 2020, arXiv:1911.09785) with RandAugment.

    python main.py --config=configs/remixmatch.py                    digits, 20 labels
    python main.py --config=configs/remixmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
FixMatch's paper (not ours; table 2, with CTAugment, error in %, median of the last 20 checkpoints, 5 folds):
CIFAR-10 19.10±9.64, 5.44±.05, 4.72±.13 with 40, 250, 4000 labels. No paper-scale run of this code has been made
yet.
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
    config.methods.remixmatch = {
        'temperature': 0.5,
        'alpha': 0.75,
        'strong_views': 1 if small else 8,
        'weight': 1.5,
        'anchor_weight': 0.5,
        'rotation_weight': 0.5,
        'ramp': 1 / 64,
        'average': 128,
    }
    return config.lock()
