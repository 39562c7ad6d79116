"""The devices of a run as a mesh with one axis. Batches are split over it, parameters are copied."""

import math
import os

import jax
from absl import logging


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
    """Returns a mesh of as many devices as divide all batch sizes; warns if some stay idle."""
    devices = jax.devices()
    usable = max(d for d in range(1, len(devices) + 1) if math.gcd(*batch_sizes) % d == 0)
    if usable < len(devices):
        sizes = ' and '.join(map(str, batch_sizes))
        logging.warning('Using %d of %d devices: more do not divide batches of %s.', usable, len(devices), sizes)
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((usable,), ('data',), axis_types=axis_types, devices=devices[:usable])


def put_replicated(mesh: jax.sharding.Mesh, tree):
    """Copies a tree of arrays to every device."""
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P()))


def put_batch(mesh: jax.sharding.Mesh, tree):
    """Splits a tree of arrays over the devices along their first axis."""
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P('data')))
