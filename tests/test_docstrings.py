"""Docstrings follow Google's style, in what the pydocstyle rules of ruff (pyproject.toml) do not check."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CODE = ('configs', 'data', 'methods', 'models', 'tables', 'train')
SECTIONS = ('Args', 'Attributes', 'Raises', 'Returns', 'Yields')
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef


def problems(source: str) -> list[str]:
    """Returns the lines of a module's docstrings that are not in the style."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED)]
    return [line for node in nodes if (text := ast.get_docstring(node)) for line in _problems(node, text.splitlines())]


def _problems(node: ast.AST, lines: list[str]) -> list[str]:
    wrong, section = [], ''
    for line in lines:
        if line and not line.startswith(' '):
            section = line[:-1] if re.fullmatch(r'[A-Z]\w+:', line) else ''
        names = re.match(r'\s*\*{0,2}(\w+(?:, \w+)*): ', line)
        described = set(names[1].split(', ')) if names else set()
        is_section_in_prose = re.search(r'\b(Raises|(?<!^)Returns) ', line) or described & _names(node)
        if (section and section not in SECTIONS) or (not section and is_section_in_prose):
            wrong.append(line)
        if section in ('Args', 'Attributes') and len(line) - len(line.lstrip()) == 4 and not described <= _names(node):
            wrong.append(line)  # describes what does not exist
    is_property = any('property' in ast.unparse(decorator) for decorator in getattr(node, 'decorator_list', ()))
    if isinstance(node, ast.FunctionDef) and not is_property and not re.match(r'[A-Z][a-z]+s\b', lines[0]):
        wrong.append(lines[0])  # does not begin with a verb such as "Returns"
    return wrong


def _names(node: ast.AST) -> set[str]:
    """Returns the names of a function's arguments or of a class's attributes."""
    if isinstance(node, ast.FunctionDef):
        return {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
    statements = node.body if isinstance(node, ast.ClassDef) else []
    targets = [target for s in statements for target in getattr(s, 'targets', [getattr(s, 'target', None)])]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_docstrings_are_in_the_style():
    paths = [ROOT / 'errors.py', ROOT / 'main.py', *(path for code in CODE for path in (ROOT / code).rglob('*.py'))]
    lines = {path.relative_to(ROOT).as_posix(): problems(path.read_text(encoding='utf-8')) for path in paths}
    assert {path: wrong for path, wrong in lines.items() if wrong} == {}


@pytest.mark.parametrize(
    'docstring',
    [
        'The sum of a and b.',
        'Returns the sum. Raises ValueError for b.',
        'Adds b to a. Returns the sum.',
        'Returns the sum.\n\n    a: A number.\n    ',
        'Returns the sum.\n\n    Note:\n        It is finite.\n    ',
        'Returns the sum.\n\n    Args:\n        c: A number.\n    ',
    ],
)
def test_a_docstring_in_another_style_is_found(docstring):
    assert problems(f'def add(a, b):\n    """{docstring}"""')
    assert not problems('def add(a, b):\n    """Returns the sum.\n\n    Args:\n        a: A number.\n    """')
