"""What the tables share: their fields, the semi-supervised methods as rows, and those of paper scale."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from errors import UserError, defaults
from tables import spec

# What the times of the small tables are based on.
MEASURED = 'the mean over the runs in results/, each on one CPU core that had other work, too.'
SUSTAINED = 20e12  # FLOP/s, of a GPU, as estimates assume

SEMI_SUPERVISED = {
    'Supervised': {'config': 'supervised'},
    'Pseudo-Label': {'config': 'pseudo_label'},
    'Self-training': {'config': 'self_training'},
    'Pi-Model': {'config': 'pi_model'},
    'Mean Teacher': {'config': 'mean_teacher'},
    'VAT': {'config': 'vat'},
    'MixMatch': {'config': 'mixmatch'},
    'ReMixMatch': {'config': 'remixmatch'},
    'UDA': {'config': 'uda'},
    'FixMatch': {'config': 'fixmatch'},
    'FlexMatch': {'config': 'flexmatch'},
    'Dash': {'config': 'dash'},
    'CoMatch': {'config': 'comatch'},
    'AdaMatch': {'config': 'adamatch'},
    'SimMatch': {'config': 'simmatch'},
    'SoftMatch': {'config': 'softmatch'},
    'FreeMatch': {'config': 'freematch'},
}
# MixMatch as in FixMatch's code, whose numbers stand beside: configs/mixmatch.py has the MixMatch paper's settings.
_MIXMATCH = ('methods.mixmatch.alpha=0.5', 'methods.mixmatch.weight=100.0')
ROWS = SEMI_SUPERVISED | {'MixMatch': {'config': 'mixmatch', 'overrides': _MIXMATCH}}


def table(arg: str, title: str, rows: Mapping[str, dict], columns: Mapping[str, dict], **others: Any) -> ConfigDict:
    """Returns the config of a table (tables/spec.py). Rows and columns keep their order.

    Args:
        arg: What stands after the colon of --config. A table takes none.
        title: Of the table.
        rows: {label: fields of a row}.
        columns: {label: fields of a column}.
        **others: Other fields of the table.

    Raises:
        UserError: Where there is an argument.
    """
    if arg:
        raise UserError(f"A table takes no argument, not '{arg}': change it by --config.seeds, --config.overrides, ...")
    ordered = {'rows': ConfigDict(rows, sort_keys=False), 'columns': ConfigDict(columns, sort_keys=False)}
    return ConfigDict({**defaults(spec.Table), 'title': title, **ordered, **others}).lock()


def paper_scale(
    arg: str, name: str, data: str, labels: tuple[int, ...], papers: tuple[str, ...], gflop: float
) -> ConfigDict:
    """Returns the table of all semi-supervised methods on a data set with the recipe of the FixMatch paper.

    Args:
        arg: As for `table`.
        name: Of the data set, in the labels of columns.
        data: The data set.
        labels: Numbers of labels, a column each.
        papers: Whose numbers stand beside.
        gflop: Of one image forward through the network, as XLA counts them.
    """
    # Forward and backward are three forward passes; a step has 64 labeled images and 2 * 7 * 64 unlabeled views.
    step = 3 * gflop * 1e9 * 15 * 64 / SUSTAINED
    columns = {f'{name}, {n} labels': {'arg': f'{data},labels={n}', 'seconds_per_step': step} for n in labels}
    cost = (
        f"FixMatch's 2^20 steps of 960 images at {3 * gflop:.1f} GFLOP each, on a GPU that sustains "
        f'{SUSTAINED / 1e12:.0f} TFLOP/s, an assumption. No GPU has been used yet. Methods with fewer unlabeled images '
        'take less, CoMatch with its second strong view half as much again.'
    )
    title = f'{name}, the recipe of the FixMatch paper'
    shown = {'shown': 'median_last_20', 'error': True}
    return table(arg, title, ROWS, columns, papers=papers, cost=cost, **shown)
