"""Makes the runs of a table, one after the other, each as `python main.py` would make it.

    python -m benchmarks.sweep --data=digits --labels=10,20,40 --seeds=3 [--methods=fixmatch,uda] [--runs=runs]

Runs go to RUNS/<data>/<method>-<labels>-<seed>. Finished ones are left alone and interrupted ones continued, so the
same command goes on after a stop; run it twice at the same time, with one core each, to use two. The first seed of
every method comes before the second of any.
"""

import argparse
import importlib
import itertools
import pathlib

from errors import UserError
from train import startup

OTHERS = ('common', 'finetune', 'rotation', 'dann')  # no semi-supervised methods


def main() -> None:
    """Makes the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    configs = sorted(p.stem for p in pathlib.Path('configs').glob('*.py') if p.stem not in OTHERS)
    parser.add_argument('--data', required=True, help='data set of the configs')
    parser.add_argument('--labels', required=True, help='numbers of labels, with commas between')
    parser.add_argument('--seeds', type=int, default=1, help='seeds 0 to N - 1 (default: 1)')
    parser.add_argument('--methods', default=','.join(configs), help='configs (default: all semi-supervised ones)')
    parser.add_argument('--runs', type=pathlib.Path, default=pathlib.Path('runs'), help='folder of the runs')
    args = parser.parse_args()
    from train import loop, mesh, settings

    mesh.configure()
    for seed, labels, name in itertools.product(range(args.seeds), args.labels.split(','), args.methods.split(',')):
        config = importlib.import_module(f'configs.{name}').get_config(f'{args.data},labels={labels}')
        config.seed = seed
        workdir = args.runs / args.data / f'{name}-{labels}-{seed}'
        try:
            result = loop.run(settings.from_config(config), workdir)
        except UserError as error:
            print(f'{workdir}: {error}', flush=True)
        else:
            print(f'{workdir}: {100 * result["test_accuracy"]["last"]:.2f} %', flush=True)


if __name__ == '__main__':
    startup.use_huge_pages()
    main()
