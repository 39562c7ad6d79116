"""Which code a run came from: the git commit, and a hash of the files that its numbers depend on."""

import ast
import hashlib
import io
import pathlib
import subprocess
import tokenize
from collections.abc import Iterable, Iterator

ROOT = pathlib.Path(__file__).parents[1]


def commit() -> str | None:
    """Returns the commit the code is at, '+' appended where files differ from it; None outside a git checkout."""
    head = _git('rev-parse', 'HEAD')
    return None if head is None else head.strip() + '+' * bool(_git('status', '--porcelain', '-uno'))


def files(methods: Iterable[str]) -> list[str]:
    """Returns the files that a run of these methods imports of ours, relative to the repository, sorted.

    Methods that it does not name are not among them, since they are imported by name.
    """
    found, open_ = set(), [ROOT / 'train' / 'loop.py', *(ROOT / 'methods' / f'{name}.py' for name in methods)]
    while open_:
        path = open_.pop()
        if path not in found:
            found.add(path)
            open_ += _imports(path)
    return sorted(str(path.relative_to(ROOT)) for path in found)


def digest(methods: Iterable[str]) -> str:
    """Returns a hash of the code in `files`; comments, docstrings and empty lines do not count."""
    found = hashlib.sha256()
    for name in files(methods):
        found.update(f'{name}\n{code((ROOT / name).read_text())}\n'.encode())
    return found.hexdigest()[:12]


def changed(methods: Iterable[str], since: str | None) -> list[str]:
    """Returns those of `files` whose code is not what it was at a commit; none where git does not know it."""
    if since is None or _git('cat-file', '-e', since.rstrip('+')) is None:
        return []
    old = {name: _git('show', f'{since.rstrip("+")}:{name}') for name in files(methods)}
    return [name for name, source in old.items() if source is None or code(source) != code((ROOT / name).read_text())]


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
            lines[first.lineno - 1 : first.end_lineno] = [''] * (first.end_lineno - first.lineno + 1)
    return '\n'.join(line.rstrip() for line in lines if line.strip())


def _git(*command: str) -> str | None:
    """Returns what git prints, None where it cannot."""
    try:
        return subprocess.run(('git', '-C', str(ROOT), *command), capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _imports(path: pathlib.Path) -> Iterator[pathlib.Path]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
        for name in names:
            parts = name.split('.')
            # Every package on the way is imported, too.
            for i in range(1, len(parts) + 1):
                at = ROOT.joinpath(*parts[:i])
                yield from (file for file in (at.with_suffix('.py'), at / '__init__.py') if file.is_file())
