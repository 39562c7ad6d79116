"""The pages say what is true of the code: links, commands, names of configs and settings."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import drawn
import launch
import nbformat
import pytest
import yaml
from test_imports import IMPORTS

import configs
from docs import pictures

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.rglob('*.md')
    if not {'tests', 'runs'} & set(path.parts[len(ROOT.parts) :])
    and not any(part.startswith('.') for part in path.parts[len(ROOT.parts) :])
)
TOUR = ROOT / 'docs' / 'tour.ipynb'
# Parts of .ci/run, and commands that tests run.
CI = (
    'python3 -m venv',
    'pip install -r requirements.txt',
    'pip install -r requirements-dev.txt',
    'python main.py --config=configs/fixmatch.py',
    'ruff check .',
    'ruff format --check .',
    'pytest',
)
ELSEWHERE = {
    'python3 -m venv .venv': '.ci/run',
    '. .venv/bin/activate': '.ci/run',
    **dict.fromkeys(CI, '.ci/run'),
    '.ci/run': 'is what runs the others',
    'python -m tables.quote': 'tests/test_results.py',
    'python -m docs.pictures': 'test_picture',
    'jupyter execute --inplace docs/tour.ipynb': 'test_tour',
}
TINY = [f'--config.{name}=2' for name in ('steps', 'log_steps', 'eval_steps', 'checkpoint_steps')]
TINY += ['--config.model.width=1', '--config.model.blocks=(1,)']
# {command: flags that make it cheap}; --check ends with 1 where results are stale.
HERE = {
    'python main.py --config=configs/fixmatch.py:digits,labels=40': TINY,
    'python main.py --config=configs/tables/digits.py --list': [],
    'python main.py --config=configs/tables/digits.py --check': ['--workdir=results/digits'],
}


def read(page: str) -> str:
    return (ROOT / page).read_text()


def bash_blocks(text: str) -> list[tuple[str, str | None]]:
    """Returns each block of shell commands, and why it is not run or None."""
    blocks = re.finditer(r'(?:<!-- not run: ([^\n]*) -->\n)?```bash\n(.*?)```', text, re.DOTALL)
    return [(match[2], match[1]) for match in blocks]


def commands(block: str) -> list[str]:
    """Returns the commands of a block, without comments."""
    lines = block.replace('\\\n', ' ').splitlines()
    parts = [part for line in lines for part in re.sub(r'\s+#.*', '', line).split(' && ')]
    return [' '.join(part.split()) for part in parts if part.strip()]


def get_config(path: str):
    """Returns the config of 'configs/fixmatch.py:digits'."""
    file, colon, argument = path.partition(':')
    assert (ROOT / file).exists(), file
    spec = importlib.util.spec_from_file_location('config', ROOT / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*[argument] if colon else [])


def has(config, name: str) -> bool:
    """Says whether a config has the setting 'optimizer.warmup'."""
    node = config
    for key in name.split('.'):
        if not hasattr(node, 'keys') or key not in node:
            return False
        node = node[key]
    return True


@pytest.fixture(scope='module')
def all_settings() -> list:
    """Returns configs that together have every setting that a page may name without a command."""
    paths = [
        'tables/digits.py',
        'finetune.py:strategy=delta',
        'dann.py:methods=cdan',
        'rotation.py:method=barlow_twins',
        *(f'{n}.py' for n in configs.NAMES),
    ]
    return [get_config(f'configs/{path}') for path in paths]


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_bytes()) <= 9000


def slug(heading: str) -> str:
    """Returns the anchor that GitHub gives a heading."""
    return re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')


@pytest.mark.parametrize('page', [*PAGES, 'docs/tour.ipynb'])
def test_links_resolve(page):
    text = read(page)
    if page.endswith('.ipynb'):
        text = '\n'.join(cell.source for cell in nbformat.reads(text, 4).cells if cell.cell_type == 'markdown')
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith(('http://', 'https://')):
            continue
        file, _, anchor = target.partition('#')
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r'^#+ (.*)$', path.read_text(), re.MULTILINE)), target


@pytest.mark.parametrize('page', PAGES)
def test_commands_are_run_or_marked(page):
    for block, not_run in bash_blocks(read(page)):
        for command in commands(block):
            assert not_run or command in HERE or command in ELSEWHERE, (
                f'run it in a test, or <!-- not run: why -->: {command}'
            )


def test_ci_runs_its_commands():
    lines = (ROOT / '.ci' / 'run').read_text().splitlines()
    for command in CI:
        pattern = '.*'.join(rf'(?<!\S){re.escape(word)}(?!\S)' for word in command.split())
        assert any(re.search(pattern, line) for line in lines), command


@pytest.fixture(scope='module')
def photos(tmp_path_factory, data_dir):
    """Returns a folder of pictures, and lets configs find what is prepared of it."""
    folder = tmp_path_factory.mktemp('own') / 'photos'
    for i in range(10):
        drawn.write(folder / ['cat', 'dog'][i % 2] / f'{i}.png', i)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', data_dir)
        yield f'{folder}/'


@pytest.mark.parametrize('page', PAGES)
def test_configs_and_settings_exist(page, all_settings, photos):
    text = read(page)
    used = [command for block, _ in bash_blocks(text) for command in commands(block) if ' --config=' in command]
    for command in used:
        flags = [flag.partition('=') for flag in shlex.split(command)]
        (path,) = (value for name, _, value in flags if name == '--config')
        config = get_config(path.replace('photos/', photos))
        for name, _, _ in flags:
            if name.startswith('--config.'):
                assert has(config, name.removeprefix('--config.')), command
    named = re.findall(r'--config\.([\w.]+)', text)
    named += re.findall(r'`((?:data|model|optimizer|transfer)\.[\w.]+)(?:=[^`]*)?`', text)
    named += [name for name in re.findall(r'`(methods\.\w+\.\w+)(?:=[^`]*)?`', text) if '.base.' not in name]
    for name in named:
        assert any(has(config, name) for config in all_settings), name
    for file in re.findall(r'\bconfigs/[\w/]+\.py', text):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize('page', ['CONTRIBUTING.md', *(page for page in PAGES if page.startswith('docs/'))])
def test_files_exist(page):
    for file in re.findall(r'`((?:\w+/)*\w+\.py)`', read(page)):
        assert (ROOT / file).exists(), file


def test_path_of_a_newcomer_is_at_most_12_files_that_import_each_other():
    section = read('CONTRIBUTING.md').split('## A new method')[0]
    path = re.findall(r'^\d+\. `([\w/]+\.py)`', section, re.MULTILINE)
    assert path[0] == 'main.py'
    assert 2 < len(path) <= 12
    by_name = {'configs/fixmatch.py', 'methods/fixmatch.py'}
    known = set()
    for file in path:
        assert file in known | by_name or file == path[0], file
        known |= IMPORTS[file]


@pytest.mark.parametrize('command', HERE)
def test_commands_run(command, data_dir, tmp_path):
    python, main, *words = shlex.split(command)
    assert (python, main) == ('python', 'main.py')
    process = launch.main(*words, f'--data_dir={data_dir}', f'--workdir={tmp_path}/run', *HERE[command])
    assert process.returncode == 0 or ('--check' in command and process.stdout), process.stderr


def test_picture(tmp_path, monkeypatch):
    assert pictures.PICTURE.stat().st_size < 200_000
    monkeypatch.setattr(pictures, 'PICTURE', tmp_path / 'picture.png')
    pictures.main()
    assert 50_000 < (tmp_path / 'picture.png').stat().st_size < 200_000


def test_tour(tmp_path, data_dir):
    """The notebook runs as it is, and its outputs are in the repository."""
    environment = {**os.environ, 'TFDS_DATA_DIR': data_dir}
    executed = tmp_path / 'tour.ipynb'
    jupyter = pathlib.Path(sys.executable).parent / 'jupyter'
    command = [jupyter, 'execute', TOUR, f'--output={executed.with_suffix("")}']
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for new, old in zip(nbformat.read(executed, 4).cells, nbformat.read(TOUR, 4).cells, strict=True):
        kinds = [
            {output.output_type for output in cell.get('outputs', []) if output.get('name') != 'stderr'}
            for cell in (new, old)
        ]
        assert kinds[0] == kinds[1], f'jupyter execute --inplace docs/tour.ipynb: {old.source}'
        assert 'error' not in kinds[1]


def test_citation():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors', 'version', 'license'} <= citation.keys()
    assert citation['title'] == 'Adaptax'


def test_tour_is_small():
    assert TOUR.stat().st_size < 300_000
    assert json.loads(TOUR.read_text())['nbformat'] == 4
