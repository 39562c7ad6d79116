"""A table in Markdown, LaTeX, CSV and JSON, from the content of its table.json (tables/record.py)."""

import contextlib
import csv as csv_lib
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from errors import UserError, unknown
from tables import content, dots, page, report


def main_table(table: Mapping[str, Any], rule: str | None = None) -> list[str]:
    """Returns the lines of the Markdown table by a rule, by default the shown one, without its caption.

    Raises:
        UserError: The table does not have this rule.
    """
    rule = rule or table['shown']
    if rule not in table['rules']:
        raise unknown('rule of the table', rule, table['rules'])
    return _markdown_table(content.by_rule(table, rule))


def markdown(table: Mapping[str, Any]) -> str:
    """Returns Markdown: a link to the plot, and the tables between comments, each with its caption as a list."""
    lines = [f'![{_escape_markdown(table["title"])}, a dot plot](dots.svg)', '']
    for block in content.blocks(table):
        lines += [
            f'<!-- {content.slug(table["name"])} {content.slug(block.name)} -->',
            *_markdown_table(block),
            '<!-- end -->',
            '',
        ]
        lines += [*(f'- {_escape_markdown(sentence)}' for sentence in block.caption), '']
    return '\n'.join(lines)


def latex(table: Mapping[str, Any]) -> str:
    """Returns the tables in LaTeX, for the package booktabs."""
    lines = []
    for block in content.blocks(table):
        lines += [
            r'\begin{table}',
            r'  \centering',
            *_latex_caption(block.caption),
            rf'  \label{{tab:{content.slug(table["name"])}-{content.slug(block.name)}}}',
            rf'  \begin{{tabular}}{{l{"c" * (len(block.head) - 1)}}}',
            r'    \toprule',
            f'    {_latex_row(map(_escape_latex, block.head))}',
            r'    \midrule',
        ]
        for label, cells in block.rows:
            texts = [content.format(cell, _escape_latex, r'\textbf{{{}}}') for cell in cells]
            lines.append(f'    {_latex_row([_escape_latex(label), *texts])}')
        lines += [r'    \bottomrule', r'  \end{tabular}', r'\end{table}', '']
    return '\n'.join(lines)


def csv(table: Mapping[str, Any]) -> str:
    """Returns CSV with a line for each run and rule. Accuracies are in [0, 1], empty if there is none."""
    file = io.StringIO()
    writer = csv_lib.writer(file, lineterminator='\n')
    writer.writerow(('row', 'column', 'rule', 'seed', 'accuracy', 'seconds', 'commit', 'folder'))
    for entry in table['cells']:
        for rule in report.rules(table):
            for run in entry['runs']:
                accuracy = run.get('values', {}).get(rule)
                more = (run.get(key) for key in ('seconds', 'commit', 'folder'))
                writer.writerow((entry['row'], entry['column'], rule, run['seed'], accuracy, *more))
    return file.getvalue()


def write(folder: str | os.PathLike, table: Mapping[str, Any]) -> None:
    """Writes the PAGES of a table, each atomically.

    Raises:
        UserError: The folder cannot be written to.
    """
    folder = pathlib.Path(folder)
    texts = {name: make(table) for name, make in PAGES.items()}
    temporary = {name: folder / f'.{name}.new' for name in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            temporary[name].write_text(text, encoding='utf-8')
        for name in texts:
            os.replace(temporary[name], folder / name)
    except OSError as error:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink()
        raise UserError(f'Cannot write the table to {folder}: {error.strerror}.') from error


# Markdown


def _markdown_table(block: content.Block) -> list[str]:
    lines = [_markdown_row(map(_escape_markdown, block.head)), '|' + '---|' * len(block.head)]
    for label, cells in block.rows:
        texts = [content.format(cell, _escape_markdown, '**{}**') for cell in cells]
        lines.append(_markdown_row([_escape_markdown(label), *texts]))
    return lines


def _markdown_row(texts: Iterable[str]) -> str:
    return f'| {" | ".join(text.strip() for text in texts)} |'


def _escape_markdown(text: str) -> str:
    # An underscore between letters needs no escape.
    special = r'[\\|*<`~$\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])'
    return re.sub(special, lambda match: '\\' + match[0], text.replace('\n', ' '))


# LaTeX

SPECIAL = {
    '\\': r'\textbackslash{}',
    **{character: '\\' + character for character in '_%&#${}'},
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '->': r'$\to$',
    '→': r'$\to$',
    '--': '-{}-',
    '<': '$<$',
    '>': '$>$',
    '|': '$|$',
    '[': '{[}',  # after the end of a row it would begin an option
    '±': r'$\pm$',
    '\N{MULTIPLICATION SIGN}': r'$\times$',
    'Π': r'$\Pi$',
    'π': r'$\pi$',
    '—': '---',
    '\n': ' ',
}


def _latex_caption(sentences: list[str]) -> list[str]:
    first, *others = map(_escape_latex, sentences)
    return [rf'  \caption{{{first}', *(f'    {sentence}' for sentence in others), '  }']


def _latex_row(texts: Iterable[str]) -> str:
    return ' & '.join(texts) + r' \\'


def _escape_latex(text: str) -> str:
    return re.sub('|'.join(map(re.escape, SPECIAL)), lambda match: SPECIAL[match[0]], text)


# JSON


def json_text(table: Mapping[str, Any]) -> str:
    """Returns the content as JSON."""
    return _json(table) + '\n'


def _json(value: Any, indent: str = '\n') -> str:
    """Returns indented JSON, with lists that hold no dicts, such as curves, on one line."""
    inner = indent + ' '
    if isinstance(value, Mapping) and value:
        entries = (f'{inner}{json.dumps(key)}: {_json(entry, inner)}' for key, entry in value.items())
        return '{' + ','.join(entries) + indent + '}'
    if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        return '[' + ','.join(inner + _json(entry, inner) for entry in value) + indent + ']'
    return json.dumps(value, ensure_ascii=False)


PAGES = {
    'table.md': markdown,
    'table.tex': latex,
    'table.csv': csv,
    'table.json': json_text,
    'dots.svg': dots.svg,
    'index.html': page.html,
}
