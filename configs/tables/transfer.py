"""Fine-tuning EfficientNet-Lite0 on Fashion-MNIST with 5, 20 and 100 labels a class, beside training from scratch.

    python main.py --config=configs/tables/transfer.py --jobs=2

Evaluated at the end of training only. Measured: results/README.md.
"""

from ml_collections import ConfigDict

from configs.tables import common

_ONCE = ('eval_steps=300', 'checkpoint_steps=300')
STRATEGIES = {
    'Fine-tuning': 'full',
    'Fine-tuning, backbone at a tenth': 'tenth',
    'Linear probe': 'probe',
    'EfficientNet-Lite0 from scratch': 'scratch',
}
ROWS = {name: {'config': 'finetune', 'arg': f'strategy={s}', 'overrides': _ONCE} for name, s in STRATEGIES.items()} | {
    'Small wide ResNet from scratch': {
        'config': 'supervised',
        'overrides': ('eval_steps=1000', 'checkpoint_steps=1000'),
    },
}


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    columns = {
        f'{labels} labels': {'arg': f'fashion_mnist,labels={labels}', 'seconds_per_step': 0.13}
        for labels in (50, 200, 1000)
    }
    return common.table(arg, 'Transfer from ImageNet to Fashion-MNIST', ROWS, columns, cost=common.MEASURED)
