"""table.json: the complete data of a table's pages.

    {
      'name': 'digits', 'title': ..., 'command': 'python main.py --config=configs/tables/digits.py',
      'commit': git commit at which the content last changed,
      'rules': [...], 'shown': 'last', 'error': false, 'seeds': [0, 1, 2], 'rows': [label], 'columns': [label],
      'papers': [{'title', 'source', 'protocol': {tag: text}, 'error': true, 'results': {row: {column: '13.81±3.37'}},
                  'settings': {row: text}}],
      'cells': [
        {
          'row': label, 'column': label,
          'settings': those of its runs without the seed,
          'protocol': {tag: text},             # see `protocol`
          'runs': [
            {
              'seed': 0, 'folder': 'fixmatch-digits-20-8ffd412e',
              'commit': git commit that the run was made at, 'sources': hash of the code that it depends on,
              'values': {rule: accuracy in [0, 1] or null},   # also by rules that the table does not print
              'seconds': 31.2, 'device': '1 x cpu (x86_64)', 'devices': 1,
              'selection': only in domain adaptation: what each rule without target labels chooses (train/selection.py),
              'curves': {'test_accuracy': [[step, value], ...], 'mask_rate': ..., 'pseudo_label_accuracy': ...}
            },
            {'seed': 1, 'folder': ..., 'failure': 'one line'}
          ]                                    # a run that has not been made has no entry
        }
      ]
    }

A row that is not run for a column has no cell there.

A recorded result does not change: a run folder of the same name may come from other hardware, and differ. Only --renew
replaces it, and only if it is a result of other code than the present (`choose`).
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import methods
from errors import UserError
from tables.papers import PAPERS, Paper
from tables.spec import Run, Table
from train import provenance, run_folder

POINTS = 40  # of a curve, at most
RunKey = tuple[str, str, str]  # row, column, name of the run's folder


def collect(
    table: Table,
    runs: Iterable[Run],
    folder: pathlib.Path,
    recorded: Mapping[RunKey, dict],
    failures: Mapping[str, str],
    renew: bool = False,
) -> dict[str, Any]:
    """Returns the content of table.json but for 'name' and 'command'.

    Args:
        table: The table.
        runs: Its runs.
        folder: Folder of the runs' folders.
        recorded: Entries of an earlier table.json, see `known`.
        failures: {name of a run: reason why it failed}.
        renew: See `choose`.
    """
    cells: dict[tuple[str, str], dict] = {}
    for run in runs:
        cell = cells.setdefault((run.row, run.column), {'row': run.row, 'column': run.column})
        cell.setdefault('settings', {k: v for k, v in dataclasses.asdict(run.settings).items() if k != 'seed'})
        cell.setdefault('protocol', protocol(table, run))
        entry = choose(table, run, folder, recorded, renew)
        if entry and 'curves' not in entry:
            entry['curves'] = _curves(folder / run.name)
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


def choose(
    table: Table, run: Run, folder: pathlib.Path, recorded: Mapping[RunKey, dict], renew: bool = False
) -> dict[str, Any] | None:
    """Returns the entry of a run: the recorded one, else that of its folder; None if there is neither.

    Args:
        table: The table.
        run: The run.
        folder: Folder of the runs' folders.
        recorded: Entries of an earlier table.json, see `known`.
        renew: Prefer results of the present code: the folder then replaces a recorded result of other code.
    """
    both = recorded.get((run.row, run.column, run.name)), of_folder(table, run, folder / run.name)
    entries = [entry for entry in both if entry is not None]
    if renew:
        entries.sort(key=lambda entry: is_stale(run, entry))  # a stable sort: of two equal ones the recorded one
    return entries[0] if entries else None


def is_stale(run: Run, entry: Mapping[str, Any]) -> bool:
    """Returns whether the entry of a run is a result of other code than the present."""
    return entry['sources'] != _digest(methods_of(run))


def methods_of(run: Run) -> tuple[str, ...]:
    """Returns the names of the methods that a run uses."""
    return tuple(provenance.used_methods(dataclasses.asdict(run.settings)))


@functools.cache
def _digest(methods: tuple[str, ...]) -> str:
    return provenance.digest(methods)


def finished(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the result of a run, None if there is none yet or it is damaged."""
    try:
        return json.loads((path / 'result.json').read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return None


def of_folder(table: Table, run: Run, path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the entry of a run without its curves, None if the run is not finished.

    Raises:
        UserError: Its features are not evaluated with the column's number of labels.
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
        'seconds': round(result['seconds'], 3),
        'device': result['device'],
        'devices': result.get('devices') or int(result['device'].split()[0]),
        **({'selection': result['selection']} if 'selection' in result else {}),
    }


def known(table_json: Mapping[str, Any]) -> dict[RunKey, dict]:
    """Returns the entries of the runs in a table.json that have results."""
    return {
        (cell['row'], cell['column'], run['folder']): run
        for cell in table_json['cells']
        for run in cell['runs']
        if 'failure' not in run
    }


def protocol(table: Table, run: Run) -> dict[str, str]:
    """Returns the protocol of a result, in the tags and words of tables/published."""
    settings = run.settings
    data, model = settings.data, settings.model
    created = [methods.create(*method) for method in settings.methods.items()]
    used = {view.augmentation for method in created for view in method.views()}
    if 'strong' in used:
        augmentation = data.strong['protocol']
    else:
        augmentation = 'crops with colour jitter' if 'distorted' in used else 'weak'
    backbone = model['name']
    if backbone == 'wide_resnet':
        blocks = model['blocks']
        backbone = f'WRN-{1 + 2 * sum(blocks) + len(blocks)}-{model["width"]}'
    tags = {
        'augmentation': augmentation,
        'split': 'all labels' if data.labels < 0 else data.manifest or data.label_protocol,
        'backbone': backbone,
        'weights': str(model.get('pretrained') or ''),
        'steps': str(settings.steps),
        'seeds': str(len(table.seeds_of(run.row))),
        'evaluation' if table.columns[run.column].transfer else 'selection': table.shown,
        'test images': data.protocol if data.target else '',
    }
    return {tag: text for tag, text in tags.items() if text}


def _paper(table: Table, paper: Paper) -> dict[str, Any]:
    """Returns the entry of a paper in table.json, with its protocol for the table's data set."""
    data = next(iter(table.columns)).split(',')[0]

    def for_data(texts: Mapping[str, str | Mapping[str, str]]) -> dict[str, str]:
        return {key: text if isinstance(text, str) else text.get(data, text['']) for key, text in texts.items()}

    settings = {row: text for row, text in for_data(paper.settings).items() if text}
    return {**dataclasses.asdict(paper), 'protocol': for_data(paper.protocol), 'settings': settings}


def _curves(path: pathlib.Path) -> dict[str, list]:
    """Returns the curves of a run's folder, each reduced to at most POINTS points, including the last."""
    curves: dict[str, list] = {}
    methods: dict[str, str] = {}  # {curve: the first method that reports it}
    for row in run_folder.rows(path) if (path / 'metrics.jsonl').exists() else []:
        for key, value in row.items():
            method, _, name = key.rpartition('/')
            if name not in ('test_accuracy', 'mask_rate', 'pseudo_label_accuracy') or value is None:
                continue
            if methods.setdefault(name, method) == method:
                curves.setdefault(name, []).append([row['step'], round(value, 4)])
    strides = {name: -(-len(points) // POINTS) for name, points in curves.items()}
    return {name: points[:: -strides[name]][::-1] for name, points in curves.items()}
