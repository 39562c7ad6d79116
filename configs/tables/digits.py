"""Semi-supervised methods on digits with 1, 2 and 4 labels a class.

    python main.py --config=configs/tables/digits.py --jobs=2

Variants of a method are run with 20 labels only, S4L with 20 and 40. Measured: results/README.md.
"""

from ml_collections import ConfigDict

from configs.tables import common

_ONLY = {'columns': ('20 labels',)}
_BOTH = {'columns': ('20 labels', '40 labels')}
ROWS = common.SEMI_SUPERVISED | {
    'Self-training, Noisy Student': {'config': 'self_training', 'arg': 'noisy_student=1', **_ONLY},
    'FixMatch, soft labels': {'config': 'fixmatch', 'overrides': ('methods.fixmatch.temperature=0.5',), **_ONLY},
    'FixMatch, alignment': {'config': 'fixmatch', 'overrides': ('methods.fixmatch.alignment=True',), **_ONLY},
    'Dash, as in its text': {'config': 'dash', 'overrides': ('methods.dash.variant=paper',), **_ONLY},
    'S4L, upright labels': {'config': 's4l', **_BOTH},
    'S4L, all rotations': {'config': 's4l', 'overrides': ('methods.s4l.all_copies=True',), **_BOTH},
}


def get_config(arg: str = '') -> ConfigDict:
    """Returns the table; it has no argument."""
    columns = {
        f'{labels} labels': {'arg': f'digits,labels={labels}', 'seconds_per_step': 0.014} for labels in (10, 20, 40)
    }
    return common.table(arg, 'Digits', ROWS, columns, cost=common.MEASURED)
