"""Pi-Model (Laine & Aila 2017, arXiv:1610.02242).

    python main.py --config=configs/pi_model.py                    digits, 20 labels
    python main.py --config=configs/pi_model.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
TorchSSL's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 74.34±1.76, 46.24±1.29,
13.13±0.59 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised('supervised', 'pi_model', paper=common.ONE_TO_ONE)
