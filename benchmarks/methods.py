"""Times one step of every method: images/s of its streams, and passes of an image through the network.

    python -m benchmarks.methods [--rounds=5] [fixmatch finetune:digits,strategy=probe ...]

Settings are those of the configs, with their argument after the colon. In each round the methods run in random order;
figures are medians over the rounds. Passes count the images that go forward through the network for each image of the
batch, so a method that does needless ones shows; those with a backward pass below the features (about twice the work of
one forward) are counted apart. Both are read off the calls of the network while the step is traced. MB is what the
compiled step needs: train state and batch, and whatever it computes and throws away.
"""

import argparse
import contextlib
import functools
import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import configs
from benchmarks import rounds
from train import startup

STEPS = 20  # of a round


class Contestant(NamedTuple):
    """A config's compiled step.

    Attributes:
        run: Makes STEPS steps and returns the seconds they took.
        images: Images of the batch.
        forward: Images that go forward through the network in a step.
        backward: Those of them with a backward pass below the features.
        megabytes: What the step needs.
    """

    run: Callable[[], float]
    images: int
    forward: int
    backward: int
    megabytes: float


def prepare(config: str) -> Contestant:
    """Compiles the step of a config, named with its argument after a colon."""
    import jax

    from train import evaluation
    from train import mesh as mesh_lib
    from train import run as run_lib
    from train import settings as settings_lib
    from train import step as step_lib

    name, _, argument = config.partition(':')
    settings = settings_lib.from_config(importlib.import_module(f'configs.{name}').get_config(argument))
    trainer, streams = run_lib.prepare(settings)
    sizes = trainer.batch_sizes
    mesh = mesh_lib.create(*sizes.values())
    if settings.data.cache_features:
        streams = evaluation.features(trainer, streams, mesh)
    step = jax.jit(functools.partial(step_lib.step, trainer), donate_argnums=0)
    batch = mesh_lib.put_batch(mesh, streams.batches(sizes, 0, 0))
    with jax.set_mesh(mesh):
        with count_passes() as passes:  # which is where a step is traced
            state = mesh_lib.put_replicated(mesh, step_lib.init(trainer, batch))
        memory = step.lower(state, batch).compile().memory_analysis()
        state, _ = step(state, batch)
    megabytes = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        with jax.set_mesh(mesh):
            for _ in range(STEPS):
                state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
        return time.perf_counter() - start

    return Contestant(run, sum(sizes.values()), **passes, megabytes=megabytes)


@contextlib.contextmanager
def count_passes() -> Iterator[dict[str, int]]:
    """Counts the images that go through networks while a step is traced: {'forward': ..., 'backward': ...}."""
    import jax

    import models

    passes = {'forward': 0, 'backward': 0}
    run = models.Model._run

    def counted(self, variables, batch, *args, **kwargs):
        images = batch.images
        if images.ndim > 2:  # not cached features
            # What a gradient is taken in arrives as a tracer of differentiation.
            backbone = {layer: leaves for layer, leaves in variables['params'].items() if not self.layers[layer].head}
            kinds = {type(x).__name__ for x in jax.tree.leaves((backbone, images))}
            passes['forward'] += len(images)
            passes['backward'] += len(images) * bool(kinds & {'LinearizeTracer', 'JVPTracer'})
        return run(self, variables, batch, *args, **kwargs)

    models.Model._run = counted
    try:
        yield passes
    finally:
        models.Model._run = run


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', default=configs.NAMES, help='configs, with arguments (default: all)')
    parser.add_argument('--rounds', type=int, default=5, help='measured rounds (default: 5)')
    args = parser.parse_args(arguments)
    from train import mesh

    mesh.configure()
    contestants = {config: prepare(config) for config in args.configs}
    results = rounds.measure({config: contestant.run for config, contestant in contestants.items()}, args.rounds)
    print(f'{"config":<40}{"ms/step":>9}{"images/s":>10}{"forward":>9}{"backward":>10}{"MB":>7}')
    for config, (_, images, forward, backward, megabytes) in contestants.items():
        median = statistics.median(results[config]) / STEPS
        passes = f'{forward / images:>9.2f}{backward / images:>10.2f}'
        print(f'{config:<40}{1000 * median:>9.1f}{images / median:>10.0f}{passes}{megabytes:>7.0f}')


if __name__ == '__main__':
    startup.use_huge_pages()
    main()
