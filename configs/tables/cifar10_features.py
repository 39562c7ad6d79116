"""Evaluation of features learned without labels on CIFAR-10, beside published numbers.

    python main.py --config=configs/tables/cifar10_features.py --jobs=2 --gpus=0,1

200 epochs of a WRN-28-2; features are evaluated with 20, 100, 400, 1,000 and 5,000 labels a class. 18 runs of about a
GPU hour by the assumption that --list states. Not run yet. The published numbers are of other networks and evaluations.
"""

from ml_collections import ConfigDict

from configs.tables import common

LABELS = (200, 1000, 4000, 10000, 50000)
ROWS = {
    'Random weights': {'config': 'rotation', 'start': 'random'},
    **{
        name: {'config': 'rotation', 'arg': f'method={name.lower().replace(" ", "_")}'}
        for name in ('Rotation', 'SimCLR', 'SimSiam', 'BYOL', 'Barlow Twins', 'VICReg')
    },
}


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    # A step is 128 images in 4 rotations; as much again is for the evaluation.
    step = 2 * 3 * 0.392e9 * 512 / common.SUSTAINED
    evaluated = {'arg': 'cifar10', 'overrides': (f'transfer.labels={LABELS}',), 'seconds_per_step': step}
    columns = {f'{n} labels': {'transfer': n, **evaluated} for n in LABELS}
    cost = (
        f'78,000 steps of 512 images at 1.2 GFLOP each, on a GPU that sustains {common.SUSTAINED / 1e12:.0f} TFLOP/s, '
        'and as much again for the evaluation: assumptions. No GPU has been used yet.'
    )
    return common.table(
        arg,
        'Features without labels, CIFAR-10',
        ROWS,
        columns,
        shown='linear_probe',
        papers=('rotnet', 'solo_learn', 'lightly'),
        cost=cost,
    )
