"""The page of a table: a plot, its tables, and the details of every cell, in a self-contained file.

Equal content gives equal text, but for the bytes of the pictures, which depend on the version of matplotlib.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from tables import content, dots, report

STYLE = """
:root { color-scheme: light dark; --line: #d5d9e0; --quiet: #5b6472; --target: #fff3c4; --link: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a404b; --quiet: #a0a8b5; --target: #4a4220; --link: #8ab4f8; }
  body { background: #15181d; color: #e4e7eb; }
  img { filter: invert(0.9) hue-rotate(180deg); }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--quiet); }
.caption { color: var(--quiet); font-size: 0.87rem; padding-left: 1.2rem; overflow-wrap: anywhere; }
details { margin: 0.6rem 0; } summary { cursor: pointer; }
.cell { border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem 0.9rem; }
.cell > summary { font-weight: 600; } .cell:target > summary { background: var(--target); }
img { max-width: 100%; height: auto; display: block; margin: 0.5rem 0; }
pre { overflow-x: auto; font-size: 0.8rem; }
"""


def html(table: Mapping[str, Any]) -> str:
    """Returns a self-contained page: a plot, the tables, and for each cell its curves, settings and runs."""
    first, *others = content.blocks(table)
    by_rule = {rule: report.cells(table, rule) for rule in report.rules(table)}
    title = escape(table['title'])
    return '\n'.join(
        [
            '<!doctype html>',
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<style>{STYLE}</style></head><body>',
            f'<h1>{title}</h1>',
            f'<div class="scroll">{dots.svg(table)}</div>',
            *_html_table(first),
            *(line for block in others for line in (_heading(block.name), *_html_table(block))),
            '<h2>Cells</h2>',
            '<p>Curves: each seed (thin), their mean (thick) and standard deviation (band, ddof 1).</p>',
            *(line for entry in table['cells'] for line in _html_cell(table, entry, by_rule)),
            '</body></html>',
            '',
        ]
    )


def _heading(name: str) -> str:
    return f'<h2>{escape(content.name(name))}</h2>'


def _html_table(block: content.Block) -> list[str]:
    rows = []
    for label, cells in block.rows:
        texts = [content.format(cell, escape, '<b>{}</b>') for cell in cells]
        texts = [
            f'<a href="#{cell.anchor}">{text}</a>' if cell.anchor else text
            for cell, text in zip(cells, texts, strict=True)
        ]
        rows.append([f'<th scope="row">{escape(label)}</th>', *(f'<td>{text}</td>' for text in texts)])
    caption = ''.join(f'<li>{escape(sentence)}</li>' for sentence in block.caption)
    return [*_html_rows(block.head, rows), f'<ul class="caption">{caption}</ul>']


def _html_rows(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Returns the lines of a table.

    Args:
        head: Texts of the first row.
        rows: HTML elements of the other rows.
    """
    heads = ''.join(f'<th scope="col">{escape(text)}</th>' for text in head)
    return [
        '<div class="scroll"><table>',
        f'<thead><tr>{heads}</tr></thead><tbody>',
        *(f'<tr>{"".join(row)}</tr>' for row in rows),
        '</tbody></table></div>',
    ]


def _html_cell(table: Mapping[str, Any], entry: Mapping[str, Any], by_rule: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a cell's details.

    Args:
        table: The table.
        entry: The cell in its table.json.
        by_rule: {rule: cells}.
    """
    row, column = entry['row'], entry['column']
    cell = {rule: cells[row, column] for rule, cells in by_rule.items()}
    keys = ('seconds', 'device', 'commit', 'sources', 'folder', 'failure')
    runs = []
    for run in entry['runs']:
        values = [cell[rule].values.get(run['seed']) for rule in cell]
        texts = [str(run['seed']), *('' if value is None else f'{value:.2f}' for value in values)]
        texts += ['' if run.get(key) is None else str(run[key]) for key in keys]
        runs.append([f'<td>{escape(text)}</td>' for text in texts])
    images = []
    if figure := _figure([run['curves'] for run in entry['runs'] if run.get('curves')]):
        alt = escape(f'Curves of {row}, {column}')
        images.append(f'<img alt="{alt}" src="data:image/png;base64,{_picture(figure)}">')
    settings = '\n'.join(sorted(f'{key} = {json.dumps(value)}' for key, value in _flat(entry['settings'])))
    return [
        f'<details class="cell" open id="{content.anchor(table, row, column)}">',
        f'<summary>{escape(f"{row}, {column}")}</summary>',
        *images,
        *_html_rows(['seed', *(content.quantity(table, rule) for rule in cell), *keys], runs),
        f'<details><summary>settings</summary><pre>{escape(settings)}</pre></details>',
        '</details>',
    ]


def _flat(tree: Mapping[str, Any], prefix: str = '') -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f'{prefix}{key}.')
        else:
            yield prefix + key, value


def _figure(runs: list[Mapping[str, list]]) -> Figure | None:
    """Returns a figure with a panel for each kind of curve, in % over the steps; None without curves."""
    kinds = list(dict.fromkeys(kind for curves in runs for kind, curve in curves.items() if curve))
    if not kinds:
        return None
    figure = Figure(figsize=(4 * len(kinds), 2.7), dpi=90)
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        curves = [curves[kind] for curves in runs if curves.get(kind)]
        for curve in curves:
            steps, values, _ = report.band([curve])
            axes.plot(steps, 100 * values, color='C0', linewidth=0.6, alpha=0.5)
        steps, mean, std = (scale * part for scale, part in zip((1, 100, 100), report.band(curves), strict=True))
        axes.plot(steps, mean, color='C0', linewidth=1.6)
        axes.fill_between(steps, mean - std, mean + std, color='C0', alpha=0.2, linewidth=0)
        axes.set_title(f'{content.name(kind)}, %', fontsize=10)
        axes.set_xlabel('step', fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def _picture(figure: Figure) -> str:
    """Returns a PNG in base64."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    file = io.BytesIO()
    # With few colours it has a quarter of the bytes.
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB').quantize(32).save(file, 'png', optimize=True)
    return base64.b64encode(file.getvalue()).decode()
