"""Self-training in rounds (arXiv:2001.06001), Noisy Student (arXiv:1911.04252) as a setting of it.

    python main.py --config=configs/self_training.py                    digits, 20 labels
    python main.py --config=configs/self_training.py:cifar10,labels=40
    python main.py --config=configs/self_training.py:digits,noisy_student=1

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
No paper-scale run of this code has been made yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the settings for 'DATA,labels=N,noisy_student=0 or 1'."""
    options = common.parse_arg(arg, labels=0, noisy_student=0)
    noisy_student = options.pop('noisy_student')
    config = common.base(**options, names=('supervised', 'self_training'))
    if options['data'].small:
        config.methods.self_training.rounds = 3
    if noisy_student:
        config.methods.self_training.update(growing=False, soft=True, view='strong')
    return config.lock()
