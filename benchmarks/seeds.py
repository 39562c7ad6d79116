"""Times the steps of several seeds as one program (train/loop.py: run_seeds) against those of each by itself.

    JAX_NUM_CPU_DEVICES=1 python -m benchmarks.seeds [--seeds=3] [--rounds=5] [fixmatch supervised ...]

On one device, with the settings of the configs. Both make the same steps in turn, round by round; the speed-up is the
median, lowest and highest of the rounds' proportions.
"""

import argparse
import functools
import importlib
import statistics
import time

from train import startup

STEPS = 50  # of a round


def measure(config: str, seeds: int, rounds: int) -> list[float]:
    """Returns how many times as fast the seeds are as one program, in each round."""
    import jax
    import numpy as np

    from train import loop
    from train import mesh as mesh_lib
    from train import settings as settings_lib
    from train import step as step_lib

    name, _, argument = config.partition(':')
    runs = []
    for seed in range(seeds):
        values = importlib.import_module(f'configs.{name}').get_config(argument)
        values.seed = seed
        runs.append(loop.prepare(settings_lib.from_config(values)))
    trainer = runs[0][0]
    mesh = mesh_lib.create(1, most=1)
    stack = functools.partial(jax.tree.map, lambda *x: np.stack(x))
    step = functools.partial(step_lib.step, trainer)
    alone, together = jax.jit(step), jax.jit(jax.vmap(step))
    with jax.set_mesh(mesh):
        batches = [streams.batches(t.batch_sizes, seed, 0) for seed, (t, streams) in enumerate(runs)]
        states = [step_lib.init(t, batch) for (t, _), batch in zip(runs, batches, strict=True)]
        contestants = [(alone, s, b) for s, b in zip(states, batches, strict=True)]
        contestants.append((together, stack(*states), stack(*batches)))

        def run(f, state, batch) -> float:
            start = time.perf_counter()
            for _ in range(STEPS):
                state, _ = f(state, batch)
            jax.block_until_ready(state)
            return time.perf_counter() - start

        for contestant in contestants:  # compiles
            run(*contestant)
        found = []
        for _ in range(rounds):
            *each, one = [run(*contestant) for contestant in contestants]
            found.append(sum(each) / one)
        return found


def main() -> None:
    """Measures and prints a line for each config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', default=['supervised', 'fixmatch'], help='configs, with arguments')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()
    from train import mesh

    mesh.configure()
    print(f'{"config":<30}{f"{args.seeds} seeds, speed-up":>20}{"lowest":>10}{"highest":>10}')
    for config in args.configs:
        found = measure(config, args.seeds, args.rounds)
        print(f'{config:<30}{statistics.median(found):>20.2f}{min(found):>10.2f}{max(found):>10.2f}')


if __name__ == '__main__':
    startup.use_huge_pages()
    main()
