"""Statistics of a table, from the content of its table.json (tables/record.py). Numbers are in %.

They are accuracies or, with table['error'], error rates: 100 minus the accuracy, lower is better.
"""

import dataclasses
import decimal
import math
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from errors import UserError

P_VALUE = 0.05
NOISE = 1e-6  # in %, differences due to floating point; one image in a million is 1e-4

Key = tuple[str, str]  # row, column


@dataclasses.dataclass(frozen=True)
class Cell:
    """The results of a row and column by one rule.

    Attributes:
        values: {seed: value}, of the runs that have one.
        failures: {seed: reason why the run failed}.
        missing: Seeds that have not been run.
        bold: Whether it is significantly better than the rest of its column, see `cells`.
        devices: Numbers of devices of the runs with a value.
    """

    values: Mapping[int, float]
    failures: Mapping[int, str]
    missing: tuple[int, ...]
    bold: bool = False
    devices: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        """Number of values."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over the seeds, NaN without a value."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds, with n - 1 in the denominator; None for fewer than two values."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A cell compared with a paper's number.

    Attributes:
        paper: The number as the table prints it, with the paper's decimals.
        mean: The paper's mean.
        std: The paper's standard deviation, None if it gives none.
        difference: Our mean minus the paper's, None without ours.
        where: 'inside' the paper's spread or 'outside', None without ours or without a spread.
    """

    paper: str
    mean: float
    std: float | None
    difference: float | None
    where: str | None


def cells(table: Mapping[str, Any], rule: str) -> dict[Key, Cell]:
    """Returns the cells of a table by row and column; a row that is not run for a column has none there.

    The best mean of a column, of two values or more, is bold if it is significantly better than every other row that
    has two seeds or more in common with it, and there is such a row. The test is a two-sided paired t-test over the
    common seeds, p < 0.05. A difference that is equal on three seeds or more, and is not 0, counts as significant.
    """
    results = {}
    for entry in table['cells']:
        values, failures, devices = {}, {}, set()
        for run in entry['runs']:
            if 'failure' in run:
                failures[run['seed']] = run['failure']
            elif (value := run['values'].get(rule)) is not None:
                values[run['seed']] = 100 * (1 - value if table['error'] else value)
                devices |= {run['devices']} if 'devices' in run else set()
        made = {run['seed'] for run in entry['runs']}
        missing = tuple(seed for seed in table['seeds'] if seed not in made)
        cell = Cell(values, failures, missing, devices=tuple(sorted(devices)))
        results[entry['row'], entry['column']] = cell
    sign = -1 if table['error'] else 1
    for column in table['columns']:
        rivals = {key: cell for key, cell in results.items() if key[1] == column and cell.n}
        if not rivals:
            continue
        means = {key: sign * cell.mean for key, cell in rivals.items()}
        best = max(means, key=means.__getitem__)
        tests = [_better(rivals[best].values, rivals[key].values, sign) for key in rivals if key != best]
        tests = [test for test in tests if test is not None]
        if tests and all(tests):
            results[best] = dataclasses.replace(results[best], bold=True)
    return results


def usual_devices(table: Mapping[str, Any]) -> int:
    """Returns the number of devices that most runs were made on, the smaller of two equally frequent; 0 for none."""
    numbers = sorted(run['devices'] for entry in table['cells'] for run in entry['runs'] if 'devices' in run)
    return statistics.mode(numbers) if numbers else 0


def _better(ours: Mapping[int, float], theirs: Mapping[int, float], sign: int) -> bool | None:
    """Returns whether ours are significantly better (sign 1: larger), None for fewer than two common seeds."""
    seeds = [seed for seed in ours if seed in theirs]
    if len(seeds) < 2:
        return None
    a, b = (np.array([values[seed] for seed in seeds]) for values in (ours, theirs))
    if sign * (a - b).mean() <= NOISE:
        return False
    if np.ptp(a - b) <= NOISE:  # for two seeds this is chance
        return len(seeds) > 2
    return bool(stats.ttest_rel(a, b).pvalue < P_VALUE)


def rules(table: Mapping[str, Any]) -> list[str]:
    """Returns the rules to print: the shown one, then those by which any run has a value."""
    runs = [run for entry in table['cells'] for run in entry['runs']]
    valued = {rule for run in runs for rule, value in run.get('values', {}).items() if value is not None}
    return [table['shown'], *(rule for rule in table['rules'] if rule in valued and rule != table['shown'])]


def compare(cell: Cell | None, text: str, flip: bool = False) -> Comparison:
    """Compares a cell with a paper's number.

    Args:
        cell: Our cell, None if there is none.
        text: The paper's number, such as '13.81±3.37' or '74.1'.
        flip: Whether one is an accuracy and the other an error rate.

    Raises:
        UserError: The text is not of this form.
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
    """Returns the protocol of the cells, or of those with these keys: for each tag the text that is common to them.

    If the cells differ it is each text with its columns, or with its rows, or, if cells differ within both, all texts.
    """
    by_tag: dict[str, dict[Key, str]] = {}
    for entry in table['cells']:
        key = entry['row'], entry['column']
        if keys is None or key in keys:
            for tag, text in entry['protocol'].items():
                by_tag.setdefault(tag, {})[key] = text
    return {tag: _collapse(texts) for tag, texts in by_tag.items()}


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
    """Returns the keys of the cells that the paper has a number for."""
    results = paper['results']
    return [(row, column) for row in table['rows'] for column in table['columns'] if column in results.get(row, {})]


def differences(table: Mapping[str, Any], paper: Mapping[str, Any]) -> list[str]:
    """Returns the differences from the paper's protocol in the cells that the paper has numbers for.

    A difference has the form 'steps: ours 2000, paper 1048576'. Tags that the paper's protocol lacks are not compared.
    """
    ours = protocol(table, compared(table, paper))
    return [
        f'{tag}: ours {ours.get(tag, "not recorded")}, paper {text}'
        for tag, text in paper['protocol'].items()
        if ours.get(tag) != text
    ]


def band(curves: Sequence[Sequence[tuple[int, float | None]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the steps at which all curves have a value, and the mean and standard deviation (ddof 1) there.

    Args:
        curves: Lists of [step, value]. Values that are None or not finite are ignored. The deviation of one curve is 0.
    """
    by_step = [{step: value for step, value in curve if value is not None and np.isfinite(value)} for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    values = np.array([[curve[step] for step in steps] for curve in by_step]).reshape(len(by_step), len(steps))
    std = values.std(0, ddof=1) if len(by_step) > 1 else np.zeros(len(steps))
    return np.array(steps), values.mean(0) if by_step else np.zeros(0), std
