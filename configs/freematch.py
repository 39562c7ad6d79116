"""FreeMatch (Wang et al. 2023, arXiv:2205.07246).

    python main.py --config=configs/freematch.py                    digits, 20 labels
    python main.py --config=configs/freematch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 4.97±.09, 4.85±.10, 4.14±.19
with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised(
    'supervised',
    'freematch',
    small={'methods.freematch.decay': 0.99},
    by_data={'svhn_cropped': {'methods.freematch.lowest': 0.9, 'methods.freematch.highest': 0.95}},
)
