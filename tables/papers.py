"""Published results, which tables print beside ours. Each file of tables/published holds the table of one paper.

A file states the numbers, their source and their protocol. Rows and columns have the names in configs/tables. The tags
and words of a protocol are those of tables/record.py, so that differences from ours can be listed. Numbers that could
not be confirmed are left out (Pi-Model, Pseudo-Label and Mean Teacher of FixMatch's table), and so is USB's Mean
Teacher, whose unlabeled loss was always zero.
"""

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping

FOLDER = pathlib.Path(__file__).parent / 'published'


@dataclasses.dataclass(frozen=True)
class Paper:
    """A published table.

    Attributes:
        title: Its name in captions.
        source: Source of the numbers.
        protocol: {tag: text}, or {tag: {data set: text, '': for the others}}.
        error: Whether the numbers are error rates in %, not accuracies in %.
        results: {row: {column: '13.81±3.37', or '74.1' where no spread is given}}.
        settings: {row: text}, or {row: {data set: text, '': for the others}}: how the paper's settings of a method
            differ from those of our row.
    """

    title: str
    source: str
    protocol: Mapping[str, str | Mapping[str, str]]
    error: bool
    results: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, str | Mapping[str, str]] = dataclasses.field(default_factory=dict)


def load(path: pathlib.Path) -> Paper:
    """Returns the paper of a file. Its `results` are blocks of columns and of rows with a number for each column."""
    values = tomllib.loads(path.read_text(encoding='utf-8'))
    results: dict[str, dict[str, str]] = {}
    for block in values.pop('results'):
        for row, numbers in block['rows'].items():
            results.setdefault(row, {}).update(zip(block['columns'], numbers, strict=True))
    return Paper(**values, results=results)


PAPERS = {path.stem: load(path) for path in sorted(FOLDER.glob('*.toml'))}
