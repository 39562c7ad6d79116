"""Mean Teacher (Tarvainen & Valpola 2017, arXiv:1703.01780).

    python main.py --config=configs/mean_teacher.py                    digits, 20 labels
    python main.py --config=configs/mean_teacher.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
TorchSSL's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 70.09±1.60, 37.46±3.30,
8.10±0.21 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
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
    config.methods.mean_teacher = {
        'weight': 50.0,
        'ramp': 0.4,
    }
    return config.lock()
