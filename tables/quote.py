"""Updates the tables that the README files quote from results/.

    python -m tables.quote

A quotation stands between the lines `<!-- table NAME -->`, or `<!-- table NAME RULE -->`, and `<!-- end -->`. It is the
table of results/NAME/table.json, by the rule that it shows or by the given one. `<!-- table NAME: ROW, ROW -->` quotes
some of its rows only.
"""

import json
import pathlib
import re

from tables import render

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ('README.md', 'results/README.md', 'docs/own_pictures.md')


def quote(text: str) -> str:
    """Returns a page with its quotations updated from results/."""

    def table(match: re.Match) -> str:
        content = json.loads((ROOT / 'results' / match['name'] / 'table.json').read_text())
        return '\n'.join([match['begin'], *render.main_table(content, match['rule']), '<!-- end -->'])

    def some_rows(match: re.Match) -> str:
        begin, head, line, *rows, end = table(match).splitlines()
        if match['rows']:
            by_name = {row.split('|')[1].strip(): row for row in rows}
            rows = [by_name[name] for name in match['rows'].split(', ')]
        return '\n'.join([begin, head, line, *rows, end])

    block = r'(?P<begin><!-- table (?P<name>\w+)(?: (?P<rule>\w+))?(?:: (?P<rows>[^>]+))? -->)\n.*?<!-- end -->'
    return re.sub(block, some_rows, text, flags=re.DOTALL)


def main() -> None:
    """Updates the pages."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(quote(path.read_text()))


if __name__ == '__main__':
    main()
