"""Domain adaptation on Office-31 with a pretrained ResNet-50, as in TLlib, beside its numbers.

    python main.py --config=configs/tables/office31.py --jobs=2 --gpus=0,1

Transductive as there: the test images are the target images that are adapted to. TLlib reports the best epoch on
them; here the last is shown, and the best stored. Its CDAN is without entropy conditioning. 144 runs of up to about
half a GPU hour, FixMatch's of more than one, by the assumption that --list states. Not run yet.
"""

from ml_collections import ConfigDict

from configs.tables import common, domains

DOMAINS = {'A': 'office31/amazon', 'D': 'office31/dslr', 'W': 'office31/webcam'}
TASKS = ('A -> W', 'D -> W', 'W -> D', 'A -> D', 'D -> A', 'W -> A')
ROWS = {name: domains.ROWS[name] for name in ('Source only', 'DANN', 'CDAN', 'CDAN+E', 'MCC', 'DAN', 'JAN', 'FixMatch')}
STEP = 3 * 7.98e9 * 64 / common.SUSTAINED  # seconds
# The whole target is adapted to and tested on.
WHOLE = ('data.protocol=transductive', 'data.target_split=train')


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    columns = {}
    for task in TASKS:
        source, target = (DOMAINS[part] for part in task.split(' -> '))
        columns[task] = {'arg': f'{source},target={target}', 'overrides': WHOLE, 'seconds_per_step': STEP}
    cost = (
        f'Steps of 64 images at 23.9 GFLOP each, on a GPU that sustains {common.SUSTAINED / 1e12:.0f} TFLOP/s, '
        'an assumption. No GPU has been used yet. FixMatch, with 96 target images twice, takes 3.5 times as much.'
    )
    return common.table(
        arg,
        'Domain adaptation on Office-31, as in TLlib',
        ROWS,
        columns,
        papers=('tllib_office31',),
        cost=cost,
    )
