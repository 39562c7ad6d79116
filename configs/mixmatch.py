"""MixMatch (Berthelot et al. 2019, arXiv:1905.02249).

    python main.py --config=configs/mixmatch.py                    digits, 20 labels
    python main.py --config=configs/mixmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
FixMatch's paper (not ours; table 2, error in %, median of the last 20 checkpoints, 5 folds): CIFAR-10 47.54±11.50,
11.05±.86, 6.42±.10 with 40, 250, 4000 labels. The settings of its code, alpha 0.5 and weight 100 on every data set, are
those of the paper-scale tables; here alpha and weight are the MixMatch paper's, which had Adam as its optimizer. No
paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised(
    'mixmatch',
    small={'methods.mixmatch.ramp': 0.4},  # TorchSSL's; 1/64 of a short run is too soon, see results/README.md
    paper=common.ONE_TO_ONE,
    # lambda_U of the paper's runs, from the scripts of the official code.
    by_data={
        'cifar100': {'methods.mixmatch.weight': 150.0},
        'svhn_cropped': {'methods.mixmatch.weight': 250.0},
        'stl10': {'methods.mixmatch.weight': 50.0},
    },
)
