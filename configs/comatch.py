"""CoMatch (Li et al. 2021, arXiv:2011.11183).

    python main.py --config=configs/comatch.py                    digits, 20 labels
    python main.py --config=configs/comatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 5.44±.05, 5.33±.12, 4.29±.04
with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised(
    'supervised',
    'comatch',
    by_data={'stl10': {'methods.comatch.contrast_weight': 5.0}},  # as in USB; the official code is without STL-10
)
