"""UDA (Xie et al. 2020, arXiv:1904.12848) with RandAugment.

    python main.py --config=configs/uda.py                    digits, 20 labels
    python main.py --config=configs/uda.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
FixMatch's paper (not ours; table 2, error in %, median of the last 20 checkpoints, 5 folds): CIFAR-10 29.05±5.93,
8.82±1.08, 4.88±.18 with 40, 250, 4000 labels, with a threshold of 0.95 and a temperature of 1. The UDA authors' scripts
(500,000 steps): accuracy 94.57±.96, 95.68±.08 % with 250, 4000. No paper-scale run of this code has been made yet.
Training signal annealing, which neither has on images, is --config.methods.supervised.annealing=linear (or log, exp).
"""

from configs import common

get_config = common.semi_supervised('supervised', 'uda')
