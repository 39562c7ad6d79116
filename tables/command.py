"""What main.py does with the config of a table: make its runs and write its pages, list them, or check them."""

import collections
import json
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict

from errors import UserError
from tables import record, render, runner, spec
from train import provenance

RUNS = pathlib.Path('runs')


class Command:
    """A table in a folder of its own, which gets table.md, .tex, .csv, .json and index.html."""

    def __init__(self, config: ConfigDict, name: str, command: str, workdir: str | None):
        """command: that the user typed. Raises UserError for a mistake in the config."""
        self.table = spec.from_config(config)
        self.runs = list(spec.expand(self.table))
        self.named = {'name': name, 'command': command}
        self.folder = pathlib.Path(workdir) if workdir else RUNS / 'tables' / name
        self._earlier = self._read()

    def make(self, jobs: int, gpus: list[str], together: bool | None, data_dir: str | None) -> str:
        """Makes the runs that are missing and writes the pages. Returns the table for people to read.

        Raises runner.Stopped after SIGTERM or Ctrl-C, when the pages are written, and UserError where a run failed.
        """
        present = {(run.row, run.column, run.name) for run in self.runs}
        lost = [key for key in self._earlier if key not in present and not record.finished(RUNS / key[2])]
        if lost:
            raise UserError(
                f'{self.folder} holds {len(lost)} results that this table has not, such as {lost[0][2]}, and whose run '
                'folders are gone: they would be lost. Name another --workdir.'
            )
        cells = runner.unfinished(self.runs, RUNS, self._earlier)
        todo, failures = sum(map(len, cells)), {}
        start, done = time.monotonic(), 0

        def tell(run: spec.Run, failure: str | None) -> None:
            nonlocal done
            done += 1
            text = failure
            if failure is None:
                value = record.of_folder(self.table, run, RUNS / run.name)['values'][self.table.shown]
                text = 'finished' if value is None else f'{100 * value:.2f} %'
            else:
                failures[run.name] = failure
            left = (time.monotonic() - start) / done * (todo - done)
            print(
                f'[{done}/{todo}] {run.row}, {run.column}, seed {run.settings.seed}: {text}; {duration(left)} left',
                flush=True,
            )

        print(f'{len({run.name for run in self.runs})} runs, {todo} of them to be made -> {RUNS.resolve()}')
        try:
            if cells:
                logs = self.folder / 'logs'
                runner.make(cells, RUNS.resolve(), logs, tell, jobs, gpus, together, data_dir)
        finally:
            found = self.named | record.collect(self.table, self.runs, RUNS, self._earlier, failures)
            render.write(self.folder, found)
        if failed := {run['folder'] for cell in found['cells'] for run in cell['runs'] if 'failure' in run}:
            raise UserError(f'{len(failed)} of {todo} runs failed; the table in {self.folder} says why.')
        pages = 'table.md, table.tex, table.csv, table.json and index.html'
        return '\n'.join([*render.main_table(found), f'Everything is in {self.folder}/: {pages}'])

    def listing(self, jobs: int) -> str:
        """Returns what would run, with the state of every cell and an estimate of the time."""
        cells: dict[tuple[str, str], list[spec.Run]] = {}
        known: dict[tuple[str, str], list[float]] = {}
        entries = {}
        for run in self.runs:
            key = (run.row, run.column)
            cells.setdefault(key, []).append(run)
            entry = record.of_folder(self.table, run, RUNS / run.name) or self._earlier.get((*key, run.name))
            if entry:
                entries[run.name] = entry
                known.setdefault(key, []).append(entry['seconds'])
        width = [max(len(key[i]) for key in cells) for i in (0, 1)]
        lines = []
        left: dict[str, float | None] = {}  # seconds of each run
        for (row, column), runs in cells.items():
            seconds = runner.seconds(self.table, runs[0], known)
            states = collections.Counter()
            for run in runs:
                step = last_checkpoint(RUNS / run.name) or 0
                if run.name in entries:
                    state = 'finished' if (RUNS / run.name).exists() else 'recorded in table.json'
                else:
                    state = f'at step {step} of {run.settings.steps}' if step else 'to be made'
                    left.setdefault(run.name, None if seconds is None else seconds * (1 - step / run.settings.steps))
                states[state] += 1
            each = 'unknown' if seconds is None else duration(seconds)
            text = ', '.join(f'{count} {state}' for state, count in states.items())
            lines.append(f'{row:{width[0]}}  {column:{width[1]}}  {each:>8} a run   {text}')
        total = duration(sum(filter(None, left.values())) / jobs)
        lines.append(f'{len(left)} runs to make or to go on with: about {total} with --jobs={jobs}')
        if None in left.values():
            lines[-1] = f'{len(left)} runs to make or to go on with; how long they take is not known yet'
        if left and self.table.cost:
            lines.append(f'Where none has been measured, by an estimate: {self.table.cost}')
        return '\n'.join(lines)

    def check(self) -> tuple[bool, str]:
        """Returns whether all rows were made by the present code, and a text that says which were not.

        Raises UserError where there is no table.
        """
        table_json = self._table_json()
        if table_json is None:
            raise UserError(f'{self.folder} holds no table.json: make the table first, or name its --workdir.')
        present = {(run.row, run.column, run.name) for run in self.runs}
        stale: dict[str, list[str]] = {}
        why: dict[str, set[str]] = {}
        made = record.known(table_json)
        for cell in table_json['cells']:
            methods, row = cell['settings']['methods'], cell['row']
            now = provenance.digest(methods)
            for run in cell['runs']:
                other = (row, cell['column'], run['folder']) not in present
                if 'failure' not in run and (other or run['sources'] != now):
                    stale.setdefault(row, []).append(run['folder'])
                    changed = provenance.changed(methods, run['commit'])
                    why.setdefault(row, set()).update(['settings'] if other else changed or ['code unknown to git'])
        lines = [
            f'{row}: {len(runs)} runs are stale; changed: {", ".join(sorted(why[row]))}' for row, runs in stale.items()
        ]
        count = sum(map(len, stale.values()))
        lines.append(
            f'{len(made) - count} of {len(made)} results in {self.folder} are of the present code and settings.'
        )
        return bool(made) and not stale, '\n'.join(lines)

    def _read(self) -> dict:
        table_json = self._table_json()
        try:
            return {} if table_json is None else record.known(table_json)
        except (KeyError, TypeError) as error:
            raise UserError(f'{self.folder}/table.json is none of a table. Name another --workdir.') from error

    def _table_json(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / 'table.json').read_text(encoding='utf-8'))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f'{self.folder}/table.json is damaged: {error}. Remove it or name another --workdir.'
            ) from error


def last_checkpoint(folder: pathlib.Path) -> int | None:
    """Returns the step of a run's newest checkpoint, None where it has none."""
    return max((int(p.name) for p in (folder / 'checkpoints').glob('[0-9]*') if p.name.isdigit()), default=None)


def duration(seconds: float) -> str:
    """Returns a time for people to read."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
