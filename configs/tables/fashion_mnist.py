"""Semi-supervised methods on Fashion-MNIST with 4, 10 and 40 labels a class.

    python main.py --config=configs/tables/fashion_mnist.py --jobs=2

With 40 labels a class 1,000 steps are too few for most methods, so that column has 4,000. The methods of `THREE_SEEDS`
have three seeds, the others one. Measured: results/README.md.
"""

from ml_collections import ConfigDict

from configs.tables import common

COLUMNS = {
    f'{labels} labels, {steps} steps': {
        'arg': f'fashion_mnist,labels={labels}',
        'overrides': (f'steps={steps}', f'eval_steps={steps // 20}'),
        'seconds_per_step': 0.18,
    }
    for labels, steps in ((40, 1000), (100, 1000), (400, 4000))
}
THREE_SEEDS = {
    *('Supervised', 'FixMatch', 'FlexMatch', 'SoftMatch', 'FreeMatch'),
    *('AdaMatch', 'CoMatch', 'SimMatch', 'ReMixMatch'),
}
ROWS = {name: row if name in THREE_SEEDS else row | {'seeds': (0,)} for name, row in common.SEMI_SUPERVISED.items()}


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    return common.table(arg, 'Fashion-MNIST', ROWS, COLUMNS, cost=common.MEASURED)
