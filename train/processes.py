"""The processes of a run, on one host or several. The only place that starts JAX's distributed service.

In a run of one process nothing is started, and every function here does what it would do without the others.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax._src.clusters import ClusterEnv  # JAX has no public way to ask how many processes a cluster has started
from jax.experimental import multihost_utils

from errors import UserError, first_line
from train import failure
from train import mesh as mesh_lib

CLUSTERS = ('slurm', 'ompi', 'gcetpu', 'gketpu')  # JAX's names of those that start a run without flags
HEARTBEAT_SECONDS = 30  # without a sign of life, after which a process counts as dead
SHUTDOWN_SECONDS = 20  # that the first process to end waits for the others

_readers: list[subprocess.Popen] = []  # the process of train/failure.py, while there are other processes


@contextlib.contextmanager
def joined(coordinator: str | None, count: int | None, index: int | None) -> Iterator[None]:
    """Joins the processes of a run, if there are several, and leaves them at the end. Call it before JAX is used.

    Process 0 alone prints and warns. If another process ends, so does this one, with one line and a code that is not 0.

    Args:
        coordinator: HOST:PORT of process 0, on a free port; None for $JAX_COORDINATOR_ADDRESS.
        count: Number of processes.
        index: Number of this process, from 0. All three are None where a cluster (CLUSTERS) has started the processes,
            or where there is one process only.

    Raises:
        UserError: The numbers are incomplete or contradict each other, or a process cannot be reached.
    """
    found = _found(coordinator, count, index)
    if found is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_lost_in_one_line())
        jax.config.update('jax_enable_preemption_service', False)  # it would swallow SIGTERM before the loop begins
        try:
            jax.distributed.initialize(
                **found, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS
            )
        except Exception as error:  # RuntimeError, ValueError or JaxRuntimeError
            raise UserError(f'The processes do not find each other: {first_line(error)}') from error
        nowhere = stack.enter_context(open(os.devnull, 'w'))
        try:
            if not is_main():
                logging.set_verbosity(logging.FATAL)
                sys.stdout = nowhere  # _lost_in_one_line sets it back
            with watched():
                _check_devices()
                multihost_utils.sync_global_devices('joined')  # now: for the first one gloo waits 30 s only
                yield
        except KeyboardInterrupt:  # asked for twice, or before the loop: the others notice
            os._exit(130)
        except Exception as error:  # said now: if the others do not fail, too, JAX ends this process below
            if isinstance(error, UserError):
                print(f'error: {error}', file=sys.stderr)
            else:
                traceback.print_exc()
            sys.stderr.flush()
            os.dup2(nowhere.fileno(), 2)
            sys.exit(1)
        finally:
            with contextlib.suppress(Exception):  # another process has ended before
                jax.distributed.shutdown()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Ends this process, with one line, where another process being gone makes its block fail.

    At once: whatever a block around this one does at its end may wait for the other process.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:  # of any collective; a JaxRuntimeError is one, too
        if _readers and re.search(r'\b(gloo|nccl|coordination|barrier)', str(error), re.IGNORECASE):
            os.write(2, f'{failure.LINE} ({first_line(error)[:200]})\n'.encode())
            os.close(2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _readers[0].wait(timeout=10)
            os._exit(1)
        raise


def is_main() -> bool:
    """Returns whether this is process 0, which alone writes and prints."""
    return jax.process_index() == 0


def on_main(function: Callable[[], Any]) -> Any:
    """Calls a function in process 0 only. All processes call this, and none returns before process 0 has.

    Args:
        function: The function, which must not call this one. What it returns can be written as JSON.

    Returns:
        What it returned, in every process.

    Raises:
        UserError: It raised one, in every process.
    """
    if jax.process_count() == 1:
        return function()
    answer = {}
    if is_main():
        try:
            answer['value'] = function()
        except UserError as error:
            answer['error'] = str(error)
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(text if is_main() else np.zeros(size, np.uint8))
    answer = json.loads(text.tobytes())
    if 'error' in answer:
        raise UserError(answer['error'])
    return answer['value']


def check_same(what: str, value: Any) -> None:
    """Checks that a value, of which repr() says everything, is the same in all processes.

    Args:
        what: Its name in the error.
        value: The value.

    Raises:
        UserError: It is not, in every process.
    """
    if jax.process_count() > 1:
        digest = np.frombuffer(hashlib.sha256(repr(value).encode()).digest(), np.uint8)
        if len(np.unique(multihost_utils.process_allgather(digest), axis=0)) > 1:
            raise UserError(f'The processes of this run have different {what}: give all of them the same.')


class Agreement:
    """A number that all processes agree on, so that they stop after the same step."""

    def __init__(self, mesh: jax.sharding.Mesh):
        """Prepares for the devices of a run."""
        self._mesh = mesh
        self._max = jax.jit(jnp.max, out_shardings=jax.P())
        self._pending: jax.Array | None = None

    def __call__(self, number: int) -> int:
        """Returns the largest number that any process gave in the call before this one, 0 at first.

        So that no device waits for a host, the answer comes one call late; that of one process at once.

        Args:
            number: This process's number, >= 0.
        """
        if jax.process_count() == 1:
            return number
        before, mine = self._pending, np.full(len(self._mesh.local_devices), number, np.int32)
        self._pending = self._max(mesh_lib.put_batch(self._mesh, mine))
        return 0 if before is None else int(before)


def _found(coordinator: str | None, count: int | None, index: int | None) -> dict[str, Any] | None:
    """Returns arguments of jax.distributed.initialize, None for a single process.

    Raises:
        UserError: The numbers are incomplete or contradict each other.
    """
    if count is None and index is None and coordinator is None:
        for cluster in ClusterEnv._cluster_types:
            if cluster.name in CLUSTERS and cluster.is_env_present():
                return {'cluster_detection_method': cluster.name} if cluster.get_process_count() > 1 else None
        return None
    given = {
        '--coordinator=HOST:PORT': coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS'),
        '--num_processes=N': count,
        '--process_id=I': index,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if missing:
        raise UserError(f'Several processes need {", ".join(given)}, without {" and ".join(missing)} here.')
    address = str(given['--coordinator=HOST:PORT'])
    if not re.fullmatch(r'\S+:\d+', address):
        raise UserError(f"--coordinator must be HOST:PORT, such as localhost:1234, not '{address}'.")
    assert count is not None  # as nothing is missing
    assert index is not None
    if not 0 <= index < count:
        raise UserError(f'--process_id={index} must be from 0 to {count - 1}, as --num_processes={count}.')
    if count == 1:
        return None
    ours = {'coordinator_address': address, 'num_processes': count, 'process_id': index}
    return {**ours, 'cluster_detection_method': 'deactivate'}


def _check_devices() -> None:
    """Checks that all processes have equally many devices.

    Raises:
        UserError: They have not.
    """
    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(process) for process in range(jax.process_count())]
    if len(set(counts)) > 1:
        raise UserError(
            f'The processes have {", ".join(map(str, counts))} devices: give all equally many, on a CPU by '
            'JAX_NUM_CPU_DEVICES=1.'
        )


@contextlib.contextmanager
def _lost_in_one_line() -> Iterator[None]:
    """Sends what C++ code prints through `train.failure`."""
    error_fd, output_fd = os.dup(2), os.dup(1)
    command = (sys.executable, '-I', '-S', str(pathlib.Path(failure.__file__)))
    reader = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert reader.stdin is not None  # a pipe
    _readers.append(reader)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    with open(os.devnull, 'wb') as nowhere:
        os.dup2(nowhere.fileno(), 1)  # gloo says there which processes it has found

    with os.fdopen(error_fd, 'w', buffering=1) as error, os.fdopen(output_fd, 'w', buffering=1) as output:
        try:
            with contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
                yield
        finally:
            os.dup2(error_fd, 2)
            os.dup2(output_fd, 1)
            _readers.pop().wait()
