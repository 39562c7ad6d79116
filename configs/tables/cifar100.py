"""Semi-supervised methods on CIFAR-100 with 400, 2500 and 10000 labels, beside the published numbers.

    python main.py --config=configs/tables/cifar100.py --list
    python main.py --config=configs/tables/cifar100.py --jobs=4 --gpus=0,1,2,3

WRN-28-8, 2^20 steps, 3 seeds: 153 runs, of about 256 GPU hours each for FixMatch, by the assumption that --list states.
Not run yet.
"""

from ml_collections import ConfigDict

from configs.tables import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    return common.paper_scale(
        arg, 'CIFAR-100', 'cifar100', (400, 2500, 10000), ('fixmatch', 'torchssl', 'usb'), gflop=6.113
    )
