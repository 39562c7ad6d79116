"""Domain adaptation from digits to digits on photographs.

    python main.py --config=configs/tables/domains.py --jobs=2

The test images are of the target, and new. Measured: results/README.md.
"""

from ml_collections import ConfigDict

from configs.tables import common

METHODS = {
    'Source only': 'source_only',
    'AdaBN': 'adabn',
    'DANN': 'dann',
    'CDAN': 'cdan',
    'CDAN+E': 'cdan_e',
    'MCC': 'mcc',
    'CORAL': 'coral',
    'DAN': 'mmd',
    'JAN': 'jan',
    'FixMatch': 'fixmatch',
    'AdaMatch': 'adamatch',
    'DANN + FixMatch': 'dann+fixmatch',
    'Target labels (upper bound)': 'target',
}
ROWS = {name: {'config': 'dann', 'arg': f'methods={methods}'} for name, methods in METHODS.items()}


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    return common.table(
        arg,
        'Domain adaptation',
        ROWS,
        {'digits -> digits_m': {'arg': 'digits', 'seconds_per_step': 0.05}},
        cost=common.MEASURED,
    )
