"""Times one FixMatch step, ours and, where PyTorch is installed, the same step in PyTorch.

    python -m benchmarks.step [--network=efficientnet_lite0] [--batch_size=16] [--rounds=7] [--torch_python=PATH]

A step is B labeled, mu B weak and mu B strong images through the network, forward and backward, SGD with Nesterov
momentum and EMA: WRN-28-2 with mu 7 and 32x32x3 images, or EfficientNet-Lite0 with mu 3 and 64x64 images. Ours also
augments the images in the step; PyTorch gets them ready-made, on all cores, in channels_last. Both come with two
policies for the weak view (methods/fixmatch.py): in one pass with the other views, or without gradient (ours then
normalises it with the moments of the others, PyTorch with its own, as a second pass there does). For WRN-28-2
ours has both weight gradients of models/conv.py, which chooses by the CPU. Every contestant has a process of its own,
as a training run has, PyTorch with this Python or that of --torch_python, so that it needs no place in the
requirements. In each round the contestants run in random order; figures are medians over the rounds, ratios to
PyTorch with the same policy those of the ratios in a round.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import rounds

if TYPE_CHECKING:  # `serve` imports JAX after its restart
    from ml_collections import ConfigDict

    from train.trainer import Trainer

PYTORCH = 'PyTorch'
POLICIES = ('no_grad', 'joint')


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a step is of.

    Attributes:
        arg: Argument of configs/fixmatch.py.
        ratio: Unlabeled images for a labeled one.
        shape: Of the images.
        convolutions: Weight gradients to compare.
        steps: Of a round.
        batch_size: Labeled images in a step, unless another number is asked for.
    """

    arg: str
    ratio: int
    shape: tuple[int, int, int]
    convolutions: tuple[str, ...]
    steps: int
    batch_size: int = 16


COMPARED = ('wide_resnet', 'efficientnet_lite0')  # with PyTorch
WORKLOADS = {
    'digits': Workload('digits,labels=20', 3, (8, 8, 1), ('xla',), steps=50, batch_size=8),
    'wide_resnet': Workload('cifar10,labels=40', 7, (32, 32, 3), ('xla', 'blocked'), steps=2),
    'efficientnet_lite0': Workload('emoji/noto,labels=20,model=efficientnet_lite0', 3, (64, 64, 3), ('xla',), steps=8),
}


def serve(network: str, policy: str, convolution: str, batch_size: int) -> None:
    """Answers each line on standard input, a number of steps, with the seconds they took.

    Args:
        network: One of WORKLOADS.
        policy: Batch-norm policy of the weak view.
        convolution: Weight gradient of the convolutions, 'xla' or 'blocked'.
        batch_size: Labeled images in a step.
    """
    from train import startup

    startup.use_huge_pages()
    import jax

    from configs import fixmatch
    from models import conv
    from train import mesh as mesh_lib

    work = WORKLOADS[network]
    mesh_lib.configure()
    instructions = 'with AVX-512' if conv.has_avx512() else 'without AVX-512'
    conv.has_avx512 = {'blocked': lambda: False, 'xla': lambda: True}[convolution]
    config = fixmatch.get_config(work.arg)
    config.batch_size, config.data.unlabeled_ratio = batch_size, work.ratio
    config.methods.fixmatch.statistics = policy
    config.ema_decay, config.optimizer.weight_decay = 0.999, 5e-4  # as in torch_step.py
    seconds, devices = compiled(create(config, work.shape))
    print(f'jax {jax.__version__}, {devices} x {jax.devices()[0].device_kind} {instructions}', flush=True)
    for line in sys.stdin:
        print(seconds(int(line)), flush=True)


def create(config: 'ConfigDict', shape: tuple[int, int, int], classes: int = 10) -> 'Trainer':
    """Returns the trainer of a config with random weights, which are as fast, without reading its data set.

    Args:
        config: The config; its pretrained weights are taken out.
        shape: Of the images, `(H, W, C)`.
        classes: Number of classes.
    """
    from methods.base import DataSpec
    from train import settings as settings_lib
    from train import trainer

    if config.model.get('pretrained'):
        config.model.pretrained = ''
    settings = settings_lib.from_config(config)
    sizes = {'labeled': settings.batch_size, 'unlabeled': settings.batch_size * settings.data.unlabeled_ratio}
    labels = np.arange(4 * classes) % classes
    return trainer.Trainer.create(settings, DataSpec(classes, shape, labels, num_unlabeled=50000, batch_sizes=sizes))


def random_batch(trainer: 'Trainer') -> dict[str, dict[str, np.ndarray]]:
    """Returns a batch of noise, {stream: {'images': uint8 `[n, H, W, C]`, 'labels': ..., 'indices': ...}}."""
    rng, data = np.random.default_rng(0), trainer.data
    return {
        stream: {
            'images': rng.integers(0, 256, (size, *data.image_shape), np.uint8),
            'labels': rng.integers(0, data.num_classes, size).astype(np.int32),
            'indices': np.arange(size, dtype=np.int32),
        }
        for stream, size in trainer.batch_sizes.items()
    }


def compiled(trainer: 'Trainer') -> tuple[Callable[[int], float], int]:
    """Prepares a step on all devices that divide its batch.

    Returns:
        A function (number of steps) -> seconds, each step with its batch from the host, and the number of devices.
    """
    import jax

    from train import mesh as mesh_lib
    from train import step as step_lib

    host_batch = random_batch(trainer)
    mesh = mesh_lib.create(*trainer.together)
    step = jax.jit(functools.partial(step_lib.step, trainer), donate_argnums=0)
    with jax.set_mesh(mesh):
        state = mesh_lib.put_replicated(mesh, step_lib.init(trainer, mesh_lib.put_batch(mesh, host_batch)))

    def seconds(steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        with jax.set_mesh(mesh):
            for _ in range(steps):
                state, metrics = step(state, mesh_lib.put_batch(mesh, host_batch))
            jax.block_until_ready(metrics)
        return time.perf_counter() - start

    return seconds, mesh.size


def start(
    stack: contextlib.ExitStack, *command: str, environment: Mapping[str, str] | None = None
) -> tuple[str, Callable[[int], float]]:
    """Starts a contestant.

    Args:
        stack: Ends it.
        command: Prints a line about itself, then answers each number of steps with the seconds they took.
        environment: Variables beside those of this process.

    Returns:
        Its line about itself, '' if it fails, and a function (number of steps) -> seconds.
    """
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    process = stack.enter_context(subprocess.Popen(command, env={**os.environ, **(environment or {})}, **pipes))

    def seconds(steps: int) -> float:
        time.sleep(rounds.SETTLE_SECONDS)
        process.stdin.write(f'{steps}\n')
        process.stdin.flush()
        return float(process.stdout.readline())

    return process.stdout.readline().strip(), seconds


def ours(network: str, policy: str, convolution: str, batch_size: int) -> tuple[str, ...]:
    """Returns the command of a process that makes our steps; its arguments are those of `serve`."""
    served = f'--serve={network},{policy},{convolution}'
    return sys.executable, '-m', 'benchmarks.step', f'--batch_size={batch_size}', served


def commands(network: str, batch_size: int, torch_python: str) -> dict[str, Sequence[str]]:
    """Returns {contestant: the command that `start` gets}; the first word of a name is its policy."""
    work = WORKLOADS[network]
    torch_script = str(pathlib.Path(__file__).with_name('torch_step.py'))
    more = str(batch_size), str(work.ratio), str(work.shape[0])
    return {
        f'{policy}, {convolution} weight gradient': ours(network, policy, convolution, batch_size)
        for policy in POLICIES
        for convolution in work.convolutions
    } | {f'{policy}, {PYTORCH}': (torch_python, torch_script, network, policy, *more) for policy in POLICIES}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', choices=COMPARED, default='wide_resnet', help='(default: wide_resnet)')
    parser.add_argument('--batch_size', type=int, default=16, help='labeled images in a step (default: 16)')
    parser.add_argument('--rounds', type=int, default=7, help='measured rounds (default: 7)')
    parser.add_argument('--torch_python', default=sys.executable, help='a Python that has PyTorch')
    parser.add_argument('--serve', help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve:
        return serve(*args.serve.split(','), args.batch_size)
    work = WORKLOADS[args.network]
    with contextlib.ExitStack() as stack:
        contestants = {}
        for name, command in commands(args.network, args.batch_size, args.torch_python).items():
            banner, seconds = start(stack, *command)
            if not banner and PYTORCH not in name:
                sys.exit(f'{name} could not be started, see above.')
            print(f'{name}: {banner or "not there, so no ratios"}')
            if banner:
                contestants[name] = functools.partial(seconds, work.steps)
                seconds(1)  # compiles
        results = rounds.measure(contestants, args.rounds)
    views = 1 + 2 * work.ratio
    print(f'\n{f"batch {args.batch_size} x {views}":<34}{"images/s":>10}{"s/step":>9}{"x PyTorch":>11}')
    for name, seconds in results.items():
        median = statistics.median(seconds)
        peer = results.get(f'{name.split(",")[0]}, {PYTORCH}', [float('nan')] * args.rounds)
        ratio = statistics.median(theirs / own for theirs, own in zip(peer, seconds, strict=True))
        print(
            f'{name:<34}{args.batch_size * views * work.steps / median:>10.0f}{median / work.steps:>9.2f}{ratio:>11.2f}'
        )


if __name__ == '__main__':
    main()
