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
    arg = common.parse_arg(arg, data='digits', labels=20)
    config = common.base(**arg)
    small = arg['data'] in common.SMALL
    if not small:
        config.data.unlabeled_ratio = 1
    config.methods.supervised = {'weight': 1.0}
    config.methods.vat = {
        'weight': 0.3,
        'ramp': 0.4,
        'epsilon': {'digits': 0.9, 'fashion_mnist': 3.0}.get(arg['data'], 6.0),  # the same for a pixel
        'xi': 1e-3,
        'iterations': 1,
        'entropy_weight': 0.06,
    }
    return config.lock()
