"""ReMixMatch (Berthelot et al. 2020, arXiv:1911.09785) with RandAugment.

    python main.py --config=configs/remixmatch.py                    digits, 20 labels
    python main.py --config=configs/remixmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
FixMatch's paper (not ours; table 2, with CTAugment, error in %, median of the last 20 checkpoints, 5 folds):
CIFAR-10 19.10±9.64, 5.44±.05, 4.72±.13 with 40, 250, 4000 labels. No paper-scale run of this code has been made
yet.
"""

from configs import common

get_config = common.semi_supervised(
    'remixmatch',
    small={'methods.remixmatch.strong_views': 1},
    paper=common.ONE_TO_ONE,
    # The scripts of the official code. They have no 40 labels of STL-10, and no CIFAR-100.
    by_data={
        'cifar10,labels=40': {
            'methods.remixmatch.strong_views': 1,
            'methods.remixmatch.rotation_weight': 2.0,
            'methods.remixmatch.ramp': 1 / 8,
        },
        'svhn_cropped,labels=40': {'methods.remixmatch.strong_views': 1, 'methods.remixmatch.rotation_weight': 3.0},
        'stl10': {'methods.remixmatch.strong_views': 4},
    },
)
