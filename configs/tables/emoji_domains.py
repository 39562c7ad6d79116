"""Domain adaptation between emoji of different artists, EfficientNet-Lite0 from ImageNet weights.

    python main.py --config=configs/tables/emoji_domains.py --jobs=2

No thing that training images show is shown by a test image, in any style.
"""

from ml_collections import ConfigDict

from configs.tables import common, domains

_METHODS = (
    *('Source only', 'AdaBN', 'DANN', 'CDAN', 'MCC', 'CORAL', 'FixMatch', 'DANN + FixMatch'),
    'Target labels (upper bound)',
)
ROWS = {
    name: {'config': 'dann', 'arg': f'methods={domains.METHODS[name]},model=efficientnet_lite0'} for name in _METHODS
}
COLUMNS = {
    f'{source} -> {target}': {'arg': f'emoji/{source},target=emoji/{target}', 'seconds_per_step': 0.3}
    for other in ('twemoji', 'openmoji', 'fluent_high_contrast')
    for source, target in (('noto', other), (other, 'noto'))
}


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    return common.table(arg, 'Domain adaptation between emoji', ROWS, COLUMNS, cost=common.MEASURED)
