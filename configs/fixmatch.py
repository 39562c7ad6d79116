"""FixMatch (Sohn et al. 2020, arXiv:2001.07685) with RandAugment.

    python main.py --config=configs/fixmatch.py                              digits, 20 labels
    python main.py --config=configs/fixmatch.py:fashion_mnist,labels=40
    python main.py --config=configs/fixmatch.py:cifar10,labels=40            or 250, 4000
    python main.py --config=configs/fixmatch.py:cifar100,labels=400          or 2500, 10000
    python main.py --config=configs/fixmatch.py:svhn,labels=40               or 250, 1000
    python main.py --config=configs/fixmatch.py:stl10,labels=1000

Measured here: results/README.md.

The paper's (not ours; table 2, FixMatch (RA), error in %, mean and standard deviation over 5 folds, median of the last
20 checkpoints, EMA): CIFAR-10 13.81±3.37, 5.07±.65, 4.26±.05 with 40, 250, 4000 labels; CIFAR-100 (WRN-28-8)
48.85±1.75, 28.29±.11, 22.60±.12 with 400, 2500, 10000; SVHN without 'extra' 3.96±2.17, 2.48±.38, 2.28±.11 with 40, 250,
1000; STL-10 7.98±1.50 with 1000. Their cost, as others report it on one GPU: 6 h to 4 days for 2^20 steps on CIFAR-10.
No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised('supervised', 'fixmatch')
