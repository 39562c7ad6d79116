"""Pseudo-Label (Lee 2013) with a confidence threshold.

    python main.py --config=configs/pseudo_label.py                    digits, 20 labels
    python main.py --config=configs/pseudo_label.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
TorchSSL's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 74.61±0.26, 46.49±2.20,
15.08±0.19 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised('supervised', 'pseudo_label', paper=common.ONE_TO_ONE)
