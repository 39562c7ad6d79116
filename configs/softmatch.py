"""SoftMatch (Chen et al. 2023, arXiv:2301.10921).

    python main.py --config=configs/softmatch.py                    digits, 20 labels
    python main.py --config=configs/softmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 5.06±.02, 4.84±.10, 4.27±.12
with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised('supervised', 'softmatch', small={'methods.softmatch.decay': 0.99})
