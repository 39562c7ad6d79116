"""FlexMatch (Zhang et al. 2021, arXiv:2110.08263).

    python main.py --config=configs/flexmatch.py                    digits, 20 labels
    python main.py --config=configs/flexmatch.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
TorchSSL's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 4.97±0.06, 4.98±0.09,
4.19±0.01 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised('supervised', 'flexmatch')
