"""AdaMatch (Berthelot et al. 2022, arXiv:2106.04732).

    python main.py --config=configs/adamatch.py                    digits, 20 labels
    python main.py --config=configs/adamatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2), without interpolation, strong labeled
view and ramp: CIFAR-10 5.05±.04, 5.01±.11, 4.29±.06 with 40, 250, 4000 labels. No paper-scale run of this code has
been made yet.
"""

from configs import common

get_config = common.semi_supervised(
    'adamatch',
    small={'methods.adamatch.decay': 0.99},
    paper={'data.unlabeled_ratio': 3, 'optimizer.weight_decay': 1e-3},
)
