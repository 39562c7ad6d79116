"""Statistics of a table, from the content of its table.json (tables/record.py). Numbers are in %.

They are accuracies or, with table['error'], error rates: 100 less the accuracy, where lower is better.
"""

import dataclasses
import decimal
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from errors import UserError

P_VALUE = 0.05
NOISE = 1e-6  # in %, of floating point: one image in a million is 1e-4

Key = tuple[str, str]  # row, column


@dataclasses.dataclass(frozen=True)
class Cell:
    """What the runs of a row and column come to by one rule."""

    values: Mapping[int, float]  # by seed, of the runs that have one
    failures: Mapping[int, str]  # by seed, why the run failed
    missing: tuple[int, ...]  # seeds that have not been run
    bold: bool = False  # better than the rest of its column by more than the spread, see `cells`

    @property
    def n(self) -> int:
        """Number of values."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Over the seeds, None without a value."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds, with n - 1 in the denominator; None for less than two values."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A cell beside a paper's number."""

    paper: str  # the number as the table prints it, with the paper's decimals
    mean: float
    std: float | None  # None where the paper gives none
    difference: float | None  # ours less the paper's; None without ours
    where: str | None  # 'inside' the paper's spread or 'outside'; None without ours or without a spread


def cells(table: Mapping[str, Any], rule: str) -> dict[Key, Cell]:
    """Returns the cells of a table by row and column; a row that is not run for a column has none there.

    Bold is the best mean of a column with two values or more, if it is better than every other row that has two seeds
    or more in common with it, and there is one: by a two-sided paired t-test over the common seeds, p < 0.05. Where the
    difference is the same on three seeds or more there is no spread to exceed and it counts, unless it is 0.
    """
    found = {}
    for entry in table['cells']:
        values, failures = {}, {}
        for run in entry['runs']:
            if 'failure' in run:
                failures[run['seed']] = run['failure']
            elif (value := run['values'].get(rule)) is not None:
                values[run['seed']] = 100 * (1 - value if table['error'] else value)
        made = {run['seed'] for run in entry['runs']}
        missing = tuple(seed for seed in table['seeds'] if seed not in made)
        found[entry['row'], entry['column']] = Cell(values, failures, missing)
    sign = -1 if table['error'] else 1
    for column in table['columns']:
        rivals = {key: cell for key, cell in found.items() if key[1] == column and cell.n}
        best = max(rivals, key=lambda key: sign * rivals[key].mean, default=None)
        tests = [_better(rivals[best].values, rivals[key].values, sign) for key in rivals if key != best]
        tests = [test for test in tests if test is not None]
        if tests and all(tests):
            found[best] = dataclasses.replace(found[best], bold=True)
    return found


def _better(ours: Mapping[int, float], theirs: Mapping[int, float], sign: int) -> bool | None:
    """Whether ours are significantly better (sign 1: larger); None with less than two seeds in common."""
    seeds = [seed for seed in ours if seed in theirs]
    if len(seeds) < 2:
        return None
    a, b = (np.array([values[seed] for seed in seeds]) for values in (ours, theirs))
    if sign * (a - b).mean() <= NOISE:
        return False
    if np.ptp(a - b) <= NOISE:  # on two seeds that is chance
        return len(seeds) > 2
    return bool(stats.ttest_rel(a, b).pvalue < P_VALUE)


def rules(table: Mapping[str, Any]) -> list[str]:
    """Returns the rules to print: the one shown, then those by which any run has a value."""
    runs = [run for entry in table['cells'] for run in entry['runs']]
    valued = {rule for run in runs for rule, value in run.get('values', {}).items() if value is not None}
    return [table['shown'], *(rule for rule in table['rules'] if rule in valued and rule != table['shown'])]


def compare(cell: Cell | None, text: str, flip: bool = False) -> Comparison:
    """Compares a cell, None where there is none, with a paper's number such as '13.81±3.37' or '74.1'.

    flip: whether one is an accuracy and the other an error rate. Raises UserError for another kind of text.
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?)(?:\s*±\s*(\d+(?:\.\d+)?))?', text.strip())
    if not match:
        raise UserError(f"A paper's number must be like '13.81±3.37' or '74.1', not '{text}'.")
    mean = 100 - decimal.Decimal(match[1]) if flip else decimal.Decimal(match[1])
    std = None if match[2] is None else float(match[2])
    difference = None if cell is None or not cell.n else round(cell.mean - float(mean), 9) + 0.0  # not -0.0
    where = None
    if difference is not None and std is not None:
        where = 'inside' if abs(difference) <= std else 'outside'
    return Comparison(f'{mean} ± {match[2]}' if match[2] else f'{mean}', float(mean), std, difference, where)


def protocol(table: Mapping[str, Any], keys: Collection[Key] | None = None) -> dict[str, str]:
    """Returns the protocol of the cells, or of those with these keys: for each tag the text that they agree on.

    Where they do not, it is each text with the columns that it belongs to, with the rows, or, if cells differ within
    both, all of the texts.
    """
    found: dict[str, dict[Key, str]] = {}
    for entry in table['cells']:
        key = entry['row'], entry['column']
        if keys is None or key in keys:
            for tag, text in entry['protocol'].items():
                found.setdefault(tag, {})[key] = text
    return {tag: _collapse(texts) for tag, texts in found.items()}


def _collapse(texts: Mapping[Key, str]) -> str:
    distinct = list(dict.fromkeys(texts.values()))
    if len(distinct) == 1:
        return distinct[0]
    for axis in (1, 0):
        names = {text: list(dict.fromkeys(key[axis] for key in texts if texts[key] == text)) for text in distinct}
        if sum(map(len, names.values())) == len({key[axis] for key in texts}):
            return ' / '.join(f'{text} ({"; ".join(names[text])})' for text in distinct)
    return ' / '.join(distinct)


def compared(table: Mapping[str, Any], paper: Mapping[str, Any]) -> list[Key]:
    """Returns the rows and columns of the table that the paper has a number for."""
    results = paper['results']
    return [(row, column) for row in table['rows'] for column in table['columns'] if column in results.get(row, {})]


def differences(table: Mapping[str, Any], paper: Mapping[str, Any]) -> list[str]:
    """Returns what differs from the paper's protocol in the cells that it has numbers for.

    Each is like 'steps: ours 2000, paper 1048576'; what the paper's protocol does not say is not compared.
    """
    ours = protocol(table, compared(table, paper))
    return [
        f'{tag}: ours {ours.get(tag, "not recorded")}, paper {text}'
        for tag, text in paper['protocol'].items()
        if ours.get(tag) != text
    ]


def band(curves: Sequence[Sequence[tuple[int, float | None]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the steps that all curves have a value at, and there their mean and standard deviation.

    curves: of [step, value]; values that are None or not finite do not count. ddof is 1; the deviation of one is 0.
    """
    by_step = [{step: value for step, value in curve if value is not None and np.isfinite(value)} for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    values = np.array([[curve[step] for step in steps] for curve in by_step]).reshape(len(by_step), len(steps))
    std = values.std(0, ddof=1) if len(by_step) > 1 else np.zeros(len(steps))
    return np.array(steps), values.mean(0) if by_step else np.zeros(0), std
