"""Supervised training on the labeled images alone: the baseline of every semi-supervised config.

    python main.py --config=configs/supervised.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py and differs from it in nothing but the methods: same labels, network,
optimizer, steps and weak augmentation. Measured here: results/README.md.
"""

from configs import common

get_config = common.semi_supervised('supervised')
