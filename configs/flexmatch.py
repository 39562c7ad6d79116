"""FlexMatch (Zhang et al. 2021, arXiv:2110.08263).

    python main.py --config=configs/flexmatch.py                    digits, 20 labels
    python main.py --config=configs/flexmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
TorchSSL's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 4.97±0.06, 4.98±0.09,
4.19±0.01 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    arg = common.parse_arg(arg, data='digits', labels=20)
    config = common.base(**arg)
    small = arg['data'] in common.SMALL
    config.methods.supervised = {'weight': 1.0}
    config.methods.flexmatch = {
        'threshold': 0.95,
        'weight': 1.0,
        'warm_up': True,
        'batch_norm': 'no_grad' if small else 'joint',
    }
    return config.lock()
