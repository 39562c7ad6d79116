"""Times one step of every method: images/s of its streams, and passes of an image through the network.

    python -m benchmarks.methods [--rounds=5] [fixmatch finetune:digits,strategy=probe ...]

Settings are those of the configs, with their argument after the colon. In each round the methods run in random order;
figures are medians over the rounds. Passes count the images that go forward through the network for each image of the
batch, so a method that does needless ones shows; those with a backward pass below the features (about twice the work of
one forward) are counted apart. Both are read off the calls of the network while the step is traced. MB is what the
compiled step needs: train state and batch, and whatever it computes and throws away.
"""

import argparse
import functools
import importlib
import pathlib
import random
import statistics
import time

from train import startup

STEPS = 20  # of a round


def prepare(config: str):
    """Returns (a function that makes STEPS steps and waits, images in a step, their passes, MB of the step)."""
    import jax

    import models
    from models import pretrained
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
    counts = {'forward': 0, 'backward': 0}
    apply = models.Model.apply

    def counted(self, variables, images, *args, **kwargs):
        grad, no_grad = len(images.grad), 0 if images.no_grad is None else len(images.no_grad)
        # What a gradient is taken in arrives as a tracer of differentiation.
        backbone = {layer: leaves for layer, leaves in variables['params'].items() if not pretrained.is_head(layer)}
        kinds = {type(x).__name__ for x in jax.tree.leaves((backbone, images))}
        learned = bool(kinds & {'LinearizeTracer', 'JVPTracer'})
        if images.grad.ndim == 2:  # cached features
            return apply(self, variables, images, *args, **kwargs)
        counts['forward'] += grad + no_grad
        counts['backward'] += grad * learned
        return apply(self, variables, images, *args, **kwargs)

    step = jax.jit(functools.partial(step_lib.step, trainer), donate_argnums=0)
    batch = mesh_lib.put_batch(mesh, streams.batches(sizes, 0, 0))
    with jax.set_mesh(mesh):
        state = mesh_lib.put_replicated(mesh, step_lib.init(trainer, streams.batches(sizes, 0, 0)))
        models.Model.apply = counted
        memory = step.lower(state, batch).compile().memory_analysis()
        models.Model.apply = apply
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

    return run, sum(sizes.values()), counts, megabytes


def main() -> None:
    """Measures and prints the table."""
    configs = sorted(p.stem for p in pathlib.Path('configs').glob('*.py') if p.stem not in ('common', 'data_sets'))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', default=configs, help='configs, with arguments (default: all)')
    parser.add_argument('--rounds', type=int, default=5, help='measured rounds (default: 5)')
    args = parser.parse_args()
    from train import mesh

    mesh.configure()
    contestants = {config: prepare(config) for config in args.configs}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name in random.sample(list(contestants), len(contestants)):
            seconds[name].append(contestants[name][0]())
    print(f'{"config":<40}{"ms/step":>9}{"images/s":>10}{"forward":>9}{"backward":>10}{"MB":>7}')
    for name, (_, images, counts, megabytes) in contestants.items():
        median = statistics.median(seconds[name]) / STEPS
        passes = [f'{counts[kind] / images:.2f}' for kind in ('forward', 'backward')]
        print(f'{name:<40}{1000 * median:>9.1f}{images / median:>10.0f}{passes[0]:>9}{passes[1]:>10}{megabytes:>7.0f}')


if __name__ == '__main__':
    startup.use_huge_pages()
    main()
