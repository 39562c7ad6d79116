"""The devices of a run as one mesh with one axis, over which batches are split and parameters copied."""

import math
import os
import platform
import sys

import jax
from absl import logging

# Huge pages for a step's activations, and freed memory kept for the next step: glibc reads this at start only.
_TUNABLES = 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=68719476736'


def configure() -> None:
    """Makes this process fast on a CPU: one device per core, memory in huge pages, a cache of compiled steps.

    Call it first of all, before anything touches JAX: it may start the process anew. XLA:CPU runs a step faster as
    one program per core than as one program with threads, and spends an eighth of it on page faults otherwise.
    """
    if platform.libc_ver()[0] == 'glibc' and 'GLIBC_TUNABLES' not in os.environ:
        os.environ['GLIBC_TUNABLES'] = _TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if 'JAX_NUM_CPU_DEVICES' not in os.environ:
        jax.config.update('jax_num_cpu_devices', len(os.sched_getaffinity(0)))
    cache = os.environ.get('JAX_COMPILATION_CACHE_DIR', os.path.expanduser('~/.cache/adaptax/jax'))
    jax.config.update('jax_compilation_cache_dir', cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def create(*batch_sizes: int) -> jax.sharding.Mesh:
    """Returns a mesh of as many devices as divide all batch sizes, with a warning where some stay idle."""
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
