"""The code that made a run: the git commit, and a hash of the files that its numbers depend on.

Both are recorded at the start of the process, since files may be edited while a run lasts.
"""

import ast
import functools
import hashlib
import io
import pathlib
import subprocess
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ('data', 'methods', 'models', 'train')
# Files that change no number.
REPORTING = (
    'errors.py',
    'train/diagnostics.py',
    'train/failure.py',
    'train/log.py',
    'train/provenance.py',
    'train/run_folder.py',
)

# As of the call of `read`.
_sources: dict[str, str] = {}  # {file, relative to the repository: text}
_commit: list[str | None] = [None]


def read() -> None:
    """Remembers the code as it is now."""
    _sources.clear()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob('*.py')):
            _sources[path.relative_to(ROOT).as_posix()] = path.read_text(encoding='utf-8')
    head = _git('rev-parse', 'HEAD')
    _commit[0] = None if head is None else head.strip() + '+' * bool(_git('status', '--porcelain', '--', '*.py'))


def commit() -> str | None:
    """Returns the git commit, with '+' appended if Python files differ from it; None outside of git."""
    return _commit[0]


def used_methods(settings: Mapping[str, Any]) -> list[str]:
    """Returns the names of the methods that a run uses, including the one that fine-tunes its features.

    Args:
        settings: Settings of the run, as config.json and result.json hold them.
    """
    transfer = settings['transfer']
    return sorted({*settings['methods'], *([transfer['method']] if transfer['labels'] else [])})


def files(methods: Iterable[str]) -> list[str]:
    """Returns the files that the numbers of a run depend on, relative to the repository, sorted.

    These are all files of the repository that it imports, without those of REPORTING.

    Args:
        methods: Names of the methods that it uses. Others are not among the files, since methods are imported by name.
    """
    visited, queue = set(), ['train/experiment.py', *(f'methods/{name}.py' for name in methods)]
    while queue:
        name = queue.pop()
        if name in _sources and name not in visited:
            visited.add(name)
            queue += _imports(_sources[name])
    return sorted(visited - set(REPORTING))


def digest(methods: Iterable[str]) -> str:
    """Returns a hash of the code in `files`; comments, docstrings and empty lines do not count."""
    sha = hashlib.sha256()
    for name in files(methods):
        sha.update(f'{name}\n{code(_sources[name])}\n'.encode())
    return sha.hexdigest()[:12]


def changed(methods: Iterable[str], since: str | None) -> list[str]:
    """Returns the `files` whose code differs from that at a commit; none if git does not know the commit."""
    if since is None or _at(f'{since.rstrip("+")}^{{tree}}') is None:
        return []
    old = {name: _at(f'{since.rstrip("+")}:{name}') for name in files(methods)}
    return [name for name, source in old.items() if source is None or code(source) != code(_sources[name])]


@functools.cache
def code(source: str) -> str:
    """Returns Python source without comments, docstrings and empty lines."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            if first.lineno == getattr(node, 'lineno', 0):
                continue  # all on one line
            end = first.end_lineno or first.lineno
            lines[first.lineno - 1 : end] = [''] * (end - first.lineno + 1)
    return '\n'.join(line.rstrip() for line in lines if line.strip())


@functools.cache
def _at(name: str) -> str | None:
    """Returns what git has under a name such as 'COMMIT:FILE', None if it has nothing."""
    return _git('show', name)


def _git(*command: str) -> str | None:
    """Returns the output of git, None if it fails."""
    try:
        return subprocess.run(('git', '-C', str(ROOT), *command), capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def _imports(source: str) -> tuple[str, ...]:
    return tuple(_imported(source))


def _imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
        for name in names:
            parts = name.split('.')
            # A module's parent packages are imported, too.
            for i in range(1, len(parts) + 1):
                path = '/'.join(parts[:i])
                yield from (f'{path}.py', f'{path}/__init__.py')


read()
