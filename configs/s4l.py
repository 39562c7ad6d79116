"""S4L-Rotation (Zhai et al. 2019, arXiv:1905.03670): rotation prediction beside classification.

    python main.py --config=configs/s4l.py                        digits, 20 labels
    python main.py --config=configs/s4l.py:cifar10,labels=4000

takes the same arguments as configs/fixmatch.py. Measured here: results/README.md. The paper is on ImageNet with 10 %
of the labels (not ours; top-1 accuracy of the official code's README: 61.37 %, supervised 56.36 %). Its settings for
small images are not published, so optimizer and batch here are FixMatch's. No paper-scale run has been made yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    options = common.parse_arg(arg, labels=0)
    config = common.base(**options, names=('s4l',))
    if options['data'].small:
        config.methods.s4l.all_copies = options['data'].turned
    else:
        config.update_from_flattened_dict(common.ONE_TO_ONE)
    return config.lock()
