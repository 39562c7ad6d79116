"""Makes runs in a process of its own: `python -m tables.worker`, started by tables/runner.py, never by hand.

Reads a pickled Task from standard input, stops when that is closed (its parent has died), and writes a JSON line to
standard output after each run. All other output goes to standard error.
"""

import dataclasses
import json
import os
import pathlib
import pickle
import signal
import sys
import threading
import time
import traceback

from errors import UserError, first_line
from train import startup
from train.settings import Settings


@dataclasses.dataclass(frozen=True)
class Task:
    """Runs that differ by their seed only, to be made one after the other by one process, which compiles once.

    Attributes:
        settings: The settings of each run.
        folders: The folder of each run.
        data_dir: Folder of prepared data sets; None for tfds's own.
        cores: Logical CPUs that the process may use.
        gpu: Whether it must use a GPU.
    """

    settings: list[Settings]
    folders: list[pathlib.Path]
    data_dir: str | None
    cores: list[int]
    gpu: bool


def main() -> None:
    """Makes the runs of the Task in standard input."""
    task: Task = pickle.load(sys.stdin.buffer)
    os.sched_setaffinity(0, task.cores)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    messages = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    import jax
    from absl import logging

    from train import loop, mesh

    def tell(folder: pathlib.Path, failure: str | None = None) -> None:
        print(json.dumps({'folder': folder.name, 'failure': failure}), file=messages, flush=True)

    logging.set_verbosity(logging.WARNING)
    mesh.configure()
    if task.gpu and jax.default_backend() == 'cpu':
        raise SystemExit('JAX finds no GPU: check the numbers of --gpus, and install requirements-cuda.txt.')
    try:
        for settings, folder in zip(task.settings, task.folders, strict=True):
            try:
                _run(settings, folder, task.data_dir)
            except loop.Interrupted:  # is no failure
                raise
            except UserError as error:
                tell(folder, str(error))
            except Exception as error:
                traceback.print_exc()
                tell(folder, f'{type(error).__name__}: {first_line(error)}')
            else:
                tell(folder)
    except loop.Interrupted as interruption:
        print(interruption, file=sys.stderr)
        sys.exit(128 + interruption.signal_number)


def _run(settings: Settings, folder: pathlib.Path, data_dir: str | None) -> None:
    """Makes a run. If another process is making it, waits for its result."""
    from configs import data_sets
    from train import experiment, run_folder

    if text := data_sets.assumed(settings):
        print(text)
    while True:
        try:
            experiment.run(settings, folder, data_dir)
        except run_folder.Busy:
            time.sleep(5)
        else:
            return


def _stop_with_parent() -> None:
    while os.read(0, 4096):
        pass
    while True:  # a run does not react to signals at its very end
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


if __name__ == '__main__':
    startup.use_huge_pages()
    main()
