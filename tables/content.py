"""The content of the tables of a table.json (tables/record.py) in plain text, which each format escapes."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tables import report

NAMES = {
    'median_last_20': 'median of the last 20',
    'best_on_test': 'best on test (a leak)',
    'neighbours': 'nearest neighbours',
    'linear_probe': 'linear probe',
    'finetune': 'fine-tuning',
    'pseudo_label_accuracy': 'pseudo-label accuracy',
}
MISSING = '—'
NO_VALUE = 'n/a'
BOLD = (
    'Bold: the best mean of a column, where it is better than every other row that has at least 2 seeds in common with '
    'it by a two-sided paired t-test over the common seeds, p < 0.05, not corrected for the number of rows; a '
    'difference that is the same on three seeds or more counts.'
)
SAME = "Nothing of the protocol that is recorded differs from the paper's."


@dataclasses.dataclass(frozen=True)
class Text:
    """A cell in plain text, which each format escapes.

    Attributes:
        text: The number.
        mark: Marks that follow it, never bold.
        bold: Whether the number is bold.
        anchor: Name of the anchor of the cell's details in the page.
    """

    text: str
    mark: str = ''
    bold: bool = False
    anchor: str = ''


@dataclasses.dataclass(frozen=True)
class Block:
    """A table for one rule, or one with the numbers of a paper.

    Attributes:
        name: The rule or the paper.
        head: First row: the quantity of the numbers, and the columns.
        rows: Label and cells of the other rows.
        caption: Sentences.
    """

    name: str
    head: list[str]
    rows: list[tuple[str, list[Text]]]
    caption: list[str]


def blocks(table: Mapping[str, Any]) -> Iterable[Block]:
    """Yields the tables: by the shown rule, with the numbers of each paper, and by the other rules."""
    shown, *others = report.rules(table)
    block = by_rule(table, shown)
    yield dataclasses.replace(block, caption=[*block.caption, *_origin(table)])
    for paper in table['papers']:
        if report.compared(table, paper):
            yield _beside(table, paper)
    for rule in others:
        yield by_rule(table, rule)


def by_rule(table: Mapping[str, Any], rule: str) -> Block:
    """Returns the table by a rule."""
    cells = report.cells(table, rule)
    rows = [(row, [_text(table, cells, row, column) for column in table['columns']]) for row in table['rows']]
    caption = [f'{table["title"]}: {quantity(table, rule)}, {_spread(table)}.', BOLD]
    return Block(rule, [quantity(table, rule), *table['columns']], rows, caption + _marks(table, rows))


def _beside(table: Mapping[str, Any], paper: Mapping[str, Any]) -> Block:
    cells, keys = report.cells(table, table['shown']), report.compared(table, paper)
    flip, spread = bool(table['error']) != bool(paper['error']), False
    columns = [column for column in table['columns'] if column in {key[1] for key in keys}]
    settings = paper.get('settings', {})  # absent in older tables
    rows: list[tuple[str, list[Text]]] = [(row, []) for row in table['rows'] if row in {key[0] for key in keys}]
    for row, texts in rows:
        for column in columns:
            ours, mark = _text(table, cells, row, column), ''
            if (row, column) in keys:
                comparison = report.compare(cells.get((row, column)), paper['results'][row][column], flip)
                spread = spread or comparison.where is not None
                notes = [] if comparison.difference is None else [f'{comparison.difference:+.2f}']
                notes += [comparison.where] if comparison.where else []
                mark = f' / {comparison.paper}' + (f' ({", ".join(notes)})' if notes else '')
            texts.append(dataclasses.replace(ours, mark=ours.mark + mark, bold=False))
    caption = [
        f'{table["title"]}: ours / {paper["title"]} (ours - paper), {quantity(table, table["shown"])}, '
        f'{_spread(table)}.',
        f'The numbers after the slash are from {paper["source"]}'
        + (f', where they are {"error rates" if paper["error"] else "accuracies"}.' if flip else '.'),
        *['Inside: our mean is within one standard deviation of theirs, which they give after ±.'] * spread,
        *([f'Differs from the paper in {line}.' for line in report.differences(table, paper)] or [SAME]),
        *[f'Settings there, {row}: {_sentence(settings[row])}' for row, _ in rows if row in settings],
    ]
    return Block(paper['title'], ['ours / paper (ours - paper)', *columns], rows, caption + _marks(table, rows))


def _text(table: Mapping[str, Any], cells: Mapping[report.Key, report.Cell], row: str, column: str) -> Text:
    cell = cells.get((row, column))
    if cell is None:
        return Text('')
    notes = [f'{len(cell.failures)} failed'] if cell.failures else []
    if cell.n:
        text = f'{cell.mean:.2f}' + (f' ± {cell.std:.2f}' if cell.n > 1 else '')
        notes += [f'n={cell.n}'] if cell.n != len(table['seeds']) else []
        if set(cell.devices) - {report.usual_devices(table)}:
            notes.append(' and '.join(map(str, cell.devices)) + (' device' if cell.devices == (1,) else ' devices'))
    elif len(cell.failures) + len(cell.missing) < len(table['seeds']):
        text = NO_VALUE
    else:
        text = MISSING
    mark = f' ({", ".join(notes)})' if notes else ''
    return Text(text, mark, cell.bold, anchor(table, row, column))


def _marks(table: Mapping[str, Any], rows: list[tuple[str, list[Text]]]) -> list[str]:
    """Returns sentences that explain the marks in the table."""
    texts, marks = zip(*((cell.text, cell.mark) for _, cells in rows for cell in cells), strict=True)
    explained = {
        f'{MISSING}: no run that has finished.': MISSING in texts,
        f'{NO_VALUE}: the runs have no value by this rule.': NO_VALUE in texts,
        f'n: how many runs have a value, where it is not {len(table["seeds"])}.': any('n=' in mark for mark in marks),
        f'devices: how many a run was made on, where it is not {report.usual_devices(table)}: sums are rounded '
        'differently, and runs drift apart.': any('device' in mark for mark in marks),
        'failed: how many runs ended in an error.': any('failed' in mark for mark in marks),
        'Empty: the row is not run for that column.': '' in texts,
    }
    return [sentence for sentence, occurs in explained.items() if occurs]


def _origin(table: Mapping[str, Any]) -> list[str]:
    """Returns sentences about the failures, the protocol and the command."""
    failures = [
        f'Failed: {entry["row"]}, {entry["column"]}, seed {run["seed"]}: {_sentence(run["failure"])}'
        for entry in table['cells']
        for run in entry['runs']
        if 'failure' in run
    ]
    tags = [f'Protocol, {tag}: {_sentence(text)}' for tag, text in report.protocol(table).items()]
    commit = f', at commit {table["commit"]}' if table['commit'] else ''
    return [*failures, *tags, f'Command: {table["command"]}{commit}']


def _sentence(text: str) -> str:
    return text.rstrip('.') + '.'


def _spread(table: Mapping[str, Any]) -> str:
    seeds = ', '.join(map(str, table['seeds']))
    return f'mean ± standard deviation (ddof 1) over n = {len(table["seeds"])} seeds ({seeds}), of all runs'


def quantity(table: Mapping[str, Any], rule: str) -> str:
    """Returns the quantity of the numbers of a rule."""
    return f'{name(rule)}, {"error rate" if table["error"] else "accuracy"} in %'


def name(key: str) -> str:
    """Returns the printed name of a rule or of a kind of curve."""
    return NAMES.get(key, key.replace('_', ' '))


def anchor(table: Mapping[str, Any], row: str, column: str) -> str:
    """Returns the name of the anchor of a cell's details in the page."""
    return f'cell-{table["rows"].index(row)}-{table["columns"].index(column)}'


def slug(text: str) -> str:
    """Returns a text in a form that may be part of an anchor."""
    return re.sub(r'[^a-z0-9]+', '-', text.lower().replace('_', ' ')).strip('-')


def format(cell: Text, escaped: Callable[[str], str], bold: str) -> str:
    """Returns a cell in a format.

    Args:
        cell: The cell.
        escaped: Function that escapes text.
        bold: Template of bold text, such as `**{}**`.
    """
    text = escaped(cell.text)
    return (bold.format(text) if cell.bold else text) + escaped(cell.mark)
