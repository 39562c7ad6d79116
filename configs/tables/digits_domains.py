"""Domain adaptation between MNIST, USPS, SVHN and MNIST-M, with TLlib's networks and settings, beside its numbers.

    python main.py --config=configs/tables/digits_domains.py --jobs=2 --gpus=0,1

Test images are the target's own test set. TLlib reports the best epoch on it; here the last is shown, and the best
stored. Its CDAN is without entropy conditioning, and it has no FixMatch of digits. 108 runs of a few GPU minutes each,
by the assumption that --list states. Not run yet.
"""

from ml_collections import ConfigDict

from configs.tables import common, domains

TASKS = {
    'SVHN -> MNIST': 'svhn_cropped,target=mnist',
    'MNIST -> USPS': 'mnist,target=usps',
    'USPS -> MNIST': 'usps,target=mnist',
    'MNIST -> MNIST-M': 'mnist,target=mnist_m',
}
ROWS = {
    name: domains.ROWS[name]
    for name in (
        'Source only',
        'DANN',
        'CDAN',
        'CDAN+E',
        'MCC',
        'DAN',
        'JAN',
        'FixMatch',
        'Target labels (upper bound)',
    )
}


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    columns = {name: {'arg': task, 'seconds_per_step': 0.005} for name, task in TASKS.items()}
    cost = 'Steps of 5 ms, an assumption: so small a network waits for its launches. No GPU has been used yet.'
    papers = ('tllib_digits', 'ganin')
    return common.table(arg, 'Domain adaptation of digits, as in TLlib', ROWS, columns, papers=papers, cost=cost)
