"""Semi-supervised methods on STL-10 with 40, 250 and 1000 labels, beside the published numbers.

    python main.py --config=configs/tables/stl10.py --list
    python main.py --config=configs/tables/stl10.py --jobs=4 --gpus=0,1,2,3

The paper's predefined folds of 1,000 labels are not in tfds; here they are drawn by the seed.

WRN-37-2, 2^20 steps, 3 seeds: 153 runs, of about 206 GPU hours each for FixMatch, by the assumption that --list states.
Not run yet.
"""

from ml_collections import ConfigDict

from configs.tables import common


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    return common.paper_scale(arg, 'STL-10', 'stl10', (40, 250, 1000), ('fixmatch', 'torchssl'), gflop=4.915)
