"""Evaluation of features learned without labels on digits and Fashion-MNIST, beside those of random weights.

    python main.py --config=configs/tables/rotation.py --jobs=2

Columns are the numbers of labels that the features are evaluated with. Measured: results/README.md.
"""

from ml_collections import ConfigDict

from configs.tables import common

DATA = {'Digits': ('digits', (50, 200, 1297)), 'Fashion-MNIST': ('fashion_mnist', (50, 200, 1000))}
COLUMNS = {
    f'{name}, {labels} labels': {'arg': data, 'transfer': labels}
    for name, (data, numbers) in DATA.items()
    for labels in numbers
}
METHODS = ('Rotation', 'SimCLR', 'SimSiam', 'BYOL', 'Barlow Twins', 'VICReg')
ROWS = {'Random weights': {'config': 'rotation', 'start': 'random'}} | {
    name: {'config': 'rotation', 'arg': f'method={name.lower().replace(" ", "_")}'} for name in METHODS
}


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    return common.table(arg, 'Features without labels', ROWS, COLUMNS, shown='linear_probe')
