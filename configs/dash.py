"""Dash (Xu et al. 2021).

    python main.py --config=configs/dash.py                    digits, 20 labels
    python main.py --config=configs/dash.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2): CIFAR-10 15.01±3.70, 5.13±.26,
4.35±.09 with 40, 250, 4000 labels. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised(
    'supervised',
    'dash',
    small={'methods.dash.select': 'weak'},  # 'strong' learns nothing here, see results/README.md
)
