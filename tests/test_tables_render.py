"""A table's pages, read back by parsers, and whole as they stand in tests/golden/tables.

That folder's table.json is written by hand: it has a bold cell, one without runs, one with fewer runs, a failed run, a
row that is not run for a column, papers with and without a spread, and runs without a value by one of the rules.
"""

import base64
import copy
import csv
import html.parser
import io
import json
import os
import pathlib
import re
import statistics
from xml.etree import ElementTree

import pytest
from PIL import Image

from errors import UserError
from tables import content, dots, page, render

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'tables'
SVG = '{http://www.w3.org/2000/svg}'
NASTY = r'a|b_c __d__ *e* <i>&amp; %#$~^{f} \g [h] `k` "l" -> --'


@pytest.fixture
def table():
    return json.loads((GOLDEN / 'table.json').read_text())


@pytest.fixture
def without_curves(table):
    """The table without what takes a second to draw."""
    for cell in table['cells']:
        for run in cell['runs']:
            run.pop('curves', None)
    return table


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """The files that are written for the golden table, {name: text}."""
    folder = tmp_path_factory.mktemp('table') / 'new'
    render.write(folder, json.loads((GOLDEN / 'table.json').read_text()))
    return {path.name: path.read_text() for path in folder.iterdir()}


class Page(html.parser.HTMLParser):
    """tables: of each table the texts of its cells; text: of everything; attributes: {name: values}."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.text, self.attributes, self.tags = [], [], '', {}, []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            self.attributes.setdefault(name, []).append(value)
        if tag not in ('meta', 'img'):
            self.open.append(tag)
        if tag == 'table':
            self.tables.append([])
        elif tag == 'tr':
            self.tables[-1].append([])
        elif tag in ('th', 'td'):
            self.tables[-1][-1].append('')

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {'th', 'td'} & set(self.open):
            self.tables[-1][-1][-1] += data


def split_markdown(lines):
    """Returns the texts of a table's cells, without bold and escapes."""
    rows = [re.split(r'(?<!\\)\|', line)[1:-1] for line in lines]
    assert set(rows.pop(1)) == {'---'}
    return [[re.sub(r'\\(.)', r'\1', re.sub(r'(?<!\\)\*\*', '', text.strip())) for text in row] for row in rows]


def markdown_tables(text):
    tables = re.findall(r'<!-- small .* -->\n([^!]*)\n<!-- end -->', text)
    return [split_markdown(lines.splitlines()) for lines in tables]


def split_latex(text):
    """Returns of each tabular the texts of its cells, without bold and with the escapes that the golden table needs."""
    tables = []
    for body in re.findall(r'\\toprule\n(.*?)\\bottomrule', text, re.S):
        rows = [line.strip() for line in body.splitlines() if line.strip() not in ('', r'\midrule')]
        assert all(row.endswith(r' \\') for row in rows)
        tables.append([])
        for row in rows:
            plain = re.sub(r'\\textbf\{(.*?)\}', r'\1', row[:-3])
            for escaped, character in ((r'$\pm$', '±'), (r'$\to$', '->'), ('---', '—'), (r'\_', '_'), (r'\%', '%')):
                plain = plain.replace(escaped, character)
            tables[-1].append([cell.strip() for cell in plain.split(' & ')])
    return tables


# Golden files


@pytest.mark.parametrize('name', render.PAGES)
def test_golden_file(pages, name):
    text = re.sub(r'base64,[A-Za-z0-9+/=]+', 'base64,', pages[name])  # a picture's bytes depend on matplotlib's version
    if os.environ.get('UPDATE_GOLDEN'):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text(), (
        f'{name} is not what tests/golden/tables/{name} says. If it should be, run UPDATE_GOLDEN=1 pytest {__file__} '
        'and look at the difference before you commit it.'
    )


def test_the_same_content_makes_the_same_bytes(pages, table):
    assert page.html(copy.deepcopy(table)) == pages['index.html']


# The formats


def test_cells_are_mean_and_deviation_of_all_runs_and_marked_where_some_are_not_there(table):
    cells = split_markdown(render.main_table(table))
    assert cells == markdown_tables(render.markdown(table))[0]
    assert cells[0] == ['last, accuracy in %', *table['columns']]
    assert [row[0] for row in cells[1:]] == table['rows']
    texts = {(row[0], column): text for row in cells[1:] for column, text in zip(cells[0][1:], row[1:], strict=True)}
    for cell in table['cells']:
        values = [100 * run['values']['last'] for run in cell['runs'] if 'values' in run]
        text = f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}' if values else '—'
        failed = '1 failed, ' if len(values) < len(cell['runs']) else ''
        assert texts.pop((cell['row'], cell['column'])) == text + (f' ({failed}n=2)' if len(values) == 2 else '')
    assert texts == {('mean_teacher', 'digits -> digits_m'): ''}
    bold = re.findall(r'\*\*(.*?)\*\*', '\n'.join(render.main_table(table)))
    assert bold == ['96.00 ± 1.00']  # of fixmatch with 10 labels


def test_a_cell_whose_seeds_were_made_on_different_numbers_of_devices_is_marked(table):
    assert 'devices' not in render.markdown(table)
    table['cells'][0]['runs'][1]['devices'] = 2
    cells = split_markdown(render.main_table(table))
    assert [text for row in cells for text in row if 'devices' in text] == ['81.67 ± 1.53 (1 and 2 devices)']
    assert '- devices: how many a run was made on, where it is not 1:' in render.markdown(table)


def test_a_cell_made_on_another_number_of_devices_than_the_rest_is_marked(table):
    for run in table['cells'][1]['runs']:
        run['devices'] = 2
    cells = split_markdown(render.main_table(table))
    (marked,) = [text for row in cells for text in row if 'device' in text]
    assert marked == '90.50 ± 0.71 (n=2, 2 devices)'
    for cell in table['cells'][2:]:
        for run in cell['runs']:
            run['devices'] = 2
    cells = split_markdown(render.main_table(table))
    assert [text for row in cells for text in row if 'device' in text] == ['81.67 ± 1.53 (1 device)']


def test_error_rates_are_what_is_left_of_the_accuracies(table):
    cells = split_markdown(render.main_table({**table, 'error': True}))
    assert cells[0][0] == 'last, error rate in %'
    assert cells[2][1] == '4.00 ± 1.00'
    assert '| **4.00 ± 1.00** |' in render.main_table({**table, 'error': True})[3]
    beside = markdown_tables(render.markdown({**table, 'error': True}))[1:3]
    assert beside[0][1][1] == '4.00 ± 1.00 / 13.81 ± 3.37 (-9.81, outside)'
    assert beside[1][1][1] == '18.33 ± 1.53 / 19.5 (-1.17)'


def test_the_papers_numbers_stand_beside_ours(table):
    _, spread, none, *_ = markdown_tables(render.markdown(table))
    assert spread == [
        ['ours / paper (ours - paper)', 'digits, 10', 'digits, 40', 'digits -> digits_m'],
        [
            'fixmatch',
            '96.00 ± 1.00 / 86.19 ± 3.37 (+9.81, outside)',
            '96.50 ± 0.71 (1 failed, n=2) / 96.5 ± 0.25 (+0.00, inside)',
            '52.50 ± 2.50',
        ],
        ['mean_teacher', '85.83 ± 1.04', '94.50 ± 0.50', '/ 59.9 ± 1.5'],
    ]
    assert none == [
        ['ours / paper (ours - paper)', 'digits, 10', 'digits -> digits_m'],
        ['supervised', '81.67 ± 1.53 / 80.5 (+1.17)', '— / 31'],
    ]


def test_other_rules_follow_and_the_one_without_values_does_not(table):
    heads = [cells[0][0] for cells in markdown_tables(render.markdown(table))]
    names = ['last', 'median of the last 20', 'selected', 'best on test (a leak)']
    first, *others = [f'{name}, accuracy in %' for name in names]
    assert heads == [first, *['ours / paper (ours - paper)'] * 2, *others]
    selected = split_markdown(render.main_table(table, 'selected'))
    assert [row[1] for row in selected[1:]] == ['n/a'] * 3
    for cell in table['cells']:
        for run in cell['runs']:
            run.get('values', {})['selected'] = None
    assert 'selected' not in ''.join(cells[0][0] for cells in markdown_tables(render.markdown(table)))
    assert ',selected,' not in render.csv(table)
    table['shown'] = 'selected'  # it is what the table is about
    assert render.main_table(table)[0].startswith('| selected, accuracy in % |')
    with pytest.raises(UserError, match="Did you mean 'last'"):
        render.main_table(table, 'lats')


def test_the_caption_says_how_the_numbers_came_about(table):
    text = render.markdown(table)
    first = text.split('<!-- small a-paper')[0]
    for part in (
        table['command'],
        table['commit'],
        'standard deviation (ddof 1) over n = 3 seeds (0, 1, 2), of all runs',
        'paired t-test',
        r'Failed: fixmatch, digits, 40, seed 1: loss is not finite at step 7 \<nan>.',
        'Protocol, steps: 200 (digits, 10; digits, 40) / 300 (digits -> digits_m).',
        'Protocol, split: balanced.',
        '- —: ',
        '- n: ',
        '- failed: ',
        '- Empty: ',
    ):
        assert part in first, part
    assert '- n/a: ' not in first
    assert '- n/a: ' in text.split('<!-- small selected')[1]
    assert 'Differs from the paper in seeds: ours 3, paper 5.' in text
    assert text.count(content.SAME) == 1  # as the other paper says less
    assert 'Settings there' not in text
    table['papers'][1]['settings'] = {'supervised': 'weight 2', 'other': 'not beside it'}
    other = render.markdown(table)
    assert other.count('Settings there') == other.count('\n- Settings there, supervised: weight 2.\n') == 1
    # What does not occur is not explained, and a paper without a number for the table is not beside it.
    table['cells'] = [cell for cell in table['cells'] if cell['column'] == 'digits, 10']
    table['columns'] = ['digits, 10']
    table['papers'][0]['results'] = {'fixmatch': {'digits, 40': '3.5'}}
    assert 'A paper with spread' not in render.markdown(table)
    assert not re.search(r'^- (—|n|n/a|failed|Failed|Empty):', render.markdown(table), re.M)


def test_markdown_latex_and_html_have_the_same_tables(pages, table):
    in_markdown = markdown_tables(pages['table.md'])
    assert len(in_markdown) == 6
    assert split_latex(pages['table.tex']) == in_markdown
    in_page = Page(pages['index.html']).tables
    assert [[[text.strip() for text in row] for row in cells] for cells in in_page[:6]] == in_markdown
    bold = pages['table.md'].count('**') / 2
    assert pages['table.tex'].count(r'\textbf{') == pages['index.html'].count('<b>') == bold > 0
    assert len(in_page) == 6 + len(table['cells'])


def test_latex_environments_are_closed(pages):
    stack = []
    for kind, name in re.findall(r'\\(begin|end)\{(\w+)\}', pages['table.tex']):
        assert kind == 'begin' or stack.pop() == name
        stack += [name] * (kind == 'begin')
    assert not stack
    labels = re.findall(r'\\label\{(.*)\}', pages['table.tex'])
    assert len(set(labels)) == len(labels) == 6
    for columns, head in re.findall(r'\\begin\{tabular\}\{(\w+)\}\n *\\toprule\n(.*)', pages['table.tex']):
        assert len(columns) == len(head.split(' & '))


def test_csv_has_every_run_by_every_rule(pages, table):
    rows = list(csv.DictReader(io.StringIO(pages['table.csv'])))
    runs = [(cell, run) for cell in table['cells'] for run in cell['runs']]
    assert len(rows) == 4 * len(runs)
    by_key = {(row['row'], row['column'], row['rule'], int(row['seed'])): row for row in rows}
    for cell, run in runs:
        for rule in table['rules']:
            row = by_key[cell['row'], cell['column'], rule, run['seed']]
            value = run.get('values', {}).get(rule)
            assert (float(row['accuracy']) if row['accuracy'] else None) == value
            assert row['folder'] == run['folder']
            assert (row['commit'], row['seconds']) == (run.get('commit', ''), str(run.get('seconds', '')))


def test_json_is_the_content_itself(pages, table):
    assert json.loads(pages['table.json']) == table
    assert '"test_accuracy": [[100, ' in pages['table.json']  # a curve on a line
    odd = {'a': [], 'b': {}, 'c': [{}, [{'d': 'é"\n[ 1'}]], 'e': (1, 2.5, None)}
    assert json.loads(render._json(odd)) == {**odd, 'e': [1, 2.5, None]}


# The page


def test_the_page_needs_nothing_else_and_its_links_lead_somewhere(pages, table):
    page = Page(pages['index.html'])
    assert set(page.tags) & {'script', 'link', 'iframe', 'object'} == set()
    assert not re.search(r'url\(|@import', pages['index.html'])
    assert all(source.startswith('data:image/png;base64,') for source in page.attributes['src'])
    targets = {f'#{name}' for name in page.attributes['id']}
    assert len(targets) == len(page.attributes['id']) == len(table['cells'])
    assert set(page.attributes['href']) == targets
    assert page.attributes['href'][0] == '#cell-0-0'


def test_each_cell_has_its_curves_settings_and_runs(pages, table):
    page = Page(pages['index.html'])
    details = page.tables[6:]
    for cell, (head, *rows) in zip(table['cells'], details, strict=True):
        assert head[0] == 'seed'
        assert len(rows) == len(cell['runs'])
        for run, row in zip(cell['runs'], rows, strict=True):
            texts = dict(zip(head, row, strict=True))
            assert texts['seed'] == str(run['seed'])
            for key in ('folder', 'commit', 'sources', 'seconds', 'device', 'failure'):
                assert texts[key] == str(run.get(key, ''))
            if 'values' in run:
                assert texts['last, accuracy in %'] == f'{100 * run["values"]["last"]:.2f}'
    lines = 'data.mean = [0.5]\ndata.name = "digits"\nmethods.fixmatch.threshold = 0.9\nsteps = 300'
    assert page.text.count(lines) == 3
    pictures = [Image.open(io.BytesIO(base64.b64decode(source.split(',')[1]))) for source in page.attributes['src']]
    assert len(pictures) == sum(any('curves' in run for run in cell['runs']) for cell in table['cells'])
    assert len(page.attributes['alt']) == len(pictures)
    with_mask_rate = [any('mask_rate' in run.get('curves', ()) for run in cell['runs']) for cell in table['cells']]
    widths = [picture.width for picture in pictures]
    assert widths == [360 * (3 if more else 1) for i, more in enumerate(with_mask_rate) if table['cells'][i]['runs']]


def test_a_picture_has_each_seed_their_mean_and_a_band():
    seeds = [[(10, 0.5), (20, 0.75)], [(10, 0.25), (20, 0.75)]]
    figure = page._figure([{'test_accuracy': seeds[0], 'mask_rate': [(10, 1.0)]}, {'test_accuracy': seeds[1]}])
    accuracy, mask_rate = figure.axes
    assert accuracy.get_title() == 'test accuracy, %'
    assert accuracy.get_xlabel() == 'step'
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[50, 75], [25, 75], [37.5, 75]]
    assert [line.get_xdata().tolist() for line in accuracy.lines] == [[10, 20]] * 3
    band = accuracy.collections[0].get_paths()[0].vertices
    std = statistics.stdev((50, 25))
    assert {round(y, 6) for x, y in band if x == 10} == {round(37.5 + std, 6), round(37.5 - std, 6)}
    assert [line.get_ydata().tolist() for line in mask_rate.lines] == [[100], [100]]


@pytest.mark.parametrize('curves', [{}, {'test_accuracy': []}, {'test_accuracy': [[1, None]]}])
def test_curves_without_points_are_no_error(curves):
    figure = page._figure([curves])
    assert (figure is None) == (not any(curves.values()))
    assert figure is None or page._picture(figure)


# The plot


@pytest.mark.parametrize('error', [False, True])
def test_the_plot_has_the_mean_the_deviation_and_the_seeds_of_every_cell(table, error):
    plot = ElementTree.fromstring(dots.svg({**table, 'error': error}))
    labels = [element.text for element in plot.iter(f'{SVG}text')]
    assert [text for text in labels if text in table['rows']] == table['rows']
    assert [text for text in labels if text in table['columns']] == table['columns']
    for column, panel in zip(table['columns'], plot.findall(f'{SVG}g'), strict=True):
        # The axis, from two of its ticks.
        ticks = [(float(e.get('x')), float(e.text)) for e in panel.iter(f'{SVG}text') if e.get('class') == 'tick']
        assert len(ticks) >= 2
        (x0, value0), *_, (x1, value1) = ticks
        pixels, best = (x1 - x0) / (value1 - value0), []
        groups = panel.findall(f'{SVG}g')
        for row in table['rows']:
            runs = [run for c in table['cells'] if (c['row'], c['column']) == (row, column) for run in c['runs']]
            values = [100 * run['values']['last'] for run in runs if 'values' in run]
            if not values:
                continue
            values = [100 - value for value in values] if error else values
            group = groups.pop(0)
            assert group.find(f'{SVG}title').text.startswith(f'{row}, {column}: {statistics.mean(values):.2f} ± ')
            *seeds, mean = [float(e.get('cx')) for e in group.iter(f'{SVG}circle')]
            assert seeds == pytest.approx([x0 + pixels * (value - value0) for value in values], abs=0.2)
            assert mean == pytest.approx(x0 + pixels * (statistics.mean(values) - value0), abs=0.2)
            (bar,) = [e.get('d') for e in group.iter(f'{SVG}path') if e.get('class') == 'std']
            ends = [float(x) for x in re.fullmatch(r'M(\S+) \S+H(\S+)', bar).groups()]
            assert ends[1] - ends[0] == pytest.approx(2 * pixels * statistics.stdev(values), abs=0.3)
            best.append((statistics.mean(values), group.find(f'{SVG}circle[@class="best"]') is not None))
        assert not groups
        assert [mean for mean, is_best in best if is_best] == [(min if error else max)(best)[0]]


@pytest.mark.parametrize('value', [0.0, 0.5, 1.0, None])
def test_one_seed_and_none_at_all_are_plotted(table, value):
    for cell in table['cells']:
        cell['runs'] = [] if value is None else [{**run, 'values': {'last': value}} for run in cell['runs'][:1]]
    plot = dots.svg(table)
    assert 'nan' not in plot
    assert plot.count('<title>') == sum(bool(cell['runs']) for cell in table['cells'])
    assert plot.count('class="seed"') == plot.count('class="std"') == 0


def test_many_columns_are_in_lines_of_equal_numbers_of_panels(table):
    table['columns'] = [f'column {i}' for i in range(6)]
    plot = ElementTree.fromstring(dots.svg(table))
    corners = [panel.get('transform') for panel in plot.findall(f'{SVG}g')]
    assert len(set(corners)) == 6
    assert len({corner.split()[1] for corner in corners}) == 2
    assert len({corner.split()[0] for corner in corners}) == 3


# What users write


def test_anything_can_stand_in_a_label(without_curves):
    text = json.dumps(without_curves).replace('fixmatch', json.dumps(NASTY)[1:-1]).replace('A small table', 'T <b>&_%')
    table = json.loads(text)
    cells = split_markdown(render.main_table(table))
    assert cells[2][0] == NASTY
    shown = Page(page.html(table))
    assert shown.tables[0][2][0] == NASTY
    assert 'i' not in shown.tags
    assert NASTY in [element.text for element in ElementTree.fromstring(dots.svg(table)).iter(f'{SVG}text')]
    assert next(csv.reader(io.StringIO(render.csv(table).split('\n', 7)[7])))[0] in (*table['rows'],)
    assert NASTY in {row['row'] for row in csv.DictReader(io.StringIO(render.csv(table)))}
    latex = render.latex(table)
    line = next(line for line in latex.splitlines() if line.startswith('    a'))
    expected = (
        r'a$|$b\_c \_\_d\_\_ *e* $<$i$>$\&amp; \%\#\$\textasciitilde{}\textasciicircum{}\{f\} \textbackslash{}g '
        r'{[}h] `k` "l" $\to$ -{}-'
    )
    assert line.startswith(f'    {expected} & ')
    bare = re.sub(r'\\\\|\\[_%&#${}]', '', latex)
    assert bare.count('{') == bare.count('}')
    assert bare.count('$') % 2 == 0
    assert not re.search(r'[%#^~]', bare)
    assert '_' not in bare


# Writing


def test_each_file_is_written_whole_or_not_at_all(tmp_path, without_curves, monkeypatch):
    render.write(tmp_path, without_curves)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    without_curves['title'] = 'Another'

    def full(self, *args, write=pathlib.Path.write_text, **kwargs):
        if self.name.startswith('.index'):
            write(self, 'half')
            raise OSError(28, 'No space left on device')
        return write(self, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, 'write_text', full)
    with pytest.raises(UserError, match='No space left on device'):
        render.write(tmp_path, without_curves)
    monkeypatch.undo()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    render.write(str(tmp_path), without_curves)
    assert 'Another' in (tmp_path / 'index.html').read_text()
    assert {path.name for path in tmp_path.iterdir()} == set(render.PAGES)


def test_a_folder_that_cannot_be_made_is_named(tmp_path, without_curves):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'Cannot write the table to .*file: '):
        render.write(tmp_path / 'file', without_curves)
