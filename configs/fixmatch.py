"""FixMatch (Sohn et al. 2020, arXiv:2001.07685) with RandAugment.

python main.py --config=configs/fixmatch.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N'."""
    arg = common.parse_arg(arg, data='digits', labels=20)
    config = common.base(**arg)
    config.methods.supervised = {'weight': 1.0}
    config.methods.fixmatch = {'threshold': 0.95, 'weight': 1.0, 'weak_batch_norm': 'joint'}
    return config.lock()
