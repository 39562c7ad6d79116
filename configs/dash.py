"""Dash (Xu et al. 2021).

    python main.py --config=configs/dash.py                    digits, 20 labels
    python main.py --config=configs/dash.py:cifar10,labels=40

takes the same arguments as configs/fixmatch.py. Measured here, with its cost: results/README.md.
USB's (not ours; error in %, best of run on the test set, 3 seeds, WRN-28-2, a variant between the authors' code and
their text, see methods/dash.py): CIFAR-10 15.01±3.70, 5.13±.26, 4.35±.09 with 40, 250, 4000 labels. The authors' script
for SVHN with 40 labels has a learning rate of 0.06. No paper-scale run of this code has been made yet.
"""

from configs import common

get_config = common.semi_supervised('supervised', 'dash')
