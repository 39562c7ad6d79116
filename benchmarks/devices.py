"""Times the FixMatch step on one device, on several, and in several processes at once.

    python -m benchmarks.devices [--network=digits] [--batch_size=8] [--rounds=7] [--gpus=0,1]

Without --gpus, the devices are the cores that this process may use. Contestants are one process with one device, with
two, four and so on, and with all of them; as many processes as there are devices, with one each (on one GPU: two
processes that share it); and on a CPU one process whose only device has all cores. All have the same batch, which the
devices of a process share. In each round the contestants run in random order, while the others wait. Steps/s are
medians over the rounds, in total where there are several processes; ratios are to the first contestant in the same
round, their median and range.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

from benchmarks import rounds
from benchmarks import step as step_benchmark

# Processes on one GPU take memory as they need it.
SHARED = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
ROUND_SECONDS = 2.0


@contextlib.contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Lets this process, and those that it starts inside, use some logical CPUs only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def repeats(seconds: Callable[[int], float]) -> int:
    """Returns how often to do something, `seconds` (number of times) -> seconds, for ROUND_SECONDS; at least thrice."""
    return max(3, round(3 * ROUND_SECONDS / seconds(3)))


def together(processes: Sequence[Callable[[int], float]], steps: int) -> float:
    """Lets processes make steps at the same time.

    Args:
        processes: Functions (number of steps) -> seconds, see `benchmarks.step.start`.
        steps: Of each process.

    Returns:
        Steps/s of all together, until the last one has ended.
    """
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        seconds = list(pool.map(lambda process: process(steps), processes))
    return len(processes) * steps / max(seconds)


def contestants(gpus: Sequence[str], cores: Sequence[int]) -> dict[str, list[tuple[Sequence[int], dict[str, str]]]]:
    """Returns {name: (logical CPUs, variables) of each of its processes}, the one that others are compared with first.

    Args:
        gpus: CUDA's numbers of the GPUs, none for a CPU.
        cores: The logical CPUs.
    """

    def on_gpus(*used: str):
        return cores, {'CUDA_VISIBLE_DEVICES': ','.join(used), **SHARED}

    def on_cpu(devices: int, *used: int):
        return used, {'JAX_NUM_CPU_DEVICES': f'{devices}'}

    most = len(gpus or cores)
    counts = sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})
    if gpus:
        own = [on_gpus(gpu) for gpu in gpus] * (2 if most == 1 else 1)
        return {
            **{f'GPUs: {n}': [on_gpus(*gpus[:n])] for n in counts},
            f'GPUs: {most}, in {len(own)} processes': own,
        }
    return {
        **{f'cores: {n}, a device each': [on_cpu(n, *cores[:n])] for n in counts},
        f'cores: {most}, one device': [on_cpu(1, *cores)],
        f'cores: {most}, a process each': [on_cpu(1, core) for core in cores],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', choices=step_benchmark.WORKLOADS, default='digits', help='(default: digits)')
    parser.add_argument('--batch_size', type=int, help='labeled images in a step (default: that of the network)')
    parser.add_argument('--rounds', type=int, default=7, help='measured rounds (default: 7)')
    parser.add_argument('--gpus', default='', help="CUDA's numbers, with a comma between (default: no GPU)")
    args = parser.parse_args(arguments)
    work = step_benchmark.WORKLOADS[args.network]
    batch_size = args.batch_size or work.batch_size
    command = step_benchmark.ours(args.network, 'no_grad', work.convolutions[0], batch_size)
    gpus = [gpu for gpu in args.gpus.split(',') if gpu]
    with contextlib.ExitStack() as stack:
        processes_of = {}
        for name, processes in contestants(gpus, sorted(os.sched_getaffinity(0))).items():
            started = []
            for cores, variables in processes:
                with on_cores(cores):
                    banner, seconds = step_benchmark.start(stack, *command, environment=variables)
                if not banner:
                    sys.exit(f'{name} could not be started, see above.')
                print(f'{name}: {banner}')
                seconds(1)  # compiles
                started.append(seconds)
            processes_of[name] = started
        steps = repeats(next(iter(processes_of.values()))[0]) if gpus else work.steps
        speeds = {name: functools.partial(together, started, steps) for name, started in processes_of.items()}
        results = rounds.measure(speeds, args.rounds)
    first = next(iter(results.values()))
    views = f'{args.network}, batch {batch_size} x {1 + 2 * work.ratio}'
    print(f'\n{views:<34}{"steps/s":>9}{"ratio":>8}{"lowest":>8}{"highest":>9}')
    for name, values in results.items():
        ratios = [value / other for value, other in zip(values, first, strict=True)]
        figures = f'{statistics.median(ratios):>8.2f}{min(ratios):>8.2f}{max(ratios):>9.2f}'
        print(f'{name:<34}{statistics.median(values):>9.2f}{figures}')


if __name__ == '__main__':
    main()
