"""Semi-supervised methods on SVHN with 40, 250 and 1000 labels, beside the published numbers.

    python main.py --config=configs/tables/svhn.py --list
    python main.py --config=configs/tables/svhn.py --jobs=4 --gpus=0,1,2,3

The 73,257 training images without the extra ones, as in the FixMatch paper; TorchSSL and USB
take those, too.

WRN-28-2, 2^20 steps, 3 seeds: 153 runs, of about 16 GPU hours each for FixMatch, by the assumption that --list states.
Not run yet.
"""

from ml_collections import ConfigDict

from configs.tables import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    return common.paper_scale(arg, 'SVHN', 'svhn', (40, 250, 1000), ('fixmatch', 'torchssl', 'usb'), gflop=0.392)
