"""The devices of a run, of all its processes, as a mesh with one axis. Batches are split over it, parameters copied."""

import math
import os

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from errors import UserError


def configure() -> None:
    """Makes every logical CPU a device and stores compiled steps on disk. Has to be called before JAX is used.

    XLA:CPU runs a step faster as one program per core than as one program with threads. JAX's own variables
    JAX_NUM_CPU_DEVICES, JAX_COMPILATION_CACHE_DIR and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS take precedence.
    """
    defaults = {
        'jax_num_cpu_devices': len(os.sched_getaffinity(0)),
        'jax_compilation_cache_dir': os.path.expanduser('~/.cache/adaptax/jax'),
        'jax_persistent_cache_min_compile_time_secs': 1.0,
    }
    for name, value in defaults.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def create(*batch_sizes: int) -> jax.sharding.Mesh:
    """Returns a mesh of as many devices as divide all batch sizes, equally many of each process.

    It warns if some stay idle. Those of a process are beside each other, so that its part of a batch is one piece.

    Raises:
        UserError: The processes do not divide all batch sizes.
    """
    sizes, divisor = ' and '.join(map(str, batch_sizes)), math.gcd(*batch_sizes)
    processes, each = jax.process_count(), jax.local_device_count()
    if divisor % processes:
        raise UserError(f'{processes} processes do not divide batches of {sizes}: start another number of them.')
    usable = max(d for d in range(1, each + 1) if divisor % (processes * d) == 0)
    if usable < each:
        used = usable * processes, each * processes
        logging.warning('Using %d of %d devices: more do not divide batches of %s.', *used, sizes)
    devices = [[d for d in jax.devices() if d.process_index == i][:usable] for i in range(processes)]
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.sharding.Mesh(np.concatenate(devices), ('data',), axis_types=axis_types)


def own(rows: np.ndarray) -> np.ndarray:
    """Returns the rows of a batch that the devices of this process hold; all of them if there is one process."""
    index, count = jax.process_index(), jax.process_count()
    return rows[index * len(rows) // count : (index + 1) * len(rows) // count]


def put_replicated(mesh: jax.sharding.Mesh, tree):
    """Copies a tree of arrays to every device."""
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P()))


def put_batch(mesh: jax.sharding.Mesh, tree):
    """Splits a tree of arrays over the devices along their first axis.

    Args:
        mesh: The devices.
        tree: Arrays with the rows of this process (`own`).
    """
    return jax.make_array_from_process_local_data(jax.NamedSharding(mesh, jax.P('data')), tree)


def fetch(tree):
    """Copies a tree of arrays that are split over the devices to the host, whole in every process."""
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else jax.device_get(tree)
