"""Copies the metrics of runs to TensorBoard, MLflow or Weights & Biases, during training or afterwards.

    python -m deploy.track runs/NAME --to=tensorboard        runs/NAME/tensorboard/; needs `pip install tensorboardX`
    python -m deploy.track runs/* --to=mlflow --follow       to $MLFLOW_TRACKING_URI, http://localhost:5000 by default
    python -m deploy.track runs/NAME --to=wandb --follow     needs `pip install wandb`

It reads metrics.jsonl, so training needs none of them and cannot fail with them. However often a run is stopped and
continued, it is one run there, and no row is sent twice: runs/NAME/track.json holds its identity and how many were.
"""

import argparse
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
from typing import Any, Protocol

from errors import UserError, first_line
from train import run_folder

PROJECT = 'adaptax'  # name of the experiment or project
SECONDS = 2.0  # between two looks at the rows
BATCH = 1000  # MLflow takes so many values at once, and 100 parameters

Row = tuple[int, dict[str, float]]  # step and its values


class Tracker(Protocol):
    """Where the metrics of a run go."""

    identity: str  # of the run, there

    def __init__(self, name: str, folder: pathlib.Path, settings: Mapping[str, Any], identity: str):
        """Opens a run there by its name and {setting: value}, or goes on with that of an identity."""

    def send(self, rows: Sequence[Row]) -> None:
        """Takes further rows."""

    def close(self, finished: bool) -> None:
        """Ends the transfer."""


class TensorBoard:
    """Event files, as TensorBoard reads them."""

    def __init__(self, name: str, folder: pathlib.Path, settings: Mapping[str, Any], identity: str):
        del settings
        self.identity = identity or name
        own = f'.{uuid.uuid4().hex}'  # two files begun in one second would be one
        self._writer = _library('tensorboardX').SummaryWriter(str(folder / 'tensorboard'), filename_suffix=own)

    def send(self, rows: Sequence[Row]) -> None:
        for step, values in rows:
            for key, value in values.items():
                self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        del finished
        self._writer.close()


class MLflow:
    """An MLflow server, by its REST API (version 2.0)."""

    def __init__(self, name: str, folder: pathlib.Path, settings: Mapping[str, Any], identity: str):
        del folder
        self._url = os.environ.get('MLFLOW_TRACKING_URI', 'http://localhost:5000').rstrip('/')
        if not self._url.startswith(('http://', 'https://')):
            raise UserError(f'MLFLOW_TRACKING_URI is the address of a server, http://..., not {self._url}.')
        self.identity = identity or self._create(name, settings)

    def _create(self, name: str, settings: Mapping[str, Any]) -> str:
        question = urllib.parse.urlencode({'experiment_name': PROJECT})
        found = self._call(f'experiments/get-by-name?{question}', missing=True)
        experiment = found['experiment'] if found else self._call('experiments/create', {'name': PROJECT})
        values = {'experiment_id': experiment['experiment_id'], 'run_name': name, 'start_time': _now()}
        run = self._call('runs/create', values)['run']['info']['run_id']
        params = [{'key': key, 'value': str(value)[:500]} for key, value in settings.items()]
        for i in range(0, len(params), 100):
            self._call('runs/log-batch', {'run_id': run, 'params': params[i : i + 100]})
        return run

    def send(self, rows: Sequence[Row]) -> None:
        metrics = [
            {'key': key, 'value': value, 'step': step, 'timestamp': _now()}
            for step, values in rows
            for key, value in values.items()
        ]
        for i in range(0, len(metrics), BATCH):
            self._call('runs/log-batch', {'run_id': self.identity, 'metrics': metrics[i : i + BATCH]})

    def close(self, finished: bool) -> None:
        if finished:
            values = {'run_id': self.identity, 'status': 'FINISHED', 'end_time': _now()}
            self._call('runs/update', values)

    def _call(self, path: str, values: Mapping[str, Any] | None = None, missing: bool = False) -> dict[str, Any]:
        """Returns the server's answer to a question, or to values that it is to take; {} where nothing is found."""
        token = os.environ.get('MLFLOW_TRACKING_TOKEN')
        headers = {'Content-Type': 'application/json', **({'Authorization': f'Bearer {token}'} if token else {})}
        data = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(f'{self._url}/api/2.0/mlflow/{path}', data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if missing and error.code == 404:
                return {}
            raise UserError(f'MLflow at {self._url} refused {path}: {first_line(error)}. Nothing is lost.') from error
        except (OSError, ValueError) as error:
            raise UserError(f'MLflow at {self._url} does not answer: {first_line(error)}. Nothing is lost.') from error


class WandB:
    """Weights & Biases, by its own library."""

    def __init__(self, name: str, folder: pathlib.Path, settings: Mapping[str, Any], identity: str):
        self.identity = identity or uuid.uuid4().hex
        self._run = _library('wandb').init(
            project=PROJECT, name=name, id=self.identity, resume='allow', config=dict(settings), dir=str(folder)
        )

    def send(self, rows: Sequence[Row]) -> None:
        for step, values in rows:
            self._run.log(values, step=step)

    def close(self, finished: bool) -> None:
        del finished
        self._run.finish()


TRACKERS: dict[str, type[Tracker]] = {'tensorboard': TensorBoard, 'mlflow': MLflow, 'wandb': WandB}


class Transfer:
    """The transfer of one run's rows to one tracker."""

    def __init__(self, folder: pathlib.Path, name: str):
        """Opens the run there, or goes on with it.

        Raises:
            UserError: The folder is none of a run, or the tracker cannot be used.
        """
        self._folder, self._name = folder, name
        try:
            config = json.loads((folder / 'config.json').read_text())
        except (OSError, ValueError) as error:
            raise UserError(f'{folder} is not the folder of a run: no config.json that can be read.') from error
        state = self._states().get(name, {'identity': '', 'rows': 0})
        self._rows = state['rows']
        self._tracker = TRACKERS[name](folder.resolve().name, folder, run_folder.flat(config), state['identity'])
        self._save()

    def update(self) -> bool:
        """Sends the rows that are new, and returns whether the run is finished."""
        finished = (self._folder / 'result.json').exists()  # before the rows are read: then these are all
        rows = run_folder.rows(self._folder)
        if new := rows[self._rows :]:
            self._tracker.send([(row['step'], _values(row)) for row in new])
            self._rows = len(rows)
            self._save()
        return finished

    def close(self, finished: bool) -> None:
        """Ends the transfer."""
        self._tracker.close(finished)

    def _states(self) -> dict[str, Any]:
        try:
            return json.loads((self._folder / 'track.json').read_text())
        except FileNotFoundError:
            return {}

    def _save(self) -> None:
        state = {'identity': self._tracker.identity, 'rows': self._rows}
        run_folder.write_json(self._folder / 'track.json', {**self._states(), self._name: state})


def copy(folders: Sequence[pathlib.Path], name: str, follow: bool = False) -> None:
    """Copies the metrics of runs.

    Args:
        folders: Folders of the runs.
        name: One of TRACKERS.
        follow: Go on until all runs are finished.

    Raises:
        UserError: A folder is none of a run, or the tracker cannot be used.
    """
    transfers = [Transfer(folder, name) for folder in folders]
    finished = [False] * len(transfers)
    try:
        while True:
            finished = [transfer.update() for transfer in transfers]
            if all(finished) or not follow:
                return
            time.sleep(SECONDS)
    finally:
        for transfer, done in zip(transfers, finished, strict=True):
            transfer.close(done)


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key != 'step' and value is not None}


def _now() -> int:
    return int(1000 * time.time())  # milliseconds


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
