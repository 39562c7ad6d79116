"""Copies the metrics of runs to TensorBoard, MLflow or Weights & Biases, during training or afterwards.

    python -m deploy.track runs/NAME --to=tensorboard        runs/NAME/tensorboard/; needs `pip install tensorboardX`
    python -m deploy.track runs/* --to=mlflow --follow       to $MLFLOW_TRACKING_URI, http://localhost:5000 by default
    python -m deploy.track runs/NAME --to=wandb --follow     needs `pip install wandb`

It reads metrics.jsonl, so training needs none of them and cannot fail with them. However often a run is stopped and
continued, it is one run there, and a row is sent once: runs/NAME/track-<tracker>.json holds its identity and how many
were. After a failure the same command goes on; at most the rows that were under way are sent once more, the same.
"""

import argparse
import contextlib
import fcntl
import http.client
import importlib
import json
import os
import pathlib
import sys
import time
import types
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from errors import UserError, first_line
from train import run_folder

PROJECT = 'adaptax'  # name of the experiment or project
SECONDS = 2.0  # between two looks at the rows
ROWS = 50  # sent at once
VALUES = 1000  # that MLflow takes at once, and 100 parameters


class Row(NamedTuple):
    """A row of metrics.jsonl.

    Attributes:
        step: Steps done.
        time: In seconds since 1970, when it was written; pauses of the run do not count.
        values: {metric: value}.
    """

    step: int
    time: float
    values: dict[str, float]


class Tracker(Protocol):
    """Where the metrics of a run go."""

    identity: str  # of the run, there; any for a tracker that needs none

    def __init__(self, name: str, folder: pathlib.Path, identity: str):
        """Opens a run there by its name, or goes on with that of an identity."""

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Takes {setting: value}, before any row; once more if it failed."""

    def send(self, rows: Sequence[Row]) -> None:
        """Takes further rows."""

    def close(self, finished: bool) -> None:
        """Ends the transfer."""


class TensorBoard:
    """Event files, as TensorBoard reads them."""

    def __init__(self, name: str, folder: pathlib.Path, identity: str):
        self.identity = identity or name
        own = f'.{uuid.uuid4().hex}'  # two files begun in one second would be one
        self._writer = _library('tensorboardX').SummaryWriter(str(folder / 'tensorboard'), filename_suffix=own)

    def begin(self, settings: Mapping[str, Any]) -> None:
        self._writer.add_text('settings', '\n'.join(f'    {key} = {value}' for key, value in settings.items()))

    def send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for key, value in row.values.items():
                self._writer.add_scalar(key, value, row.step, row.time)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        del finished
        self._writer.close()


class MLflow:
    """An MLflow server, by its REST API (version 2.0)."""

    def __init__(self, name: str, folder: pathlib.Path, identity: str):
        del folder
        self._url = os.environ.get('MLFLOW_TRACKING_URI', 'http://localhost:5000').rstrip('/')
        if not self._url.startswith(('http://', 'https://')):
            raise UserError(f'MLFLOW_TRACKING_URI is the address of a server, http://..., not {self._url}.')
        address, _, self._run = identity.rpartition(' ')
        if address != self._url:  # a new run, or one that another server has
            self._run = self._create(name)
        self.identity = f'{self._url} {self._run}'

    def _create(self, name: str) -> str:
        question = urllib.parse.urlencode({'experiment_name': PROJECT})
        found = self._call(f'experiments/get-by-name?{question}', missing=True)
        experiment = found['experiment'] if found else self._call('experiments/create', {'name': PROJECT})
        values = {'experiment_id': experiment['experiment_id'], 'run_name': name, 'start_time': int(1000 * time.time())}
        return self._call('runs/create', values)['run']['info']['run_id']

    def begin(self, settings: Mapping[str, Any]) -> None:
        # Keys of MLflow are like paths, and end with no slash, as the names of folders of pictures do.
        params = [{'key': key.strip('/'), 'value': str(value)[:500]} for key, value in settings.items()]
        for i in range(0, len(params), 100):
            self._call('runs/log-batch', {'run_id': self._run, 'params': params[i : i + 100]})

    def send(self, rows: Sequence[Row]) -> None:
        metrics = [
            {'key': key, 'value': value, 'step': row.step, 'timestamp': int(1000 * row.time)}
            for row in rows
            for key, value in row.values.items()
        ]
        for i in range(0, len(metrics), VALUES):
            self._call('runs/log-batch', {'run_id': self._run, 'metrics': metrics[i : i + VALUES]})

    def close(self, finished: bool) -> None:
        if finished:
            values = {'run_id': self._run, 'status': 'FINISHED', 'end_time': int(1000 * time.time())}
            self._call('runs/update', values)

    def _call(self, path: str, values: Mapping[str, Any] | None = None, missing: bool = False) -> dict[str, Any]:
        """Returns the server's answer to a question, or to values that it is to take; {} where nothing is found."""
        token = os.environ.get('MLFLOW_TRACKING_TOKEN')
        headers = {'Content-Type': 'application/json', **({'Authorization': f'Bearer {token}'} if token else {})}
        data = None if values is None else json.dumps(values).encode()
        try:
            request = urllib.request.Request(f'{self._url}/api/2.0/mlflow/{path}', data, headers)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if missing and error.code == 404:
                return {}
            text = error.read(1000).decode(errors='replace').replace('\n', ' ')
            reason = f'{first_line(error)} {text}'.strip()
            raise UserError(f'MLflow at {self._url} refused {path}: {reason}. Nothing is lost.') from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UserError(f'MLflow at {self._url} does not answer: {first_line(error)}. Nothing is lost.') from error


class WandB:
    """Weights & Biases, by its own library, from 0.19.10 on."""

    def __init__(self, name: str, folder: pathlib.Path, identity: str):
        self.identity = identity or uuid.uuid4().hex
        wandb = _library('wandb')
        try:
            self._run = wandb.init(
                project=PROJECT, name=name, id=self.identity, resume='allow', dir=str(folder), reinit='create_new'
            )
        except Exception as error:  # of many types
            raise UserError(f'wandb: {first_line(error)}') from error
        # A step of its own would be over with its first row, and what belongs to it dropped after a pause.
        self._run.define_metric('*', step_metric='step')

    def begin(self, settings: Mapping[str, Any]) -> None:
        self._run.config.update(dict(settings), allow_val_change=True)

    def send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log({'step': row.step, **row.values})

    def close(self, finished: bool) -> None:
        del finished
        self._run.finish()


TRACKERS: dict[str, type[Tracker]] = {'tensorboard': TensorBoard, 'mlflow': MLflow, 'wandb': WandB}


class Transfer(contextlib.AbstractContextManager):
    """The transfer of one run's rows to one tracker. Its state is in track-<tracker>.json, locked by one process."""

    def __init__(self, folder: pathlib.Path, name: str):
        """Opens the run there, or goes on with it.

        Raises:
            UserError: The folder is none of a run, is in use, or the tracker cannot be used.
        """
        self._folder, self._file = folder, f'track-{name}.json'
        self.finished = False
        with contextlib.ExitStack() as stack:
            try:
                config = json.loads((folder / 'config.json').read_text())
                lock = stack.enter_context(open(folder / f'.track-{name}.lock', 'w'))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = (folder / self._file).exists() and json.loads((folder / self._file).read_text())
                state = found or {'identity': '', 'rows': 0}
                self._rows = state['rows']
                self._begun = (folder / 'config.json').stat().st_mtime  # which a run writes first, and once
            except BlockingIOError as error:
                raise UserError(f'Another process copies the metrics of {folder} to {name}.') from error
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f'{folder} is not the folder of a run, or damaged: {first_line(error)}') from error
            self._tracker = TRACKERS[name](folder.resolve().name, folder, state['identity'])
            if state['identity'] != self._tracker.identity:  # a new run there gets everything
                self._rows = 0
                self._save()
            if not self._rows:
                self._tracker.begin(run_folder.flat(config))
            self._lock = stack.pop_all()

    def update(self) -> None:
        """Sends the rows that are new.

        Raises:
            UserError: The tracker does not take them.
        """
        self.finished = (self._folder / 'result.json').exists()  # before the rows are read: then these are all
        try:
            rows = run_folder.rows(self._folder)
        except FileNotFoundError:  # it has just begun
            return
        while new := rows[self._rows : self._rows + ROWS]:
            self._tracker.send([self._row(row) for row in new])
            self._rows += len(new)
            self._save()

    def __exit__(self, *exception) -> None:
        try:
            self._tracker.close(self.finished and exception[0] is None)
        finally:
            self._lock.close()

    def _row(self, row: Mapping[str, Any]) -> Row:
        values = {key: value for key, value in row.items() if key != 'step' and value is not None}
        return Row(row['step'], self._begun + row['seconds'], values)

    def _save(self) -> None:
        state = {'identity': self._tracker.identity, 'rows': self._rows}
        run_folder.write_json(self._folder / self._file, state)


def copy(folders: Sequence[pathlib.Path], name: str, follow: bool = False) -> None:
    """Copies the metrics of runs.

    Args:
        folders: Folders of the runs. Of several, those that are none are left out.
        name: One of TRACKERS.
        follow: Go on until all runs are finished.

    Raises:
        UserError: A folder is none of a run, or the tracker cannot be used.
    """
    if len(folders) > 1:
        folders = [folder for folder in folders if (folder / 'config.json').exists()]
        if not folders:
            raise UserError('None of these is the folder of a run: they have no config.json.')
    with contextlib.ExitStack() as stack:
        transfers = [stack.enter_context(Transfer(folder, name)) for folder in folders]
        while True:
            for transfer in transfers:
                transfer.update()
            if not follow or all(transfer.finished for transfer in transfers):
                return
            time.sleep(SECONDS)


def _library(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f'{name} is not installed: pip install {name}') from error


def main(args: list[str] | None = None) -> int:
    """Runs the command line, returns the exit status."""
    parser = argparse.ArgumentParser(
        'python -m deploy.track', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', nargs='+', type=pathlib.Path, metavar='RUN', help='folder of a run')
    parser.add_argument('--to', required=True, choices=TRACKERS, help='where the metrics go')
    parser.add_argument('--follow', action='store_true', help='go on until the runs are finished')
    flags = parser.parse_args(args)
    try:
        copy(flags.runs, flags.to, flags.follow)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
