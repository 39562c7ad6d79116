"""Mean Teacher (Tarvainen & Valpola 2017, arXiv:1703.01780).

    python main.py --config=configs/mean_teacher.py                    digits, 20 labels
    python main.py --config=configs/mean_teacher.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
TorchSSL's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 70.09±1.60, 37.46±3.30,
8.10±0.21 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised('supervised', 'mean_teacher', paper=common.ONE_TO_ONE)
