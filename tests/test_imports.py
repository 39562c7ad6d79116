"""Imports point one way, and a method is known by name to its config only."""

import ast
import graphlib
import pathlib

import pytest

import methods

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ('configs', 'data', 'deploy', 'methods', 'models', 'tables', 'train')
FILES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding='utf-8'))
    for path in [ROOT / 'main.py', ROOT / 'errors.py', *(p for name in PACKAGES for p in (ROOT / name).rglob('*.py'))]
}
# {package: what of ours it may import, beside itself and errors.py}. configs/__init__.py has only the names of the
# configs. The tables among them, configs/tables/, are apart: they import tables/, which imports the others.
MAY_IMPORT = {
    'errors': set(),
    'data': set(),
    'models': set(),
    'methods': {'models', 'data'},
    'train': {'methods', 'models', 'data'},
    'deploy': {'train', 'methods', 'models', 'data'},
    'configs/__init__': set(),
    'configs': {'train', 'methods', 'data'},
    'tables': {'configs/__init__', 'configs', 'train', 'methods'},
    'configs/tables': {'tables', 'configs'},
    'main': {'configs/__init__', 'configs', 'tables', 'train'},
}


def imported(tree: ast.AST) -> set[str]:
    """Returns the files of ours that a file imports, at its top or later; not the packages on the way to them."""
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [[alias.name] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'write the whole name of the module'
            # `from a import b` imports a.b, or something of a.
            modules += [[f'{node.module}.{alias.name}', node.module] for alias in node.names]
    files = set()
    for names in modules:
        paths = (f'{name.replace(".", "/")}{end}' for name in names for end in ('.py', '/__init__.py'))
        files |= set([path for path in paths if path in FILES][:1])
    return files


IMPORTS = {file: imported(tree) for file, tree in FILES.items()}


def package(file: str) -> str:
    """Returns the part of the repository that a file is of, a key of MAY_IMPORT."""
    name = file.removesuffix('.py')
    parts = ('configs/__init__', 'configs/tables')
    return next((part for part in parts if name.startswith(part)), name.partition('/')[0])


def test_no_file_imports_itself_on_a_detour():
    graphlib.TopologicalSorter(IMPORTS).prepare()  # CycleError names the files of a cycle


@pytest.mark.parametrize('name', MAY_IMPORT)
def test_imports_point_one_way(name):
    files = {other for file in FILES if package(file) == name for other in IMPORTS[file]}
    assert {package(file) for file in files} <= {name, 'errors', *MAY_IMPORT[name]}, files


def test_nothing_else_knows_a_method_by_name():
    strings, modules = {}, set()
    for file in FILES:
        if package(file) in ('data', 'models', 'train', 'tables'):
            modules |= {other for other in IMPORTS[file] if package(other) == 'methods'}
            for node in ast.walk(FILES[file]):
                if isinstance(node, ast.Constant) and node.value in methods.names():
                    strings.setdefault(node.value, set()).add(file)
    assert modules == {'methods/__init__.py', 'methods/base.py'}
    for word in ('rotation', 'finetune'):  # also a rotated view, and what a result is called
        strings.pop(word, None)
    assert strings == {'supervised': {'train/settings.py'}}  # the default of transfer.method
