"""A dot plot of a table as SVG: a line per row, a panel per column, with the mean, its spread and the single seeds.

The text depends on the content only and needs no other file. It is dots.svg, and is at the top of the page.
"""

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from tables import content, report

# Pixels.
ROW, PANEL, GAP, MARGIN, LEGEND, HEAD, FOOT = 20, 236, 20, 10, 34, 26, 38
LETTER = 6.7  # mean width, of the row labels
MOST = 4  # panels side by side, at most

# Without CSS variables, which few viewers but browsers support.
STYLE = """
.dots text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.dots .head { font-weight: 600; text-anchor: middle; }
.dots .row { text-anchor: end; }
.dots .tick { font-size: 11px; fill: #5b6472; text-anchor: middle; }
.dots .legend { fill: #5b6472; }
.dots .grid, .dots .frame { stroke: #dde1e7; fill: none; }
.dots .guide { stroke: #c4cad3; stroke-dasharray: 1 3; }
.dots .std { stroke: #0b57d0; stroke-width: 2; stroke-opacity: 0.55; }
.dots .seed { fill: #0b57d0; fill-opacity: 0.3; }
.dots .mean { fill: #0b57d0; }
.dots .line { stroke: #c2410c; stroke-dasharray: 4 3; fill: none; }
.dots .best { fill: #c2410c; }
@media (prefers-color-scheme: dark) {
  .dots text { fill: #e4e7eb; }
  .dots .tick, .dots .legend { fill: #a0a8b5; }
  .dots .grid, .dots .frame { stroke: #3a404b; }
  .dots .guide { stroke: #565d69; }
  .dots .std { stroke: #8ab4f8; }
  .dots .seed, .dots .mean { fill: #8ab4f8; }
  .dots .line { stroke: #fdba74; }
  .dots .best { fill: #fdba74; }
}
""".strip()


def svg(table: Mapping[str, Any]) -> str:
    """Returns the plot of a table by the shown rule. Each panel has its own axis."""
    cells = report.cells(table, table['shown'])
    rows, columns = table['rows'], table['columns']
    lines = -(-len(columns) // MOST)
    across = -(-len(columns) // lines)
    labels = LETTER * max(map(len, rows)) + MARGIN
    height = HEAD + ROW * len(rows) + FOOT
    width, total = labels + across * (PANEL + GAP) + MARGIN, LEGEND + lines * height
    quantity = content.quantity(table, table['shown'])
    name = escape(f'{table["title"]}: {quantity}')
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="dots" role="img" viewBox="0 0 {width:.0f} {total}" '
        f'width="{width:.0f}" height="{total}" aria-label="{name}">',
        f'<style>{STYLE}</style>',
        f'<text class="legend" x="{MARGIN}" y="20">{escape(quantity)}: mean, ± standard deviation, single seeds '
        '(faint); the best mean is orange</text>',
    ]
    for i, column in enumerate(columns):
        left, top = labels + GAP + i % across * (PANEL + GAP), LEGEND + i // across * height
        if i % across == 0:
            for j, row in enumerate(rows):
                y = top + HEAD + ROW * (j + 0.5) + 4
                parts.append(f'<text class="row" x="{labels + MARGIN:.0f}" y="{y:.0f}">{escape(row)}</text>')
        of_column = [(j, cells[row, column]) for j, row in enumerate(rows) if (row, column) in cells]
        of_column = [(j, cell) for j, cell in of_column if cell.n]
        parts.append(f'<g transform="translate({left:.0f} {top + HEAD})">')
        parts += _panel(table, column, of_column)
        parts.append('</g>')
    return '\n'.join([*parts, '</svg>', ''])


def _panel(table: Mapping[str, Any], column: str, cells: list[tuple[int, report.Cell]]) -> Iterable[str]:
    """Yields a column's panel.

    Args:
        table: The table.
        column: The column.
        cells: The numbers of the rows and the cells that have a value.
    """
    bottom = ROW * len(table['rows'])
    values = [cell.mean + sign * (cell.std or 0) for _, cell in cells for sign in (-1, 1)]
    values += [value for _, cell in cells for value in cell.values.values()]
    low, high = (max(0.0, min(values)), min(100.0, max(values))) if values else (0.0, 100.0)
    if high - low < 1:
        low, high = low - 0.5, high + 0.5

    def x(value: float) -> float:
        return 12 + (PANEL - 24) * (min(max(value, low), high) - low) / (high - low)

    yield f'<text class="head" x="{PANEL / 2:.0f}" y="-9">{escape(column)}</text>'
    for tick in _ticks(low, high):
        yield f'<path class="grid" d="M{x(tick):.1f} 0V{bottom}"/>'
        yield f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}">{tick:g}</text>'
    yield f'<rect class="frame" width="{PANEL}" height="{bottom}" rx="4"/>'
    better = min if table['error'] else max
    best = better((cell.mean for _, cell in cells), default=None)
    if best is not None:
        yield f'<path class="line" d="M{x(best):.1f} 0V{bottom}"/>'
    for j, cell in cells:
        y = ROW * (j + 0.5)
        numbers = f'{cell.mean:.2f}' if cell.std is None else f'{cell.mean:.2f} ± {cell.std:.2f}'
        seeds = ', '.join(f'seed {seed}: {value:.2f}' for seed, value in cell.values.items())
        tooltip = f'{table["rows"][j]}, {column}: {numbers} ({seeds})'
        yield f'<g><title>{escape(tooltip)}</title>'
        yield f'<path class="guide" d="M0 {y:.0f}H{PANEL}"/>'
        if cell.std is not None:
            yield f'<path class="std" d="M{x(cell.mean - cell.std):.1f} {y:.0f}H{x(cell.mean + cell.std):.1f}"/>'
            for value in cell.values.values():
                yield f'<circle class="seed" cx="{x(value):.1f}" cy="{y:.0f}" r="3"/>'
        kind = 'best' if cell.mean == best else 'mean'
        yield f'<circle class="{kind}" cx="{x(cell.mean):.1f}" cy="{y:.0f}" r="3.6"/></g>'


def _ticks(low: float, high: float) -> list[float]:
    """Returns at most seven round numbers within a range: multiples of 1, 2 or 5 times a power of ten."""
    least = (high - low) / 6
    power = 10 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    return [round(i * step, 9) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
