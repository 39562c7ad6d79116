"""Chooses how to train on a folder of pictures, says why, and writes a config that can be edited.

    python -m deploy.auto photos/ --minutes=10
    python main.py --config=auto_photos.py

It counts labels, times a few steps on this machine, and takes what fits into the minutes.
"""

import argparse
import collections
import dataclasses
import functools
import os
import pathlib
import re
import runpy
import shlex
import sys
import tempfile
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from data.pictures import folder as folder_lib
from data.pictures import rules
from errors import UserError
from train import mesh as mesh_lib
from train import run, settings
from train import step as step_lib

NETWORK = 'efficientnet_lite0'  # its weights come with the requirements
SIDES = (64, 96, 128, 160, 224)  # pixels: larger images show more and take longer
LEAST_STEPS, MOST_STEPS = 200, 2000
TIMED = 3  # steps
OVERHEAD = 1.3  # of a run to its steps, for evaluations and checkpoints
SKEWED = 3  # times that the largest class has more labels than the smallest
# Supervised training with logit adjustment, in place of that without.
ADJUSTED = """    with config.unlocked():
        del config.methods['supervised']
        config.methods.finetune = settings.to_config(('finetune',)).methods.finetune
"""
TEMPLATE = """# Chosen by deploy.auto for {name}.
#
{why}

from configs import data_sets, {config}
{imports}

def get_config():
    config = {config}.get_config({argument!r})
{adjusted}    config.update_from_flattened_dict(data_sets.at({side}))
    config.steps = {steps}
    config.eval_steps = {tenth}
    config.checkpoint_steps = {tenth}
    return config
"""


@dataclasses.dataclass(frozen=True)
class Choice:
    """How to train.

    Attributes:
        name: Name of the data set.
        config: 'finetune' or 'fixmatch'.
        adjusted: Whether the loss adjusts logits to the numbers of labels of the classes.
        side: Of the images, in pixels.
        steps: Of training.
        why: Reasons.
    """

    name: str
    config: str
    adjusted: bool
    side: int = SIDES[0]
    steps: int = LEAST_STEPS
    why: tuple[str, ...] = ()

    def text(self) -> str:
        """Returns the config file."""
        adjusted = ADJUSTED * (self.config == 'fixmatch') + '    config.methods.finetune.logit_adjustment = 1.0\n'
        return TEMPLATE.format(
            name=rules.shown(self.name),
            why='\n'.join(f'# - {rules.shown(reason)}.' for reason in self.why),
            config=self.config,
            argument=f'{self.name},model={NETWORK}',
            adjusted=adjusted * self.adjusted,
            imports='from train import settings\n' * (self.adjusted and self.config == 'fixmatch'),
            side=self.side,
            steps=self.steps,
            tenth=self.steps // 10,
        )

    def config_dict(self) -> ConfigDict:
        """Returns what the config file returns."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, 'config.py')
            path.write_text(self.text())
            return runpy.run_path(str(path))['get_config']()


Timed = Callable[[Choice], tuple[float, float]]  # seconds before the first step, and of a step


def choose(name: str, pictures: rules.Pictures, minutes: float, timed: Timed) -> Choice:
    """Returns how to train on pictures.

    Args:
        name: Name of the data set.
        pictures: What there is.
        minutes: That training may take.
        timed: Returns the seconds before the first step, and of a step.
    """
    counts = collections.Counter(entry.label for entry in pictures.entries if entry.split == 'train')
    labeled = sum(counts.values())
    unlabeled = sum(entry.split == folder_lib.UNLABELED for entry in pictures.entries)
    few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    helps = unlabeled >= labeled / 2
    choice = Choice(name, 'fixmatch' if helps else 'finetune', counts[many] > SKEWED * counts[few])
    why = [f'{labeled} labeled and {unlabeled} unlabeled pictures: ' + ('FixMatch' if helps else 'fine-tuning')]
    if choice.adjusted:
        why.append(f'{counts[many]} labels of {many} and {counts[few]} of {few}: logit adjustment')
    before, seconds = timed(choice)
    budget = max(60 * minutes - before, 0) / OVERHEAD
    per_step = {side: seconds * (side / SIDES[0]) ** 2 for side in SIDES}
    fitting = [side for side in SIDES if budget / per_step[side] >= LEAST_STEPS]
    side = max(fitting, default=SIDES[0])
    steps = int(min(max(budget / per_step[side], LEAST_STEPS), MOST_STEPS)) // 10 * 10
    takes = (before + steps * per_step[side] * OVERHEAD) / 60
    why.append(
        f'About {per_step[side]:.2f} s a step at {side} pixels here: {steps} steps take about {takes:.1f} minutes'
    )
    if not fitting:
        why.append(f'That is more than {minutes:g} minutes, but fewer than {LEAST_STEPS} steps learn little')
    return dataclasses.replace(choice, side=side, steps=steps, why=tuple(why))


def timed(choice: Choice, data_dir: str | None = None) -> tuple[float, float]:
    """Returns the seconds before the first step, most of them to compile it, and those of a step."""
    start = time.perf_counter()
    trainer, streams = run.prepare(settings.from_config(choice.config_dict()), data_dir)
    mesh = mesh_lib.create(*trainer.together)
    with jax.set_mesh(mesh):
        batch = mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, 0, 0))
        state = mesh_lib.put_replicated(mesh, step_lib.init(trainer, batch))
        step = jax.jit(functools.partial(step_lib.step, trainer), donate_argnums=0)
        state, _ = jax.block_until_ready(step(state, batch))
        before = time.perf_counter() - start
        for _ in range(TIMED):
            state, _ = jax.block_until_ready(step(state, batch))
    return before, (time.perf_counter() - start - before) / TIMED


def main(args: list[str] | None = None) -> int:
    """Runs the command line, returns the exit status."""
    parser = argparse.ArgumentParser(
        'python -m deploy.auto', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', help='folder of pictures, or a CSV file of paths, labels and maybe splits')
    parser.add_argument('--minutes', type=float, default=10, metavar='M', help='for training (default: 10)')
    parser.add_argument('--out', metavar='FILE', help='config to write, by default named as the folder')
    parser.add_argument('--data_dir', metavar='DIR', help='prepared data sets (default: $TFDS_DATA_DIR)')
    flags = parser.parse_args(args)
    if flags.data_dir:
        os.environ['TFDS_DATA_DIR'] = flags.data_dir  # configs look at the data, too
    mesh_lib.configure()
    try:
        name = flags.folder if folder_lib.is_folder(flags.folder) else f'{flags.folder}/'
        pictures = rules.usable(name)
        stem = re.sub(r'\W', '_', pathlib.Path(name).expanduser().resolve().stem)
        out = pathlib.Path(flags.out or f'auto_{stem}.py')
        if out.exists() or not out.parent.is_dir():
            raise UserError(f'{out} exists, or its folder does not: name another file with --out.')
        if not 0 < flags.minutes < 1e6:
            raise UserError(f'--minutes={flags.minutes} is no time for training.')
        choice = choose(name, pictures, flags.minutes, timed)
        out.write_text(choice.text())
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'{name}: {rules.summary(pictures)}')
    print(''.join(f'{reason}.\n' for reason in choice.why) + f'{out} is written. Next:')
    print(shlex.join(['python', 'main.py', f'--config={out}']))
    return 0


if __name__ == '__main__':
    sys.exit(main())
