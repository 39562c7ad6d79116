"""What the README files show is what results/ holds, and that is what its table.json says."""

import json

import pytest

from tables import quote, render

TABLES = sorted(path.parent.name for path in (quote.ROOT / 'results').glob('*/table.json'))


@pytest.mark.parametrize('page', quote.PAGES)
def test_pages_quote_the_results(page):
    text = (quote.ROOT / page).read_text()
    assert '<!-- table ' in text
    assert quote.quote(text) == text, 'python -m tables.quote brings them up to date'


@pytest.mark.parametrize('name', TABLES)
def test_pages_of_a_table_are_made_from_its_json(name):
    folder = quote.ROOT / 'results' / name
    table = json.loads((folder / 'table.json').read_text())
    for page, make in render.PAGES.items():
        if page != 'index.html':  # is not in the repository
            assert (folder / page).read_text() == make(table), f'{table["command"]} --workdir={folder} makes {page}'


@pytest.mark.parametrize('name', TABLES)
def test_every_number_has_a_commit_and_a_run(name):
    table = json.loads((quote.ROOT / 'results' / name / 'table.json').read_text())
    assert f'configs/tables/{name}.py' in table['command']
    for cell in table['cells']:
        for run in cell['runs']:
            assert run['commit']
            assert run['sources']
            assert run['seconds'] > 0
            assert not run['commit'].endswith('+'), 'made by code that no commit holds'
            assert all(value is None or 0 <= value <= 1 for value in run['values'].values())
