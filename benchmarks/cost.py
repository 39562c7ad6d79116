"""Counts what a training step costs, and says what speed follows on GPUs. Nothing is run: these are no measurements.

    python -m benchmarks.cost [WRN-28-2 ...]

GFLOP are XLA's count for the step as it is traced for a GPU: forward, backward, update and augmentation. GB per step
are what it reads and writes after XLA's fusions for a CPU, GB of memory what it needs at a time there: state, batch,
and all that is kept for the backward pass. A compiler for GPUs has other fusions. A step of the expected speed takes
the longer of two times, that of its FLOP and that of its bytes, at UTILISATION of the data sheet's peaks. Compiling
takes about a minute a recipe.
"""

import argparse
import dataclasses
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import step as step_benchmark


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training step.

    Attributes:
        config: Name of the config, with its argument.
        shape: Of the images.
        classes: Number of classes.
        changes: {setting: value} that differ from the config.
    """

    config: str
    shape: tuple[int, int, int]
    classes: int
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def trainer(self, **changes: Any):
        """Returns the trainer, with further changes."""
        name, _, argument = self.config.partition(':')
        config = importlib.import_module(f'configs.{name}').get_config(argument)
        config.update_from_flattened_dict({**self.changes, **changes})
        return step_benchmark.create(config, self.shape, self.classes)


RECIPES = {
    'WRN-28-2': Recipe('fixmatch:cifar10,labels=40', (32, 32, 3), 10),
    'WRN-28-8': Recipe('fixmatch:cifar100,labels=400', (32, 32, 3), 100),
    'WRN-37-2': Recipe('fixmatch:stl10,labels=1000', (96, 96, 3), 10),
    'ResNet-50': Recipe(
        'dann:office31/amazon,target=office31/webcam', (256, 256, 3), 31, {'model.resolution': 224, 'batch_size': 32}
    ),
    'EfficientNet-Lite0': Recipe(
        'fixmatch:emoji/noto,labels=20,model=efficientnet_lite0', (64, 64, 3), 10, {'data.unlabeled_ratio': 3}
    ),
}


class GPU(NamedTuple):
    """Peaks of a data sheet, without sparsity.

    Attributes:
        flops: {precision: FLOP/s}.
        bandwidth: Of its memory, bytes/s.
    """

    flops: Mapping[str, float]
    bandwidth: float


# T4 (its tensor cores know neither format), A100 SXM with 80 GB, H100 SXM; then those that others report of.
GPUS = {
    'T4': GPU({'float32': 8.1e12}, 320e9),
    'A100': GPU({'float32': 19.5e12, 'tensorfloat32': 156e12, 'bfloat16': 312e12}, 2039e9),
    'H100': GPU({'float32': 67e12, 'tensorfloat32': 495e12, 'bfloat16': 989e12}, 3350e9),
}
# V100 SXM2, GeForce RTX 2080 Ti and Quadro RTX 6000 (of Turing; which RTX 6000 it was is not said).
ANCHORED = {
    'V100': GPU({'float32': 15.7e12}, 900e9),
    'RTX 2080 Ti': GPU({'float32': 13.4e12}, 616e9),
    'RTX 6000': GPU({'float32': 16.3e12}, 672e9),
}
# Steps/s on one GPU that users of PyTorch code report for FixMatch's WRN-28-2 recipe (docs/scaling.md has the sources).
ANCHORS = {'V100': (2**20 / (16 * 3600) / 4,), 'RTX 2080 Ti': (1000 / 360, 1000 / 300), 'RTX 6000': (1.2,)}
UTILISATION = 0.3  # of the peaks, as the first two of them have it


class Cost(NamedTuple):
    """Of a step.

    Attributes:
        images: That go through the network.
        flop: Floating-point operations.
        traffic: Bytes read and written.
        memory: Bytes needed at a time.
    """

    images: int
    flop: float
    traffic: float
    memory: float

    def speed(self, gpu: GPU, precision: str) -> float:
        """Returns the expected steps/s."""
        return UTILISATION * min(gpu.flops[precision] / self.flop, gpu.bandwidth / self.traffic)


def lower(trainer):
    """Returns the step of a trainer, lowered for this machine and not compiled. No array of its state is made."""
    import jax

    from train import step as step_lib

    batch = step_benchmark.random_batch(trainer)
    own = dataclasses.replace(trainer)  # what was traced for an equal one is not used again
    return jax.jit(functools.partial(step_lib.step, own), donate_argnums=0).lower(step_lib.check(own, batch), batch)


def count(trainer) -> Cost:
    """Returns what a step of a trainer costs."""
    from models import conv

    with conv.traced_as('plain'):
        flop = lower(trainer).cost_analysis()['flops']
    compiled = lower(trainer).compile()
    memory = compiled.memory_analysis()
    return Cost(
        sum(trainer.batch_sizes[view.stream] for view in trainer.views),
        flop,
        compiled.cost_analysis()['bytes accessed'],
        memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Counts and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipes', nargs='*', metavar='RECIPE', help=f'of {", ".join(RECIPES)} (default: all)')
    args = parser.parse_args(arguments)
    names = args.recipes or list(RECIPES)
    if unknown := set(names) - RECIPES.keys():
        parser.error(f'{", ".join(sorted(unknown))}: choose from {", ".join(RECIPES)}.')
    from models import conv
    from train import mesh

    mesh.configure()
    conv.has_avx512 = lambda: True  # the other weight gradient is a loop, of which XLA counts one turn
    costs = {name: count(RECIPES[name].trainer()) for name in names}

    rows = [
        (name, RECIPES[name].config.partition(',')[0], f'{c.images}', *(f'{x / 1e9:,.1f}' for x in c[1:]))
        for name, c in costs.items()
    ]
    print(markdown(('network', 'config', 'images', 'GFLOP/step', 'GB/step', 'GB of memory'), rows))

    print(f"\nExpected steps/s, computed, at {UTILISATION:.0%} of the peaks; * limited by the memory's bandwidth")
    columns = [(name, gpu, precision) for name, gpu in GPUS.items() for precision in gpu.flops]
    rows = []
    for name, cost in costs.items():
        limited = [cost.traffic / gpu.bandwidth > cost.flop / gpu.flops[precision] for _, gpu, precision in columns]
        speeds = [cost.speed(gpu, precision) for _, gpu, precision in columns]
        rows.append((name, *(f'{float(f"{x:.2g}"):g}{"*" * star}' for x, star in zip(speeds, limited, strict=True))))
    print(markdown(('network', *(f'{name}, {precision}' for name, _, precision in columns)), rows))

    if 'WRN-28-2' in costs:
        print('\nWhat PyTorch users report for WRN-28-2, a GPU, as shares of the float32 peaks')
        cost = costs['WRN-28-2']
        rows = []
        for name, speeds in ANCHORS.items():
            gpu = ANCHORED[name]
            shares = (
                [speed * cost.flop / gpu.flops['float32'] for speed in speeds],
                [speed * cost.traffic / gpu.bandwidth for speed in speeds],
            )
            texts = (' to '.join(f'{share:.0%}' for share in part) for part in shares)
            rows.append((name, ' to '.join(f'{speed:.1f}' for speed in speeds), *texts))
        print(markdown(('GPU', 'steps/s', 'of FLOP/s', 'of bytes/s'), rows))


if __name__ == '__main__':
    main()
