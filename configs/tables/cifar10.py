"""Semi-supervised methods on CIFAR-10 with 40, 250 and 4000 labels, beside the published numbers.

    python main.py --config=configs/tables/cifar10.py --list
    python main.py --config=configs/tables/cifar10.py --jobs=4 --gpus=0,1,2,3

WRN-28-2, 2^20 steps, 3 seeds: 153 runs, of about 16 GPU hours each for FixMatch, by the assumption that --list states.
Not run yet.
"""

from ml_collections import ConfigDict

from configs.tables import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    return common.paper_scale(arg, 'CIFAR-10', 'cifar10', (40, 250, 4000), ('fixmatch', 'torchssl', 'usb'), gflop=0.392)
