"""VAT with entropy minimisation (Miyato et al. 2018, arXiv:1704.03976).

    python main.py --config=configs/vat.py                    digits, 20 labels
    python main.py --config=configs/vat.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
TorchSSL's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 74.66±2.12, 41.03±1.79,
10.51±0.12 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    options = common.parse_arg(arg, labels=0)
    config = common.base(**options, names=('supervised', 'vat'))
    if (data := options['data']).small:
        # The same for a pixel as the 6 for images of 32x32x3.
        side = config.data.image_size or data.side
        config.methods.vat.epsilon = round(6 * (side**2 * data.channels / (32 * 32 * 3)) ** 0.5, 1)
    else:
        config.update_from_flattened_dict(common.ONE_TO_ONE)
    return config.lock()
