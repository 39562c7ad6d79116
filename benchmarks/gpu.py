"""Measures on a GPU what docs/scaling.md computes, and prints it as a table in Markdown.

    python -m benchmarks.gpu [--out=gpu.json] [--rounds=7] [--part=input] [--small]

Rows are the steps of some RECIPES of benchmarks/cost.py in each precision; FixMatch's CIFAR-10 step in one process and
in two that share the GPU; RandAugment alone; and the input: making the step's batches on the host, and bringing them to
the device. A step gets its batch from the host, and augments it. Data are noise, so nothing has to be prepared.
Figures are over the rounds, in which what is compared runs in random order; each part has a process of its own. Steps
use all GPUs that are visible. --small tries it out on a CPU.
"""

import argparse
import contextlib
import functools
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import cost, devices, rounds
from benchmarks import step as step_benchmark

NETWORKS = ('WRN-28-2', 'ResNet-50', 'EfficientNet-Lite0')
INPUT = 'input'
SMALL = {'model.blocks': (1,), 'model.width': 1, 'batch_size': 2}

Rows = dict[str, tuple[str, list[float]]]  # {what was measured: (unit, a value for each round)}


def steps(network: str, number: int, small: bool) -> Rows:
    """Times the step of a network in each precision, those that this device and its memory allow.

    Args:
        network: One of NETWORKS.
        number: Of rounds.
        small: Whether to make everything as small as can be.
    """
    import jax

    from models import precision

    contestants = {}
    for name in precision.PRECISIONS:
        try:
            trainer = cost.RECIPES[network].trainer(**{'model.precision': name}, **(SMALL if small else {}))
            seconds, _ = step_benchmark.compiled(trainer)
            seconds(1)  # compiles
            count = repeats(seconds, small)
        except jax.errors.JaxRuntimeError as error:
            print(f'{network}, {name}: {str(error).splitlines()[0]}')
        else:
            contestants[f'{network}, {name}'] = functools.partial(rate, seconds, count)
    return {name: ('steps/s', values) for name, values in rounds.measure(contestants, number).items()}


def reading(number: int, small: bool) -> Rows:
    """Times the augmentation alone and the way of FixMatch's CIFAR-10 batches from the host to the device."""
    import jax

    from benchmarks import augment
    from data.augment import Strong
    from train import mesh as mesh_lib
    from train.streams import Streams

    trainer = cost.RECIPES[NETWORKS[0]].trainer(**(SMALL if small else {}))
    sizes = trainer.batch_sizes
    images = np.random.default_rng(0).integers(0, 256, (1000 if small else 50_000, 32, 32, 3), np.uint8)
    everything = np.arange(len(images))
    indices = {'labeled': everything[:40], 'unlabeled': everything}
    streams = Streams(images, (everything % 10).astype(np.int32), indices, {}, (), {})
    mesh = mesh_lib.create(*sizes.values())
    batch, numbers = streams.batches(sizes, 0, 0), itertools.count()

    def make(batches: int) -> float:
        start = time.perf_counter()
        for _ in range(batches):
            streams.batches(sizes, 0, next(numbers))
        return time.perf_counter() - start

    def put(batches: int) -> float:
        start = time.perf_counter()
        for _ in range(batches):
            jax.block_until_ready(mesh_lib.put_batch(mesh, batch))
        return time.perf_counter() - start

    run, pairs = augment.ours(Strong(), sizes['unlabeled'])

    def augmented(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            run()
        return time.perf_counter() - start

    read = sum(sizes.values())
    # {name: (unit, images or pairs in a call, function (number of calls) -> seconds)}
    parts = {
        'RandAugment and a weak view, alone': ('pairs/s', pairs, augmented),
        f'batches on the host, {read} images a step': ('images/s', read, make),
        f'batches to the device, {read} images a step': ('images/s', read, put),
    }
    contestants = {}
    for name, (_, size, seconds) in parts.items():
        seconds(1)  # compiles
        contestants[name] = functools.partial(rate, seconds, repeats(seconds, small), size)
    measured = rounds.measure(contestants, number)
    return {name: (parts[name][0], values) for name, values in measured.items()}


def repeats(seconds: Callable[[int], float], small: bool) -> int:
    """Returns how often to do something in a round."""
    return 1 if small else devices.repeats(seconds)


def rate(seconds: Callable[[int], float], count: int, size: int = 1) -> float:
    """Returns how much a second `seconds` does, which does `size` in each of `count` calls."""
    return count * size / seconds(count)


def shared(number: int, small: bool) -> Rows:
    """Times FixMatch's CIFAR-10 step in float32, in one process and in two that share the GPU."""
    command = step_benchmark.ours(*(('digits', 'joint', 'xla', 2) if small else ('wide_resnet', 'joint', 'xla', 64)))
    try:
        with contextlib.ExitStack() as stack:
            started = [step_benchmark.start(stack, *command, environment=devices.SHARED)[1] for _ in range(2)]
            for seconds in started:
                seconds(1)  # compiles
            count = repeats(started[0], small)
            contestants = {
                '1 process, WRN-28-2, float32': functools.partial(devices.together, started[:1], count),
                '2 processes on the device': functools.partial(devices.together, started, count),
            }
            return {name: ('steps/s', values) for name, values in rounds.measure(contestants, number).items()}
    except (ValueError, OSError):  # there is no answer
        print('One of two processes on the device failed, see above.')
        return {}


def machine() -> dict[str, Any]:
    """Returns the names and versions of devices, driver, JAX and this code."""
    import jax

    from train import provenance

    try:
        query = ('nvidia-smi', '--query-gpu=name,driver_version,memory.total', '--format=csv,noheader')
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split('\n')[0]
    except (OSError, subprocess.CalledProcessError):
        driver = 'no NVIDIA driver'
    found = jax.devices()
    return {
        'device': f'{len(found)} x {found[0].device_kind}',
        'driver': driver,
        'jax': jax.__version__,
        'runtime': found[0].client.platform_version.split('\n')[0],
        'commit': provenance.commit(),
    }


def part(name: str, number: int, small: bool) -> dict[str, Any]:
    """Returns {'machine': ..., 'rows': ...} of one of NETWORKS or INPUT."""
    from train import mesh

    mesh.configure()
    rows = reading(number, small) if name == INPUT else steps(name, number, small)
    return {'machine': machine(), 'rows': rows}


def alone(name: str, number: int, small: bool) -> dict[str, Any]:
    """Returns what `part` does in a process of its own, which then gives its memory back; nothing where it fails."""
    command = (sys.executable, '-m', 'benchmarks.gpu', f'--part={name}', f'--rounds={number}', *['--small'] * small)
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    *lines, result = process.stdout.splitlines() or ['']
    print(*lines, sep='\n')
    if process.returncode:
        print(f'{name} failed, see above.')
        return {'machine': {}, 'rows': {}}
    return json.loads(result)


def markdown(measured: Mapping[str, Any]) -> str:
    """Returns the table of what was measured."""
    rows = [
        (name, unit, *(f'{x:,.4g}' if x < 1000 else f'{x:,.0f}' for x in (statistics.median(v), min(v), max(v))))
        for name, (unit, v) in measured['rows'].items()
    ]
    line = ', '.join(f'{key} {value}' for key, value in measured['machine'].items())
    return f'{line}\n\n{cost.markdown(("", "", "median", "lowest", "highest"), rows)}'


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', help='JSON file for all figures')
    parser.add_argument('--rounds', type=int, default=7, help='measured rounds (default: 7)')
    parser.add_argument('--small', action='store_true', help='tiny, to try it out: the figures mean nothing')
    parser.add_argument('--part', choices=(*NETWORKS, INPUT), help='only this one, in this process, as JSON')
    args = parser.parse_args(arguments)
    if args.part:
        print(json.dumps(part(args.part, args.rounds, args.small)))
        return
    measured: dict[str, Any] = {'machine': {}, 'rows': {}}
    for name in (*(NETWORKS[:1] if args.small else NETWORKS), INPUT):
        result = alone(name, args.rounds, args.small)
        measured = {key: measured[key] | result[key] for key in measured}
    measured['rows'] |= shared(args.rounds, args.small)
    print(f'\n{markdown(measured)}')
    if args.out:
        with open(args.out, 'w', encoding='utf-8') as file:
            json.dump(measured, file, indent=1)


if __name__ == '__main__':
    main()
