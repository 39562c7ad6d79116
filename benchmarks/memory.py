"""Prints the memory of a training step, as XLA compiles it, with and without what makes it smaller.

    python -m benchmarks.memory [--recipe=WRN-28-2] [--micro_batches=1,2,4,8] [--remat]

A step of one of the RECIPES of benchmarks/cost.py is compiled for this machine's device, and not run. MiB are XLA's own
figures: `state` is parameters, optimizer and averages, which the step gets and gives back in the same memory (donated);
`temporary` what it needs beside state and batch while it runs, the activations above all.
"""

import argparse
from collections.abc import Sequence

from benchmarks import cost


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles the steps and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--recipe', choices=cost.RECIPES, default='WRN-28-2', help='(default: WRN-28-2)')
    parser.add_argument('--micro_batches', default='1,2,4,8', help='with a comma between (default: 1,2,4,8)')
    parser.add_argument('--remat', action='store_true', help='with model.remat, too')
    args = parser.parse_args(arguments)
    from models import conv
    from train import mesh

    mesh.configure()
    conv.has_avx512 = lambda: True  # a GPU has no other weight gradient
    rows = []
    for remat in (False, True) if args.remat else (False,):
        for number in map(int, args.micro_batches.split(',')):
            changes = {'micro_batches': number, 'micro_batches_apart': True, 'model.remat': remat}
            memory = cost.lower(cost.RECIPES[args.recipe].trainer(**changes)).compile().memory_analysis()
            sizes = memory.alias_size_in_bytes, memory.temp_size_in_bytes
            rows.append((f'{number}', f'{remat}', *(f'{size / 2**20:,.0f}' for size in sizes)))
    print(cost.markdown(('micro_batches', 'model.remat', 'state, MiB', 'temporary, MiB'), rows))


if __name__ == '__main__':
    main()
