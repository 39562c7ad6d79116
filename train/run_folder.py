"""The folder of a run: config.json, labels.json, metrics.jsonl, checkpoints/ and, at the end, result.json."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from errors import UserError
from train.settings import Settings


def default(settings: Settings) -> pathlib.Path:
    """Returns runs/<methods>-<data>-<labels>-<hash of the settings>: equal settings share a folder."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    methods = '+'.join(name for name in settings.methods if len(settings.methods) == 1 or name != 'supervised')
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return pathlib.Path('runs') / f'{methods}-{settings.data.name}-{settings.data.labels}-{digest}'


class RunFolder:
    """One run's files. Every file is written whole or, metrics.jsonl, a whole line at a time."""

    def __init__(self, path: pathlib.Path, settings: Settings):
        """Makes the folder, or opens that of the same run.

        Raises UserError where it cannot be written or where it belongs to a run with other settings.
        """
        self.path = path
        wanted = json.loads(json.dumps(dataclasses.asdict(settings)))
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / 'config.json').exists():
                self._check_same(json.loads((path / 'config.json').read_text()), wanted)
            else:
                self.write_json('config.json', wanted)
            with open(path / 'metrics.jsonl', 'a'):
                pass
        except OSError as error:
            raise UserError(f'Cannot write to {path}: {error.strerror}. Choose another --workdir.') from error
        except json.JSONDecodeError as error:
            raise UserError(f'{path}/config.json is damaged. Choose another --workdir.') from error

    def _check_same(self, found: dict, wanted: dict) -> None:
        found, wanted = _flat(found), _flat(wanted)
        differing = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
        if differing:
            diff = '; '.join(f'{k} was {found.get(k)}, now {wanted.get(k)}' for k in differing)
            raise UserError(f'{self.path} holds a run with other settings ({diff}). Choose another --workdir.')

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file in one piece: a reader sees the old content or the new."""
        temporary = self.path / f'.{name}.{os.getpid()}'
        temporary.write_text(json.dumps(value, indent=2) + '\n')
        os.replace(temporary, self.path / name)

    def read_json(self, name: str) -> Any | None:
        """Returns the content of a JSON file, None where there is none."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.path / name).read_text())

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row to metrics.jsonl."""
        with open(self.path / 'metrics.jsonl', 'a') as f:
            f.write(json.dumps(row) + '\n')

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl, without a last one that a killed run left half written."""
        rows = []
        for line in (self.path / 'metrics.jsonl').read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`: a resumed run writes them again."""
        rows = [json.dumps(row) + '\n' for row in self.rows() if row['step'] <= step]
        temporary = self.path / f'.metrics.jsonl.{os.getpid()}'
        temporary.write_text(''.join(rows))
        os.replace(temporary, self.path / 'metrics.jsonl')


def _flat(tree: dict, prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return flat
