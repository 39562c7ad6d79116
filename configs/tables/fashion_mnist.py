"""Semi-supervised methods on Fashion-MNIST with 4, 10 and 40 labels a class, one seed of each.

    python main.py --config=configs/tables/fashion_mnist.py --jobs=2

Measured: results/README.md.
"""

from ml_collections import ConfigDict

from configs.tables import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    columns = {
        f'{labels} labels': {'arg': f'fashion_mnist,labels={labels}', 'seconds_per_step': 0.18}
        for labels in (40, 100, 400)
    }
    return common.table(arg, 'Fashion-MNIST', common.SEMI_SUPERVISED, columns, seeds=(0,), cost=common.MEASURED)
