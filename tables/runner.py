"""Makes runs of a table, several cells at once, each cell in a process of its own."""

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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tables.spec import Run, Table
from tables.worker import Task
from train import provenance

LEAST_MEMORY = 2 << 30  # least memory assumed for a process, in bytes


class Stopped(Exception):
    """Raised after SIGTERM or Ctrl-C, when every run in progress is saved."""

    def __init__(self, signal_number: int):
        super().__init__('Stopped, and everything saved. The same command continues.')
        self.signal_number = signal_number


def make(
    cells: Sequence[list[Run]],
    folder: pathlib.Path,
    logs: pathlib.Path,
    tell: Callable[[Run, str | None], None],
    jobs: int = 1,
    gpus: Sequence[str] = (),
    data_dir: str | None = None,
) -> None:
    """Makes the runs of cells.

    Args:
        cells: Runs to make, a list of seeds for each cell.
        folder: Folder of the runs' folders.
        logs: Folder for the output of the processes, a file for each cell.
        tell: Called after each run with the run and the reason why it failed, None if it did not.
        jobs: Number of cells to make at once.
        gpus: CUDA's numbers of the GPUs to use, in turn.
        data_dir: Folder of prepared data sets; None for tfds's own.

    Raises:
        Stopped: After SIGTERM or Ctrl-C.
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
        except BaseException as error:  # stop the other workers: nothing reads their output any more
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
                assert process.stdin is not None  # both are pipes
                assert process.stdout is not None
                if stopped:  # since the check of the loop
                    _stop(process)
                settings = [run.settings for run in left.values()]
                folders = [folder / name for name in left]
                task = Task(settings, folders, data_dir, _cores(slot, jobs), bool(gpus))
                with contextlib.suppress(OSError, ValueError):  # the process has died or been stopped
                    pickle.dump(task, process.stdin)
                    process.stdin.flush()
                for line in process.stdout:
                    message = json.loads(line)
                    with telling:
                        tell(left.pop(message['folder']), message['failure'])
                process.wait()
            processes.discard(process)
            process.stdout.close()
            with contextlib.suppress(OSError):
                process.stdin.close()
            if left and not stopped:
                # The process died in the first run that it did not report. A new process makes the others.
                with telling:
                    tell(left.pop(next(iter(left))), f'{_death(process.returncode)}, see {path}')

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(cell, cells))
        for process in processes:  # after an error; the others have ended
            process.wait()
            assert process.stdout is not None  # a pipe
            process.stdout.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if broken:
        raise broken[0]
    if stopped:
        raise Stopped(stopped[0])


def seconds(table: Table, run: Run, measured: Mapping[tuple[str, str], list[float]]) -> float | None:
    """Estimates the time of a run: that of its cell, its column, its row, the table's estimate, or any other run.

    Args:
        table: The table of the run.
        run: The run.
        measured: {(row, column): seconds of its finished runs}.

    Returns:
        Seconds, None if nothing is known.
    """
    row = [s for (name, _), times in measured.items() if name == run.row for s in times]
    column = [s for (_, name), times in measured.items() if name == run.column for s in times]
    stated = table.columns[run.column].seconds_per_step * run.settings.steps
    everything = [s for times in measured.values() for s in times]
    for times in (measured.get((run.row, run.column)), column, row, [stated] if stated else [], everything):
        if times:
            return statistics.median(times)
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
        (sys.executable, '-P', '-m', 'tables.worker'),  # ignore modules in the working directory
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # Ctrl-C reaches it only through `stop`
    )


def _stop(process: subprocess.Popen) -> None:
    """Stops a worker, which saves: by a signal, and by the end of its input in case that it misses the signal."""
    process.send_signal(signal.SIGTERM)
    assert process.stdin is not None  # a pipe
    with contextlib.suppress(OSError, ValueError):
        process.stdin.close()


def _cores(slot: int, jobs: int) -> list[int]:
    """Returns the logical CPUs of a job: an equal share of those that this process may use, at least one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[slot::jobs] or [cores[slot % len(cores)]]


def _wait_for_memory(processes: set[subprocess.Popen]) -> None:
    """Waits, while other processes run, until the memory of the largest process so far is free."""
    peak = max(LEAST_MEMORY, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    while processes and _available() < peak:
        time.sleep(1)


def _available() -> int:
    """Returns the available memory in bytes."""
    with open('/proc/meminfo') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith('MemAvailable'))


def _death(returncode: int) -> str:
    if returncode == -signal.SIGKILL:
        return 'killed, as for too much memory (fewer --jobs need less)'
    return f'its process ended with {returncode}'
