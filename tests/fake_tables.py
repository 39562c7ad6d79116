"""A small table of two methods by two numbers of labels, and folders of runs that nobody has made."""

import json

from ml_collections import ConfigDict

from tables import record, spec
from train import provenance

SMALL = ('steps=4', 'eval_steps=2', 'model.blocks=(1,)')


def table(**changes) -> ConfigDict:
    """Returns the config of the table with other fields."""
    rows = {'Supervised': {'config': 'supervised'}, 'FixMatch, soft': {'config': 'fixmatch'}}
    rows['FixMatch, soft']['overrides'] = ('methods.fixmatch.temperature=0.5',)
    columns = {'10 labels': {'arg': 'digits,labels=10'}, '40 labels': {'arg': 'digits,labels=40'}}
    values = {'title': 'Small', 'rows': rows, 'columns': columns, 'seeds': (0, 5), 'overrides': SMALL, **changes}
    for key in ('rows', 'columns'):
        values[key] = ConfigDict(values[key], sort_keys=False)
    return ConfigDict(values)


def expand(**changes) -> list[spec.Run]:
    """Returns the runs of the table with other fields."""
    return list(spec.expand(spec.from_config(table(**changes))))


def write_run(folder, run, accuracy, **changes) -> None:
    """Writes the folder of a finished run. changes: fields of its result.json."""
    path = folder / run.name
    path.mkdir(parents=True)
    values = {'last': accuracy, 'median_last_20': accuracy - 0.01, 'selected': None, 'best_on_test': accuracy + 0.01}
    result = {
        'test_accuracy': values,
        'seconds': 20.0,
        'device': '1 x cpu',
        'git_commit': 'abc',
        'sources': provenance.digest(record.methods_of(run)),
        **changes,
    }
    (path / 'result.json').write_text(json.dumps(result))
    rows = [{'step': i, 'loss': 1.0, 'fixmatch/mask_rate': i / 100, 'seconds': i} for i in range(1, 101)]
    rows += [{'step': 100, 'test_accuracy': accuracy}]
    (path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
