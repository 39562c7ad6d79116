"""The folder of a run: config.json, labels.json, metrics.jsonl, checkpoints/ and, at the end, result.json."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from data.pictures import folder as pictures
from errors import UserError
from train import processes
from train.settings import Settings


def default(settings: Settings) -> pathlib.Path:
    """Returns runs/<methods>-<data>-<labels>-<hash of the settings>: equal settings share a folder."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    names = [name for name in (settings.data.name, settings.data.target) if name]
    data = '-'.join(pathlib.Path(name).name if pictures.is_folder(name) else name for name in names)
    methods = '+'.join(settings.methods)
    return pathlib.Path('runs') / f'{methods}-{data.replace("/", "_")}-{settings.data.labels}-{digest}'


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file atomically: a concurrent reader gets the old content or the new."""
    _write(path, json.dumps(value, indent=2) + '\n')


def finished(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the content of a run's result.json.

    It is None if the file is damaged or something is left to do, such as the evaluation of features.
    """
    try:
        result = json.loads((path / 'result.json').read_text(encoding='utf-8'))
        evaluated = 'transfer' in result or not result['settings']['transfer'].get('labels')
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if evaluated else None


def rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics.jsonl, without an incomplete last one of a killed run."""
    found = []
    for line in (path / 'metrics.jsonl').read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


class Busy(UserError):
    """Another process uses the folder."""


class RunFolder(contextlib.AbstractContextManager):
    """The files of a run, locked by one process. They are written atomically, metrics.jsonl line by line.

    Of the processes of a run, process 0 writes them. All make, enter and read a RunFolder together.
    """

    def __init__(self, path: pathlib.Path, settings: Settings, more: Mapping[str, Any] = MappingProxyType({})):
        """Creates the folder, or opens it if it is of the same run.

        Args:
            path: The folder.
            settings: Settings of the run.
            more: Further values that have to be equal for the run to be continued; stored in config.json.

        Raises:
            UserError: The folder cannot be written, or belongs to a run with other settings.
            Busy: Another process uses it.
        """
        self.path = path
        self._lock = contextlib.ExitStack()
        processes.on_main(lambda: self._open(json.loads(json.dumps({**dataclasses.asdict(settings), **more}))))

    def _open(self, wanted: dict) -> None:
        path = self.path
        with contextlib.ExitStack() as stack:
            try:
                path.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(open(path / '.lock', 'w'))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (present := self._read_json('config.json')) is None:
                    self.write_json('config.json', wanted)
                else:
                    self._check_same(present, wanted)
                (path / 'metrics.jsonl').touch()
            except BlockingIOError as error:
                raise Busy(f'Another process is at work in {path}. Wait for it or choose another --workdir.') from error
            except OSError as error:
                raise UserError(f'Cannot write to {path}: {error.strerror}. Choose another --workdir.') from error
            self._lock = stack.pop_all()  # held until the run ends

    def __exit__(self, *exception) -> None:
        self._lock.close()

    def _check_same(self, present: dict, wanted: dict) -> None:
        present, wanted = flat(present), flat(wanted)
        # The SHA-256 covers the revision; the numbers of devices and processes change only the rounding of sums.
        keys = sorted((present.keys() | wanted.keys()) - {'weights.revision', 'devices', 'processes'})
        differing = [key for key in keys if present.get(key) != wanted.get(key)]
        if differing and all(key.startswith('pictures.') and present.get(key) and wanted.get(key) for key in differing):
            names = ', '.join(key.removeprefix('pictures.') for key in differing)
            raise UserError(f'Pictures of {names} have changed since {self.path} was begun. Choose another --workdir.')
        if differing:
            diff = '; '.join(f'{key} was {present.get(key)}, now {wanted.get(key)}' for key in differing)
            raise UserError(f'{self.path} holds a run with other settings ({diff}). Choose another --workdir.')

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file."""
        if processes.is_main():
            write_json(self.path / name, value)

    def read_json(self, name: str) -> Any | None:
        """Returns the content of a JSON file, None if there is none.

        Raises:
            UserError: The file is damaged.
        """
        return processes.on_main(lambda: self._read_json(name))

    def _read_json(self, name: str) -> Any | None:
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as error:
            raise UserError(f'{self.path / name} is damaged: {error}. Choose another --workdir.') from error

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row to metrics.jsonl."""
        if processes.is_main():
            with open(self.path / 'metrics.jsonl', 'a') as file:
                file.write(json.dumps(row) + '\n')

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl, without an incomplete last one of a killed run."""
        return rows(self.path)

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`: a resumed run writes them again."""
        if processes.is_main():
            rows = [json.dumps(row) + '\n' for row in self.rows() if row['step'] <= step]
            _write(self.path / 'metrics.jsonl', ''.join(rows))


def _write(path: pathlib.Path, text: str) -> None:
    # Atomic, even if the process is killed here.
    temporary = path.with_name(f'.{path.name}.new')
    temporary.write_text(text)
    os.replace(temporary, path)


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Returns {'outer.inner': value} of nested settings."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return values
