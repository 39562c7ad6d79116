"""Times one FixMatch step on WRN-28-2, ours and, where PyTorch is installed, the same step in PyTorch.

    python -m benchmarks.step [--batch_size=16] [--rounds=7] [--torch_python=PATH]

A step is B labeled, 7 B weak and 7 B strong 32x32x3 images through the network, forward and backward, SGD with
Nesterov momentum and EMA. Ours also augments the images in the step; PyTorch gets them ready-made, on all cores,
in channels_last. Ours comes with both policies for the weak view (methods/fixmatch.py) and both weight gradients
of models/conv.py, which chooses by the CPU. Every contestant has a process of its own, as a training run has, PyTorch
with this Python or that of --torch_python, so that it needs no place in the requirements. In each round the
contestants run in random order; figures are medians over the rounds, ratios those of the ratios in a round.
"""

import argparse
import contextlib
import functools
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks import rounds

STEPS = 2  # of a round


def serve(policy: str, convolution: str, batch_size: int) -> None:
    """Answers each line on standard input, a number of steps, with the seconds they took.

    Args:
        policy: Batch-norm policy of the weak view.
        convolution: Weight gradient of the convolutions, 'xla' or 'blocked'.
        batch_size: Labeled images in a step.
    """
    from train import startup

    startup.use_huge_pages()
    import jax
    import numpy as np

    from configs import fixmatch
    from methods.base import DataSpec
    from models import conv
    from train import mesh as mesh_lib
    from train import settings as settings_lib
    from train import step as step_lib

    mesh_lib.configure()
    instructions = 'with AVX-512' if conv.has_avx512() else 'without AVX-512'
    conv.has_avx512 = {'blocked': lambda: False, 'xla': lambda: True}[convolution]
    config = fixmatch.get_config('cifar10,labels=40')
    config.batch_size = batch_size
    config.methods.fixmatch.statistics = policy
    settings = settings_lib.from_config(config)
    rng = np.random.default_rng(0)
    sizes = {'labeled': batch_size, 'unlabeled': batch_size * settings.data.unlabeled_ratio}
    data = DataSpec(10, (32, 32, 3), np.arange(40) % 10, num_unlabeled=50000, batch_sizes=sizes)
    trainer = step_lib.Trainer.create(settings, data)
    mesh = mesh_lib.create(*sizes.values())
    host_batch = {
        stream: {
            'images': rng.integers(0, 256, (size, 32, 32, 3), np.uint8),
            'labels': rng.integers(0, 10, size).astype(np.int32),
            'indices': np.arange(size, dtype=np.int32),
        }
        for stream, size in sizes.items()
    }
    step = jax.jit(functools.partial(step_lib.step, trainer), donate_argnums=0)
    with jax.set_mesh(mesh):
        batch = mesh_lib.put_batch(mesh, host_batch)
        state = mesh_lib.put_replicated(mesh, step_lib.init(trainer, batch))
        print(f'jax {jax.__version__}, {mesh.size} x {jax.devices()[0].device_kind} {instructions}', flush=True)
        for line in sys.stdin:
            start = time.perf_counter()
            for _ in range(int(line)):
                state, metrics = step(state, mesh_lib.put_batch(mesh, host_batch))
            jax.block_until_ready(metrics)
            print(time.perf_counter() - start, flush=True)


def start(stack: contextlib.ExitStack, *command: str) -> tuple[str, Callable[[int], float]]:
    """Starts a contestant.

    Args:
        stack: Ends it.
        command: Prints a line about itself, then answers each number of steps with the seconds they took.

    Returns:
        Its line about itself, '' if it fails, and a function (number of steps) -> seconds.
    """
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def seconds(steps: int) -> float:
        time.sleep(0.5)  # until the threads of the contestant before have stopped spinning
        process.stdin.write(f'{steps}\n')
        process.stdin.flush()
        return float(process.stdout.readline())

    return process.stdout.readline().strip(), seconds


def commands(batch_size: int, torch_python: str) -> dict[str, Sequence[str]]:
    """Returns {contestant: the command that `start` gets}."""
    ours = (sys.executable, '-m', 'benchmarks.step', f'--batch_size={batch_size}', '--serve')
    torch_script = str(pathlib.Path(__file__).with_name('torch_step.py'))
    return {
        f'{policy}, {convolution} weight gradient': (*ours, f'{policy},{convolution}')
        for policy in ('no_grad', 'joint')
        for convolution in ('xla', 'blocked')
    } | {'PyTorch': (torch_python, torch_script, str(batch_size))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch_size', type=int, default=16, help='labeled images in a step (default: 16)')
    parser.add_argument('--rounds', type=int, default=7, help='measured rounds (default: 7)')
    parser.add_argument('--torch_python', default=sys.executable, help='a Python that has PyTorch')
    parser.add_argument('--serve', help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve:
        return serve(*args.serve.split(','), args.batch_size)
    with contextlib.ExitStack() as stack:
        contestants = {}
        for name, command in commands(args.batch_size, args.torch_python).items():
            banner, seconds = start(stack, *command)
            if not banner and name != 'PyTorch':
                sys.exit(f'{name} could not be started, see above.')
            print(f'{name}: {banner or "not there, so no ratios"}')
            if banner:
                contestants[name] = functools.partial(seconds, STEPS)
                seconds(1)  # compiles
        results = rounds.measure(contestants, args.rounds)
    print(f'\n{"batch " + str(args.batch_size) + " x 15":<34}{"images/s":>10}{"s/step":>9}{"x PyTorch":>11}')
    for name, seconds in results.items():
        median = statistics.median(seconds)
        peer = results.get('PyTorch', [float('nan')] * args.rounds)
        ratio = statistics.median(theirs / own for theirs, own in zip(peer, seconds, strict=True))
        print(f'{name:<34}{args.batch_size * 15 * STEPS / median:>10.0f}{median / STEPS:>9.2f}{ratio:>11.2f}')


if __name__ == '__main__':
    main()
