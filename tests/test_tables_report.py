"""Statistics of tables against NumPy and SciPy, and the text of papers' numbers and protocols."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from errors import UserError
from tables import report


def make(values, error=False, seeds=(0, 1, 2), **more):
    """Returns the content of a table.json.

    Args:
        values: {row: {column: {seed: accuracy, or None, or reason why the run failed}}}.
        error: Whether the table has error rates.
        seeds: Seeds of the table.
        **more: Further fields.
    """
    columns = list(dict.fromkeys(column for cells in values.values() for column in cells))
    cells = []
    for row, of_row in values.items():
        for column, of_cell in of_row.items():
            runs = [
                {'seed': seed, 'folder': '', **({'failure': v} if isinstance(v, str) else {'values': {'last': v}})}
                for seed, v in of_cell.items()
            ]
            cells.append({'row': row, 'column': column, 'settings': {}, 'protocol': {}, 'runs': runs})
    fixed = {'rules': ['last'], 'shown': 'last', 'error': error, 'seeds': list(seeds), 'papers': []}
    return {**fixed, 'rows': list(values), 'columns': columns, 'cells': cells, **more}


def one_column(**rows):
    """Returns a table of one column 'c' from lists of accuracies, whose seeds are their positions."""
    values = {row: {'c': {s: v for s, v in enumerate(of_row) if v is not ...}} for row, of_row in rows.items()}
    return make(values, seeds=range(max(map(len, rows.values()))))


def bold(table):
    return {key[0] for key, cell in report.cells(table, 'last').items() if cell.bold}


# Cells


@pytest.mark.parametrize('error', [False, True])
def test_mean_and_deviation_are_those_of_numpy(error):
    accuracies = np.random.default_rng(0).uniform(0, 1, 5)
    cell = report.cells(make({'a': {'c': dict(enumerate(accuracies))}}, error, range(5)), 'last')['a', 'c']
    percent = 100 - 100 * accuracies if error else 100 * accuracies
    np.testing.assert_allclose(cell.mean, percent.mean())
    np.testing.assert_allclose(cell.std, percent.std(ddof=1))
    assert (cell.n, cell.missing, cell.failures) == (5, (), {})


def test_every_run_is_accounted_for():
    """Failed, missing and null are three things; a cell that is not run for a column is not there."""
    values = {'a': {'c': {0: 0.5, 1: 'why', 3: None}, 'd': {}}, 'b': {'c': {0: 0.25}}}
    cells = report.cells(make(values, seeds=(0, 1, 2, 3)), 'last')
    assert cells['a', 'c'] == report.Cell({0: 50.0}, {1: 'why'}, (2,))
    assert (cells['a', 'c'].n, cells['a', 'c'].mean, cells['a', 'c'].std) == (1, 50.0, None)
    assert cells['a', 'd'] == report.Cell({}, {}, (0, 1, 2, 3))
    assert math.isnan(cells['a', 'd'].mean)
    assert cells['a', 'd'].std is None
    assert ('b', 'd') not in cells


# Bold


def expected_bold(table):
    """The rule in other words: one-sample tests of the differences of accuracies, in a matrix with NaN for gaps."""
    best_cells = set()
    for column in table['columns']:
        matrix = np.full((len(table['rows']), len(table['seeds'])), np.nan)
        for cell in table['cells']:
            for run in cell['runs'] if cell['column'] == column else ():
                matrix[table['rows'].index(cell['row']), table['seeds'].index(run['seed'])] = run['values']['last']
        best = int(np.nanargmax(np.nanmean(matrix, 1)))
        wins = []
        for other in range(len(matrix)):
            difference = (matrix[best] - matrix[other])[~np.isnan(matrix[best] - matrix[other])]
            if other != best and len(difference) > 1:
                wins.append(difference.mean() > 0 and stats.ttest_1samp(difference, 0).pvalue < 0.05)
        if wins and all(wins):
            best_cells.add((table['rows'][best], column))
    return best_cells


@pytest.mark.parametrize('error', [False, True])
def test_bold_is_significantly_better_than_every_other_row(error):
    rng, counts = np.random.default_rng(1), [0, 0]
    for _ in range(100):
        values = {
            row: {c: {s: rng.normal(mean, 0.02) for s in range(5) if s == 0 or rng.random() < 0.8} for c in 'xy'}
            for row, mean in (('a', 0.5), ('b', 0.52), ('c', 0.54))
        }
        table = make(values, error, range(5))
        expected = expected_bold(table)
        assert {key for key, cell in report.cells(table, 'last').items() if cell.bold} == expected
        counts[0] += len(expected)
        counts[1] += 2 - len(expected)
    assert min(counts) > 20, 'Both cases must occur.'


def test_the_p_value_is_that_of_scipy_on_either_side_of_the_limit():
    """Differences 1 + x, 1, 1 - x: their p-value grows with x and is 0.05 at one x."""
    other = np.array([0.5, 0.6, 0.4])
    x = 0.01 * math.sqrt(3) / stats.t.ppf(0.975, 2)  # of a deviation x over 3 values
    for scale, is_bold in ((0.99, True), (1.01, False)):
        ours = other + 0.01 + scale * x * np.array([1, 0, -1])
        assert (stats.ttest_rel(ours, other).pvalue < 0.05) == is_bold
        assert (bold(one_column(ours=ours, other=other)) == {'ours'}) == is_bold


@pytest.mark.parametrize(
    ('rows', 'expected'),
    [
        ({'a': [0.97, 0.95, 0.11], 'b': [0.96, 0.94, 0.10]}, {'a'}),  # the same difference but for rounding
        ({'a': [467 / 500, 472 / 500, 0.9], 'b': [450 / 500, 455 / 500, 0.866]}, {'a'}),
        ({'a': [467 / 500, 472 / 500], 'b': [450 / 500, 455 / 500]}, set()),  # the same on two seeds is chance
        ({'a': [0.1 + 0.2, 0.5], 'b': [0.3, 0.5]}, set()),  # no difference but for rounding
        ({'a': [0.7, 0.8], 'b': [0.7, 0.8]}, set()),
        ({'a': [0.9, 0.8], 'b': [0.7]}, set()),  # one seed in common is no test
        ({'a': [0.9, 0.8]}, set()),  # nothing to be better than
        ({'a': [0.9], 'b': [0.8, 0.7]}, set()),
        ({'a': [0.9, 0.8, ..., ...], 'b': [..., ..., 0.5, 0.6]}, set()),  # no seed in common
        ({'a': [0.9, 0.8, 0.7], 'b': [0.8, 0.7, 0.6], 'c': [0.5]}, {'a'}),  # c cannot be tested
        ({'a': [0.9, 0.8, 0.7], 'b': [0.8, 0.7, 0.6], 'c': [0.99]}, set()),  # the best mean is c's
        ({'a': [0.9, 0.8, 0.7], 'b': [0.8, 0.7, 0.6], 'c': [0.5, 0.1, 0.69]}, set()),  # not better than c
        ({'a': [0.5, 0.5, 0.99], 'b': [0.6, 0.6]}, set()),  # the better mean, but worse on the seeds in common
        ({'a': [0.9, 0.8], 'b': [None, 0.1], 'c': ['why', 0.2]}, set()),
        ({'a': [0.9, 0.8], 'b': []}, set()),
    ],
)
def test_bold_without_a_spread_or_without_common_seeds(rows, expected):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert bold(one_column(**rows)) == expected


def test_bold_looks_at_one_column():
    values = {
        'a': {'x': {0: 0.9, 1: 0.8, 2: 0.7}, 'y': {0: 0.1, 1: 0.2, 2: 0.3}},
        'b': {'x': {0: 0.8, 1: 0.7, 2: 0.6}, 'y': {0: 0.3, 1: 0.4, 2: 0.5}},
    }
    assert {k for k, cell in report.cells(make(values), 'last').items() if cell.bold} == {('a', 'x'), ('b', 'y')}
    assert {k for k, cell in report.cells(make(values, error=True), 'last').items() if cell.bold} == {
        ('a', 'x'),
        ('b', 'y'),
    }


# Rules


def test_a_rule_without_any_value_is_not_printed():
    table = make({'a': {'c': {0: 0.5, 1: 'why'}}, 'b': {'c': {}}})
    table |= {'rules': ['selected', 'best', 'last'], 'shown': 'last'}
    table['cells'][0]['runs'][0]['values'] = {'last': 0.5, 'best': 0.0, 'selected': None}
    assert report.rules(table) == ['last', 'best']
    table['cells'] = []
    assert report.rules(table) == ['last']


# Papers


def test_a_difference_of_rounding_is_none():
    assert str(report.compare(report.Cell({0: 100 * 0.3 - 1e-14}, {}, ()), '30±0').difference) == '0.0'


@pytest.mark.parametrize(
    ('text', 'flip', 'paper', 'mean', 'std', 'difference', 'where'),
    [
        ('13.81±3.37', False, '13.81 ± 3.37', 13.81, 3.37, 6.19, 'outside'),
        ('18 ± 3', False, '18 ± 3', 18, 3, 2, 'inside'),
        ('23.37±3.37', False, '23.37 ± 3.37', 23.37, 3.37, -3.37, 'inside'),  # on the border
        ('16.63±3.37', False, '16.63 ± 3.37', 16.63, 3.37, 3.37, 'inside'),
        ('16.62±3.37', False, '16.62 ± 3.37', 16.62, 3.37, 3.38, 'outside'),
        ('74.10', True, '25.90', 25.9, None, -5.9, None),
        ('79±1.5', True, '21 ± 1.5', 21, 1.5, -1, 'inside'),
    ],
)
def test_ours_beside_the_papers(text, flip, paper, mean, std, difference, where):
    comparison = report.compare(report.Cell({0: 19.0, 1: 21.0}, {}, ()), text, flip)
    assert (comparison.paper, comparison.std, comparison.where) == (paper, std, where)
    np.testing.assert_allclose((comparison.mean, comparison.difference), (mean, difference))


@pytest.mark.parametrize('cell', [None, report.Cell({}, {0: 'why'}, (1,))])
def test_the_papers_number_stands_without_ours(cell):
    assert report.compare(cell, '13.81±3.37') == report.Comparison('13.81 ± 3.37', 13.81, 3.37, None, None)


@pytest.mark.parametrize('text', ['', '13,81', '13.81+-3.37', '13.81±', 'about 7', '-1', '1 2'])
def test_a_number_that_cannot_be_read_is_named(text):
    with pytest.raises(UserError, match=f"not '{text}'".replace('+', r'\+')):
        report.compare(None, text)


def test_what_differs_from_the_papers_protocol():
    table = make({row: {column: {} for column in 'xyz'} for row in 'ab'})
    for cell in table['cells']:
        row, column = cell['row'], cell['column']
        cell['protocol'] = {
            'same': 'everywhere',
            'steps': '2000',
            'split': {'x': 'one', 'y': 'two', 'z': 'one'}[column],
            'backbone': {'a': 'WRN', 'b': 'LeNet'}[row],
            'selection': 'last' if (row, column) == ('a', 'x') else 'best',
            'ours alone': 'not compared',
        }
    protocol = {'same': 'everywhere', 'steps': '1048576', 'split': 'one', 'backbone': 'WRN', 'selection': 'last'}
    paper = {'protocol': protocol | {'optimizer': 'SGD'}, 'results': {row: dict.fromkeys('xyz', '1') for row in 'ab'}}
    assert report.differences(table, paper) == [
        'steps: ours 2000, paper 1048576',
        'split: ours one (x; z) / two (y), paper one',
        'backbone: ours WRN (a) / LeNet (b), paper WRN',
        'selection: ours last / best, paper last',
        'optimizer: ours not recorded, paper SGD',
    ]
    # In cells on a diagonal rows and columns agree: it is said by column.
    diagonal = {**table, 'cells': [cell for cell in table['cells'] if (cell['row'] + cell['column']) in ('ax', 'by')]}
    assert report.protocol(diagonal)['backbone'] == 'WRN (x) / LeNet (y)'
    # Only where the paper has a number; a row and a column that the table does not have are not compared.
    paper['results'] = {'a': {'x': '1', 'other': '2'}, 'other': {'x': '1'}}
    assert report.compared(table, paper) == [('a', 'x')]
    assert report.differences(table, paper) == [
        'steps: ours 2000, paper 1048576',
        'optimizer: ours not recorded, paper SGD',
    ]


# Curves


def test_the_band_of_curves_is_at_the_steps_that_all_have():
    values = np.random.default_rng(0).random((3, 4))
    curves = [list(zip((10, 20, 30, 40), of_seed.tolist(), strict=True)) for of_seed in values]
    steps, mean, std = report.band(curves)
    assert steps.tolist() == [10, 20, 30, 40]
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(std, np.std(values, axis=0, ddof=1))
    curves[0][0], curves[1][1], curves[2] = (10, None), (20, math.nan), [*curves[2][:3], (50, 1.0)]
    steps, mean, std = report.band(curves)
    assert steps.tolist() == [30]
    np.testing.assert_allclose((mean, std), (values[:, 2:3].mean(0), values[:, 2:3].std(0, ddof=1)))
    steps, mean, std = report.band(curves[2:])
    assert (steps.tolist(), std.tolist()) == ([10, 20, 30, 50], [0, 0, 0, 0])
    assert [part.size for part in report.band([])] == [0, 0, 0]
