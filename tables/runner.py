"""Makes the runs of a table that are not there yet, several at once, each cell's in a process of its own."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import pickle
import queue
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tables import record
from tables.spec import Run, Table
from tables.worker import Task
from train import provenance

LEAST_MEMORY = 2 << 30  # bytes that a process is taken to need at least


class Stopped(Exception):
    """SIGTERM or Ctrl-C: every run that was being made is saved."""

    def __init__(self, signal_number: int):
        super().__init__('Stopped, and everything saved. The same command continues.')
        self.signal_number = signal_number


def unfinished(runs: Iterable[Run], folder: pathlib.Path, before: Iterable[tuple[str, str, str]]) -> list[list[Run]]:
    """Returns what is left to be made, once each, the seeds of a cell together.

    folder: of the runs' folders. before: (row, column, run) of results that an earlier table.json has.
    """
    before, cells, seen = set(before), {}, set()
    for run in runs:
        if run.name in seen or (run.row, run.column, run.name) in before or record.finished(folder / run.name):
            continue
        seen.add(run.name)
        cells.setdefault((run.row, run.column), []).append(run)
    return list(cells.values())


def make(
    cells: Sequence[list[Run]],
    folder: pathlib.Path,
    logs: pathlib.Path,
    tell: Callable[[Run, str | None], None],
    jobs: int = 1,
    gpus: Sequence[str] = (),
    together: bool | None = None,
    data_dir: str | None = None,
) -> None:
    """Makes the runs of cells, `jobs` cells at a time, and calls tell(run, why it failed) after each run.

    folder: of the runs' folders. logs: folder for what the processes print, a file for each cell.
    gpus: CUDA's numbers of those to use, in turn. together: see Task.
    Raises Stopped after SIGTERM or Ctrl-C.
    """
    processes: set[subprocess.Popen] = set()
    stopped: list[int] = []
    broken: list[BaseException] = []
    starting, telling = threading.Lock(), threading.Lock()
    slots: queue.Queue[int] = queue.Queue()
    for slot in range(jobs):
        slots.put(slot)
    logs.mkdir(parents=True, exist_ok=True)

    def stop(number: int, frame: Any = None) -> None:
        del frame
        stopped.append(number)
        for process in list(processes):
            _stop(process)

    def cell(runs: list[Run]) -> None:
        slot = slots.get()
        try:
            _cell({run.name: run for run in runs}, slot)
        except BaseException as error:  # whatever it is, the others are not to go on without anybody who listens
            broken.append(error)
            stop(signal.SIGTERM)
        finally:
            slots.put(slot)

    def _cell(left: dict[str, Run], slot: int) -> None:
        path = logs / f'{next(iter(left))}.txt'
        while left and not stopped:
            with open(path, 'a') as log:
                with starting:
                    _wait_for_memory(processes)
                    process = _start(slot, jobs, gpus, log)
                    processes.add(process)
                if stopped:  # since it was asked
                    _stop(process)
                settings = [run.settings for run in left.values()]
                folders = [folder / name for name in left]
                task = Task(settings, folders, data_dir, together, _cores(slot, jobs), bool(gpus))
                with contextlib.suppress(OSError, ValueError):  # it has died or been stopped
                    pickle.dump(task, process.stdin)
                    process.stdin.flush()
                for line in process.stdout:
                    message = json.loads(line)
                    with telling:
                        tell(left.pop(message['folder']), message['failure'])
                process.wait()
            processes.discard(process)
            with contextlib.suppress(OSError):
                process.stdin.close()
            if left and not stopped:
                # It died over the first that it has not told of. The others are not to suffer for it.
                with telling:
                    tell(left.pop(next(iter(left))), f'{_death(process.returncode)}, see {path}')

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(cell, cells))
        for process in processes:  # where something broke; the others have been waited for
            process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if broken:
        raise broken[0]
    if stopped:
        raise Stopped(stopped[0])


def seconds(table: Table, run: Run, known: dict[tuple[str, str], list[float]]) -> float | None:
    """Returns how long a run is estimated to take; None where nothing is known.

    known: {(row, column): seconds of the runs that have been made}.
    """
    of_row = [s for (row, _), each in known.items() if row == run.row for s in each]
    of_column = [s for (_, column), each in known.items() if column == run.column for s in each]
    stated = table.columns[run.column].seconds_per_step * run.settings.steps
    every = [s for each in known.values() for s in each]
    for found in (known.get((run.row, run.column)), of_column, of_row, [stated] if stated else [], every):
        if found:
            return statistics.median(found)
    return None


def _start(slot: int, jobs: int, gpus: Sequence[str], log) -> subprocess.Popen:
    environment = dict(os.environ)
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (str(provenance.ROOT), os.environ.get('PYTHONPATH'))))
    if gpus:
        environment['CUDA_VISIBLE_DEVICES'] = gpus[slot % len(gpus)]
    sharing = -(-jobs // max(1, len(gpus)))
    if sharing > 1 and not environment.keys() & {'XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_CLIENT_MEM_FRACTION'}:
        environment['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.9 / sharing:.2f}'
    return subprocess.Popen(
        (sys.executable, '-P', '-m', 'tables.worker'),  # not what lies in the user's folder
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # Ctrl-C is passed on once, by `stop`
    )


def _stop(process: subprocess.Popen) -> None:
    """Has a worker save and end: by the signal, and by the end of its input for one that comes at a bad moment."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(OSError, ValueError):
        process.stdin.close()


def _cores(slot: int, jobs: int) -> list[int]:
    """Returns the logical CPUs of a job: a share of those that this process may use, and at least one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[slot::jobs] or [cores[slot % len(cores)]]


def _wait_for_memory(processes: set[subprocess.Popen]) -> None:
    """Waits, while others are at work, until there is room for the largest process seen so far."""
    peak = max(LEAST_MEMORY, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    while processes and _available() < peak:
        time.sleep(1)


def _available() -> int:
    """Bytes of memory that are free."""
    with open('/proc/meminfo') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith('MemAvailable'))


def _death(returncode: int) -> str:
    if returncode == -signal.SIGKILL:
        return 'killed, as for too much memory (fewer --jobs need less)'
    return f'its process ended with {returncode}'
