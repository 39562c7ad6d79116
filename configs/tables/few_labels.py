"""Which method does best with few labels of each class of a data set, from ImageNet weights, EfficientNet-Lite0.

    python main.py --config=configs/tables/few_labels.py:photos/ --jobs=2

takes any data set without a recipe of paper scale, a folder of pictures, too. Measured: docs/own_pictures.md.
"""

from ml_collections import ConfigDict

from configs import data_sets
from configs.tables import common
from errors import UserError

LABELS = (3, 5, 10)  # of each class
ROWS = {
    'Fine-tuning': {'config': 'finetune'},
    'Linear probe': {'config': 'finetune', 'arg': 'strategy=probe'},
    **{
        name: common.SEMI_SUPERVISED[name] | {'arg': 'model=efficientnet_lite0'}
        for name in ('Self-training', 'FixMatch')
    },
}


def get_config(arg: str = 'digits') -> ConfigDict:
    """Returns the table for 'DATA'."""
    data = data_sets.get(arg)
    if not data.small:
        raise UserError(f'{arg} has a recipe of paper scale. This table is of runs of minutes.')
    columns = {
        f'{n} labels a class': {
            'arg': f'{arg},labels={n * data.classes}',
            'overrides': ('data.label_protocol=balanced',),
            'seconds_per_step': 0.6,
        }
        for n in LABELS
    }
    cost = 'FixMatch at 96x96 pixels on one CPU core that had other work, too.'
    return common.table('', f'Few labels of {arg}', ROWS, columns, cost=cost)
