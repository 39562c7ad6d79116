"""A table as data: rows of methods, columns of settings, seeds. It expands to runs."""

import ast
import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

import configs
from errors import UserError, build, first_line, unknown
from tables.papers import PAPERS
from train import provenance, run_folder, settings, transfer
from train.settings import Settings

RULES = ('last', 'median_last_20', 'selected', 'best_on_test')
EVALUATIONS = ('neighbours', 'linear_probe', 'finetune')  # of features learned without labels, train/transfer.py
CONFIGS = configs.NAMES


@dataclasses.dataclass(frozen=True)
class Row:
    """A method: its config and what differs from it.

    Attributes:
        config: File in configs/, without .py.
        arg: Argument after the colon, which follows the column's.
        overrides: 'name=value', as --config.name=value would set it.
        columns: Columns that it is run for; () for all.
        seeds: Those of the table's seeds that it is run for; () for all.
        start: In a table of features: 'pretrained' for learned features, 'random' for those of the untrained network.
    """

    config: str
    arg: str = ''
    overrides: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    start: str = 'pretrained'


@dataclasses.dataclass(frozen=True)
class Column:
    """A setting: data and number of labels, or two domains.

    Attributes:
        arg: Argument after the colon, which the row's follows.
        overrides: 'name=value', as --config.name=value would set it.
        transfer: In a table of features: number of labels for their evaluation.
        seconds_per_step: Estimate for as long as no run has been measured, see Table.cost.
    """

    arg: str
    overrides: tuple[str, ...] = ()
    transfer: int = 0
    seconds_per_step: float = 0.0


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its title.
        rows: {label: row}.
        columns: {label: column}.
        seeds: Seeds of a cell.
        overrides: 'name=value', applied last, to all runs.
        shown: One of RULES, in a table of features one of EVALUATIONS. All of them are stored.
        error: Whether to print error rates instead of accuracies, as the papers that it is compared with do.
        papers: Files of tables/published whose numbers are printed beside ours.
        cost: Basis of the columns' `seconds_per_step`.
    """

    title: str
    rows: Mapping[str, Row]
    columns: Mapping[str, Column]
    seeds: tuple[int, ...] = (0, 1, 2)
    overrides: tuple[str, ...] = ()
    shown: str = 'last'
    error: bool = False
    papers: tuple[str, ...] = ()
    cost: str = ''

    def __post_init__(self):
        if len({bool(column.transfer) for column in self.columns.values()}) > 1:
            raise UserError('`transfer` is for all columns or none: a table shows features or it does not.')
        if self.shown not in self.rules:
            raise unknown('shown', self.shown, self.rules)
        if not self.rows or not self.columns or not self.seeds:
            raise UserError('A table needs at least one row, one column and one seed.')
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f'A seed occurs twice in {self.seeds}.')
        for paper in self.papers:
            if paper not in PAPERS:
                raise unknown('paper', paper, PAPERS)
        for row in self.rows.values():
            if row.config not in CONFIGS:
                raise unknown('config of a row', row.config, CONFIGS)
            if row.start not in transfer.STARTS:
                raise unknown('start of a row', row.start, transfer.STARTS)
            for column in row.columns:
                if column not in self.columns:
                    raise unknown('column of the table', column, self.columns)

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that can be shown."""
        return EVALUATIONS if any(column.transfer for column in self.columns.values()) else RULES

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """Returns the seeds of the cells of a row."""
        return tuple(seed for seed in self.seeds if seed in (self.rows[row].seeds or self.seeds))


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a table. Two rows or columns may be evaluations of the same run, whose folder is then the same.

    Attributes:
        row: Label of the row.
        column: Label of the column.
        settings: Settings of the run.
    """

    row: str
    column: str
    settings: Settings

    @property
    def name(self) -> str:
        """Name of its folder."""
        return run_folder.default(self.settings).name


def from_config(config: ConfigDict) -> Table:
    """Returns the table of a config.

    Raises:
        UserError: A key does not exist, or one is missing.
    """
    values = config.to_dict()
    for key, cls in (('rows', Row), ('columns', Column)):
        entries = values.get(key, {})
        values[key] = {name: build(cls, f'setting of {key}.{name}', entry) for name, entry in entries.items()}
    return build(Table, 'setting of a table', values)


def expand(table: Table) -> Iterator[Run]:
    """Yields the runs of a table, row by row.

    Raises:
        UserError: A setting does not exist.
    """
    for row_name, row in table.rows.items():
        module = importlib.import_module(f'configs.{row.config}')
        for column_name, column in table.columns.items():
            if row.columns and column_name not in row.columns:
                continue
            config = module.get_config(','.join(filter(None, (column.arg, row.arg))))
            for text in (*column.overrides, *row.overrides, *table.overrides):
                _override(config, text)
            for seed in table.seeds_of(row_name):
                config.seed = seed
                yield Run(row_name, column_name, settings.from_config(config))


def flags(table: Table, run: Run) -> list[str]:
    """Returns the flags of main.py that make a run of a table by itself, in a folder of the same name."""
    row, column = table.rows[run.row], table.columns[run.column]
    config = provenance.ROOT / 'configs' / f'{row.config}.py'
    argument = ','.join(filter(None, (column.arg, row.arg)))
    overrides = (*column.overrides, *row.overrides, *table.overrides, f'seed={run.settings.seed}')
    return [f'--config={config}:{argument}', *(f'--config.{text}' for text in overrides)]


def _override(config: ConfigDict, text: str) -> None:
    """Sets a setting as --config.TEXT would."""
    key, equals, value = text.partition('=')
    if not equals:
        raise UserError(f"The table's override '{text}' cannot be applied: write name=value.")
    with contextlib.suppress(SyntaxError, ValueError):  # a string
        value = ast.literal_eval(value)
    try:
        config.update_from_flattened_dict({key: value})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"The table's override '{text}' cannot be applied: {first_line(error)}") from error
