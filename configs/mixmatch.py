"""MixMatch (Berthelot et al. 2019, arXiv:1905.02249).

    python main.py --config=configs/mixmatch.py                    digits, 20 labels
    python main.py --config=configs/mixmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
FixMatch's paper (not ours; table 2, error in %, median of the last 20 checkpoints, 5 folds): CIFAR-10 47.54±11.50,
11.05±.86, 6.42±.10 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised(
    'mixmatch',
    small={'methods.mixmatch.ramp': 0.4},  # TorchSSL's; 1/64 of a short run is too soon, see results/README.md
    paper=common.ONE_TO_ONE,
)
