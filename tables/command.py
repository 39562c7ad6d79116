"""The commands for the config of a table: make its runs and write its pages, list them, or check them."""

import collections
import itertools
import json
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict

from errors import UserError
from tables import record, render, runner, slurm, spec
from train import provenance

RUNS = pathlib.Path('runs')


class Command:
    """A table and its folder, which holds its pages (tables/render.py)."""

    def __init__(self, config: ConfigDict, name: str, command: str, workdir: str | None, renew: bool = False):
        """Reads the config of the table, and the results recorded in its folder.

        Args:
            config: The config.
            name: Name of the table.
            command: The command that the user typed.
            workdir: The folder of the table; None for runs/tables/<name>.
            renew: Repeat runs whose recorded results are from other code or settings than the present ones.

        Raises:
            UserError: The config has a mistake, or the folder holds something else.
        """
        self.table = spec.from_config(config)
        self.runs = list(spec.expand(self.table))
        self.folder = pathlib.Path(workdir) if workdir else RUNS / 'tables' / name
        self._named = {'name': name, 'command': command}
        self._renew = renew
        self._earlier = self._read()
        try:
            self._recorded = record.known(self._earlier) if self._earlier is not None else {}
        except (KeyError, TypeError) as error:
            raise UserError(f'{self.folder}/table.json is not a valid table. Name another --workdir.') from error

    def make(self, jobs: int, gpus: list[str], data_dir: str | None) -> str:
        """Makes the runs that are missing and writes the pages.

        Args:
            jobs: Number of cells to make at once.
            gpus: CUDA's numbers of the GPUs to use.
            data_dir: Folder of prepared data sets; None for tfds's own.

        Returns:
            The table in Markdown.

        Raises:
            runner.Stopped: After SIGTERM or Ctrl-C, when the pages are written.
            UserError: A run failed, or recorded results would be lost.
        """
        self._check_nothing_is_lost()
        cells = self.unfinished()
        todo = sum(map(len, cells))
        failures: dict[str, str] = {}
        start, done = time.monotonic(), 0

        def tell(run: spec.Run, failure: str | None) -> None:
            nonlocal done
            done += 1
            if failure is None:
                entry = record.of_folder(self.table, run, RUNS / run.name)
                value = entry['values'][self.table.shown] if entry else None
                text = 'finished' if value is None else f'{100 * value:.2f} %'
            else:
                text = failures[run.name] = failure
            left = (time.monotonic() - start) / done * (todo - done)
            print(
                f'[{done}/{todo}] {run.row}, {run.column}, seed {run.settings.seed}: {text}; {duration(left)} left',
                flush=True,
            )

        print(f'{len({run.name for run in self.runs})} runs, {todo} of them to be made -> {RUNS.resolve()}')
        try:
            if cells:
                for run in itertools.chain(*cells):
                    _put_aside(RUNS / run.name)
                runner.make(cells, RUNS.resolve(), self.folder / 'logs', tell, jobs, gpus, data_dir)
        finally:
            table = self._write(failures)
        if failed := {run['folder'] for cell in table['cells'] for run in cell['runs'] if 'failure' in run}:
            raise UserError(f'{len(failed)} of {todo} runs failed; the table in {self.folder} says why.')
        lines = render.main_table(table)
        stale = {run.name for run in self.runs if (entry := self._entry(run)) and record.is_stale(run, entry)}
        if stale:
            lines.append(f'{len(stale)} results are of other code than the present; --renew makes them again.')
        return '\n'.join([*lines, f'Everything is in {self.folder}/: {", ".join(render.PAGES)}'])

    def unfinished(self) -> list[list[spec.Run]]:
        """Returns the runs to make as lists of the seeds of a cell; a run that two cells share occurs once."""
        cells: dict[tuple[str, str], list[spec.Run]] = {}
        names = set()
        for run in self.runs:
            entry = self._entry(run)
            if run.name not in names and (entry is None or (self._renew and record.is_stale(run, entry))):
                names.add(run.name)
                cells.setdefault((run.row, run.column), []).append(run)
        return list(cells.values())

    def slurm(self, data_dir: str | None) -> str:
        """Returns the script of a SLURM array job that makes the runs that are missing (tables/slurm.py).

        Args:
            data_dir: Folder of prepared data sets; None for tfds's own.

        Raises:
            UserError: There are none, or finished ones are to be repeated.
        """
        if self._renew:
            raise UserError('--slurm makes runs that are missing, and --renew repeats finished ones: leave one out.')
        runs = list(itertools.chain(*self.unfinished()))
        return slurm.script(self.table, runs, self._named['name'], data_dir)

    def listing(self, jobs: int) -> str:
        """Returns a list of the runs to make, with the state of every cell and an estimate of the time."""
        todo = {run.name for cell in self.unfinished() for run in cell}
        cells: dict[tuple[str, str], list[spec.Run]] = {}
        measured: dict[tuple[str, str], list[float]] = {}
        for run in self.runs:
            cells.setdefault((run.row, run.column), []).append(run)
            if entry := self._entry(run):
                measured.setdefault((run.row, run.column), []).append(entry['seconds'])
        width = [max(len(key[i]) for key in cells) for i in (0, 1)]
        lines = []
        left: dict[str, float | None] = {}  # seconds of each run
        for (row, column), runs in cells.items():
            seconds = runner.seconds(self.table, runs[0], measured)
            states: collections.Counter[str] = collections.Counter()
            for run in runs:
                step = 0
                if entry := self._entry(run):
                    state = 'finished' if (RUNS / run.name).exists() else 'recorded in table.json'
                    state += ' by other code' if record.is_stale(run, entry) else ''
                else:
                    step = last_checkpoint(RUNS / run.name) or 0
                    state = f'at step {step} of {run.settings.steps}' if step else 'to be made'
                if run.name in todo:
                    left.setdefault(run.name, None if seconds is None else seconds * (1 - step / run.settings.steps))
                states[state] += 1
            time_of_run = 'unknown' if seconds is None else duration(seconds)
            text = ', '.join(f'{count} {state}' for state, count in states.items())
            lines.append(f'{row:{width[0]}}  {column:{width[1]}}  {time_of_run:>8} a run   {text}')
        total = duration(sum(filter(None, left.values())) / jobs)
        lines.append(f'{len(left)} runs to make or to go on with: about {total} with --jobs={jobs}')
        if None in left.values():
            lines[-1] = f'{len(left)} runs to make or to go on with; how long they take is not known yet'
        if left and self.table.cost:
            lines.append(f'Where none has been measured, by an estimate: {self.table.cost}')
        return '\n'.join(lines)

    def check(self) -> tuple[bool, str]:
        """Returns whether all results are of the present code and settings, and a text that lists those that are not.

        Raises:
            UserError: There is no table.
        """
        if self._earlier is None:
            raise UserError(f'{self.folder} holds no table.json: make the table first, or name its --workdir.')
        runs = {_key(run): run for run in self.runs}
        stale: dict[str, list[str]] = {}
        why: dict[str, set[str]] = {}
        for key, entry in self._recorded.items():
            row, _, name = key
            if key not in runs:
                changed = ['settings']
            elif record.is_stale(runs[key], entry):
                methods = record.methods_of(runs[key])
                changed = provenance.changed(methods, entry['commit']) or ['code unknown to git']
            else:
                continue
            stale.setdefault(row, []).append(name)
            why.setdefault(row, set()).update(changed)
        lines = [
            f'{row}: {len(names)} runs are stale; changed: {", ".join(sorted(why[row]))}'
            for row, names in stale.items()
        ]
        total, count = len(self._recorded), sum(map(len, stale.values()))
        lines.append(f'{total - count} of {total} results in {self.folder} are of the present code and settings.')
        if stale:
            lines.append('The same command with --renew instead of --check makes the others again.')
        return total > 0 and not stale, '\n'.join(lines)

    def _entry(self, run: spec.Run) -> dict[str, Any] | None:
        return record.choose(self.table, run, RUNS, self._recorded, self._renew)

    def _check_nothing_is_lost(self) -> None:
        """Checks that the new table keeps all recorded results whose run folders are gone.

        With --renew a result of other settings may be dropped, since the run is repeated with the present ones.

        Raises:
            UserError: A result would be lost.
        """
        present = {_key(run) for run in self.runs}
        made_again = {(run.row, run.column, run.settings.seed) for run in self.runs} if self._renew else set()
        lost = [
            key[2]
            for key, entry in self._recorded.items()
            if key not in present and (*key[:2], entry['seed']) not in made_again and not record.finished(RUNS / key[2])
        ]
        if lost:
            raise UserError(
                f'{self.folder} holds {len(lost)} results that are not of this table, such as {lost[0]}, and whose '
                'run folders are gone: they would be lost. Name another --workdir, or repeat those whose settings have '
                'changed with --renew.'
            )

    def _write(self, failures: dict[str, str]) -> dict[str, Any]:
        """Writes the pages and returns the content of table.json; its commit changes only if other content does."""
        table = self._named | record.collect(self.table, self.runs, RUNS, self._recorded, failures, self._renew)
        if self._earlier is not None:
            same_commit = {**table, 'commit': self._earlier['commit']}
            table = same_commit if json.loads(json.dumps(same_commit)) == self._earlier else table
        render.write(self.folder, table)
        return table

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / 'table.json').read_text(encoding='utf-8'))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f'{self.folder}/table.json is damaged: {error}. Remove it or name another --workdir.'
            ) from error


def _key(run: spec.Run) -> record.RunKey:
    return run.row, run.column, run.name


def _put_aside(path: pathlib.Path) -> None:
    """Moves the folder of a finished run, which is to be repeated, to runs/stale."""
    if record.finished(path) is not None:
        stale = path.parent / 'stale'
        stale.mkdir(exist_ok=True)
        path.rename(next(p for i in itertools.count(1) if not (p := stale / f'{path.name}-{i}').exists()))


def last_checkpoint(folder: pathlib.Path) -> int | None:
    """Returns the step of a run's newest checkpoint, None if there is none."""
    return max((int(p.name) for p in (folder / 'checkpoints').glob('[0-9]*') if p.name.isdigit()), default=None)


def duration(seconds: float) -> str:
    """Returns a time as text, in s, min or h."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
