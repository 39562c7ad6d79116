"""SimMatch (Zheng et al. 2022, arXiv:2203.06915).

    python main.py --config=configs/simmatch.py                    digits, 20 labels
    python main.py --config=configs/simmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 5.18±.15, 4.99±.12, 4.51±.08
with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised('supervised', 'simmatch')
