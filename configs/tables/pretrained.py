"""Methods from ImageNet weights, EfficientNet-Lite0, beside fine-tuning of the same network.

python main.py --config=configs/tables/pretrained.py --jobs=2
"""

from ml_collections import ConfigDict

from configs.tables import common

_METHODS = (
    *('Pseudo-Label', 'Self-training', 'UDA', 'FixMatch', 'FlexMatch', 'SoftMatch', 'FreeMatch', 'AdaMatch'),
    *('CoMatch', 'SimMatch'),
)
_NETWORK = 'model=efficientnet_lite0'
ROWS = {
    'Fine-tuning': {'config': 'finetune'},
    'Linear probe': {'config': 'finetune', 'arg': 'strategy=probe'},
    'From scratch': {'config': 'finetune', 'arg': 'strategy=scratch'},
    **{name: common.SEMI_SUPERVISED[name] | {'arg': _NETWORK} for name in _METHODS},
    'S4L': {'config': 's4l', 'arg': _NETWORK},
    'FixMatch + L2-SP': {'config': 'fixmatch', 'arg': f'{_NETWORK},beside=l2_sp'},
}
COLUMNS = {
    f'{name}, {labels} labels': {
        'arg': f'{data},labels={labels}',
        # The 10,000 test images of Fashion-MNIST take as long as a hundred steps.
        'overrides': ('eval_steps=150',),
        'seconds_per_step': 0.5,
    }
    for name, data, labels in (
        ('Digits', 'digits', 20),
        ('Fashion-MNIST', 'fashion_mnist', 50),
        ('Emoji', 'emoji/all', 20),
        ('Emoji', 'emoji/all', 50),
    )
}


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    return common.table(arg, 'From ImageNet weights', ROWS, COLUMNS, cost=common.MEASURED)
