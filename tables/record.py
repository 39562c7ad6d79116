"""table.json: everything that a table's pages are made from.

    {
      'name': 'digits', 'title': ..., 'command': 'python main.py --config=configs/tables/digits.py',
      'commit': git commit at which the file was written,
      'rules': [...], 'shown': 'last', 'error': false, 'seeds': [0, 1, 2], 'rows': [label], 'columns': [label],
      'papers': [{'title', 'source', 'protocol': {tag: text}, 'error': true, 'results': {row: {column: '13.81±3.37'}}}],
      'cells': [
        {
          'row': label, 'column': label,
          'settings': those of its runs without the seed,
          'protocol': {tag: text},             # see `protocol`
          'runs': [
            {
              'seed': 0, 'folder': 'fixmatch-digits-20-8ffd412e',
              'commit': git commit that the run was made at, 'sources': hash of the code that it depends on,
              'values': {rule: accuracy in [0, 1] or null},   # and others than the table's rules, where there are
              'seconds': 31.2, 'device': '1 x cpu (x86_64)',
              'selection': of domain adaptation, what each rule without target labels chooses (train/selection.py),
              'curves': {'test_accuracy': [[step, value], ...], 'mask_rate': ..., 'pseudo_label_accuracy': ...}
            },
            {'seed': 1, 'folder': ..., 'failure': 'one line'}
          ]                                    # of runs that have not been made there is no entry
        }
      ]
    }

A row that is not run for a column has no cell there.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import methods
from errors import UserError
from tables.papers import PAPERS, Paper
from tables.spec import Run, Table
from train import provenance
from train.settings import Settings

POINTS = 40  # of a curve


def collect(
    table: Table,
    runs: Iterable[Run],
    folder: pathlib.Path,
    before: Mapping[str, dict],
    failures: Mapping[str, str],
) -> dict[str, Any]:
    """Returns the content of table.json but for 'name' and 'command'.

    folder: that of the runs' folders. before: {run: its entry in an earlier table.json}, for those whose folder is
    not there. failures: {run: why it failed}.
    """
    cells: dict[tuple[str, str], dict] = {}
    for run in runs:
        cell = cells.setdefault((run.row, run.column), {'row': run.row, 'column': run.column})
        cell.setdefault('settings', {k: v for k, v in dataclasses.asdict(run.settings).items() if k != 'seed'})
        cell.setdefault('protocol', protocol(table, run.column, run.settings))
        entry = of_folder(table, run, folder / run.name)
        if entry:
            entry['curves'] = _curves(folder / run.name / 'metrics.jsonl')
        else:
            entry = before.get((run.row, run.column, run.name))
        if entry is None and run.name in failures:
            entry = {'seed': run.settings.seed, 'folder': run.name, 'failure': failures[run.name]}
        cell.setdefault('runs', []).extend([entry] if entry else [])
    return {
        'title': table.title,
        'commit': provenance.commit(),
        'rules': table.rules,
        'shown': table.shown,
        'error': table.error,
        'seeds': table.seeds,
        'rows': list(table.rows),
        'columns': list(table.columns),
        'papers': [_paper(table, PAPERS[name]) for name in table.papers],
        'cells': list(cells.values()),
    }


def finished(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the result of a run, None where it has none yet, or a damaged one."""
    try:
        return json.loads((path / 'result.json').read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return None


def of_folder(table: Table, run: Run, path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the entry of a finished run without its curves, None where it is not finished.

    Raises UserError where it has no features evaluated with the column's number of labels.
    """
    result = finished(path)
    if result is None:
        return None
    values = result['test_accuracy']
    if labels := table.columns[run.column].transfer:
        wanted = labels, table.rows[run.row].start
        values = next((r for r in result.get('transfer', []) if (r['labels'], r['start']) == wanted), None)
        if values is None:
            raise UserError(
                f'{path} evaluates no features with {labels} labels: let transfer.labels and the column agree.'
            )
    return {
        'seed': run.settings.seed,
        'folder': run.name,
        'commit': result['git_commit'],
        'sources': result.get('sources'),
        'values': {key: value for key, value in values.items() if key not in ('labels', 'start')},
        # Runs that were one program share its time.
        'seconds': round(result['seconds'] / result.get('seeds_together', 1), 3),
        'device': result['device'],
        **({'selection': result['selection']} if 'selection' in result else {}),
    }


def known(table_json: Mapping[str, Any]) -> dict[tuple[str, str, str], dict]:
    """Returns {(row, column, run): entry} of the runs that an earlier table.json has results of."""
    return {
        (cell['row'], cell['column'], run['folder']): run
        for cell in table_json['cells']
        for run in cell['runs']
        if 'failure' not in run
    }


def protocol(table: Table, column: str, settings: Settings) -> dict[str, str]:
    """Returns what a result was reached under, in the tags and words of tables/papers.py."""
    data, model = settings.data, settings.model
    views = [view for name, fields in settings.methods.items() for view in methods.create(name, fields).views()]
    backbone = model['name']
    if backbone == 'wide_resnet':
        blocks = model['blocks']
        backbone = f'WRN-{1 + 2 * sum(blocks) + len(blocks)}-{model["width"]}'
    tags = {
        'augmentation': data.strong['protocol'] if any('.strong' in view for view in views) else 'weak',
        'split': 'all labels' if data.labels < 0 else data.manifest or data.label_protocol,
        'backbone': backbone,
        'weights': str(model.get('pretrained') or ''),
        'steps': str(settings.steps),
        'seeds': str(len(table.seeds)),
        'evaluation' if table.columns[column].transfer else 'selection': table.shown,
        'test images': data.protocol if data.target else '',
    }
    return {tag: text for tag, text in tags.items() if text}


def _paper(table: Table, paper: Paper) -> dict[str, Any]:
    """Returns a paper as it is printed beside a table, with what its protocol says of the table's data set."""
    data = next(iter(table.columns)).split(',')[0]
    tags = {t: text if isinstance(text, str) else text.get(data, text['']) for t, text in paper.protocol.items()}
    return {**dataclasses.asdict(paper), 'protocol': tags}


def _curves(path: pathlib.Path) -> dict[str, list]:
    """Returns what is drawn of metrics.jsonl, at most POINTS of each curve, the last one among them."""
    curves: dict[str, list] = {}
    methods: dict[str, str] = {}  # {curve: the method whose it is}, the first one that has it
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # the last line, when the run was killed
            row = json.loads(line)
            for key, value in row.items():
                method, _, name = key.rpartition('/')
                if name not in ('test_accuracy', 'mask_rate', 'pseudo_label_accuracy') or value is None:
                    continue
                if methods.setdefault(name, method) == method:
                    curves.setdefault(name, []).append([row['step'], round(value, 4)])
    every = {name: -(-len(points) // POINTS) for name, points in curves.items()}
    return {name: points[:: -every[name]][::-1] for name, points in curves.items()}
