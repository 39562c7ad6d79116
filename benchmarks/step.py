"""Times one FixMatch step on WRN-28-2, ours and, where PyTorch is installed, the same step in PyTorch.

    python -m benchmarks.step [--batch_size=16] [--rounds=5] [--torch_python=PATH]

A step is B labeled, 7 B weak and 7 B strong 32x32x3 images through the network, forward and backward, SGD with
Nesterov momentum and EMA. Ours also augments the images in the step; PyTorch gets them ready-made, on all cores,
in channels_last. PyTorch runs in a process of its own, with this Python or that of --torch_python, so that it
needs no place in the requirements. Rounds of the contestants alternate, each figure is the median over them, and
each ratio is the median of the ratios within a round.
"""

import argparse
import functools
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from configs import fixmatch
from models import conv, layers
from train import mesh as mesh_lib
from train import settings as settings_lib
from train import step as step_lib

STEPS = 2  # of a round


def ours(batch_size: int, policy: str, convolution: Callable) -> Callable[[], float]:
    """Returns a function that makes a round of steps and returns the seconds it took."""
    layers.conv = convolution
    config = fixmatch.get_config('cifar10,labels=40')
    config.batch_size = batch_size
    config.methods.fixmatch.weak_batch_norm = policy
    settings = settings_lib.from_config(config)
    trainer = step_lib.Trainer.create(settings, num_classes=10)
    rng = np.random.default_rng(0)
    sizes = {'labeled': batch_size, 'unlabeled': batch_size * settings.data.unlabeled_ratio}
    mesh = mesh_lib.create(*sizes.values())
    host_batch = {
        stream: {
            'images': rng.integers(0, 256, (size, 32, 32, 3), np.uint8),
            'labels': rng.integers(0, 10, size).astype(np.int32),
        }
        for stream, size in sizes.items()
    }
    step = jax.jit(functools.partial(step_lib.step, trainer), donate_argnums=0)
    with jax.set_mesh(mesh):
        batch = mesh_lib.put_batch(mesh, host_batch)
        state = mesh_lib.put_replicated(mesh, jax.jit(functools.partial(step_lib.init, trainer))(batch))

    def round_of_steps() -> float:
        nonlocal state
        start = time.perf_counter()
        with jax.set_mesh(mesh):
            for _ in range(STEPS):
                state, metrics = step(state, mesh_lib.put_batch(mesh, host_batch))
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    round_of_steps()  # compiles, with the convolution of this contestant
    return round_of_steps


def pytorch(python: str, batch_size: int) -> Callable[[], float] | None:
    """Returns the same for PyTorch, None where that Python has none."""
    script = pathlib.Path(__file__).with_name('torch_step.py')
    process = subprocess.Popen(
        (python, script, str(batch_size)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if not (banner := process.stdout.readline()):
        return None
    print(banner.strip())

    def round_of_steps() -> float:
        process.stdin.write(f'{STEPS}\n')
        process.stdin.flush()
        return float(process.stdout.readline())

    return round_of_steps


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch_size', type=int, default=16, help='labeled images in a step (default: 16)')
    parser.add_argument('--rounds', type=int, default=5, help='measured rounds (default: 5)')
    parser.add_argument('--torch_python', default=sys.executable, help='a Python that has PyTorch')
    args = parser.parse_args()
    mesh_lib.configure()
    print(f'jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}, batch {args.batch_size} x 15')
    contestants = {
        'ours, weak view no_grad': ours(args.batch_size, 'no_grad', conv.conv),
        "  XLA's weight gradient": ours(args.batch_size, 'no_grad', conv._xla_conv),
        'ours, weak view joint': ours(args.batch_size, 'joint', conv.conv),
        'PyTorch': pytorch(args.torch_python, args.batch_size),
    }
    if contestants['PyTorch'] is None:
        del contestants['PyTorch']
        print(f'no PyTorch in {args.torch_python}: ours alone')
    for round_of_steps in contestants.values():  # warms up
        round_of_steps()
    seconds = [{name: make() for name, make in contestants.items()} for _ in range(args.rounds)]
    images = args.batch_size * 15 * STEPS
    print(f'{"":<26}{"images/s":>10}{"s/step":>9}{"x PyTorch":>11}')
    for name in contestants:
        median = statistics.median(s[name] for s in seconds)
        ratio = statistics.median(s['PyTorch'] / s[name] for s in seconds) if 'PyTorch' in contestants else float('nan')
        print(f'{name:<26}{images / median:>10.0f}{median / STEPS:>9.2f}{ratio:>11.2f}')


if __name__ == '__main__':
    main()
