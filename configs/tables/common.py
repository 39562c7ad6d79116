"""What the tables share: their fields, and the semi-supervised methods as rows."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

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


def table(title: str, rows: Mapping[str, dict], columns: Mapping[str, dict], **others: Any) -> ConfigDict:
    """Returns the config of a table (tables/spec.py). Rows and columns keep their order."""
    defaults = {'seeds': (0, 1, 2), 'overrides': (), 'shown': 'last', 'error': False, 'papers': (), 'cost': ''}
    ordered = {'rows': ConfigDict(rows, sort_keys=False), 'columns': ConfigDict(columns, sort_keys=False)}
    return ConfigDict({'title': title, **ordered, **defaults, **others}).lock()
