"""What a run comes to: result.json."""

import dataclasses
import importlib.metadata
import platform
import statistics
import subprocess
from typing import Any

import jax

from train.settings import Settings
from train.step import Trainer, TrainState


def summarise(settings: Settings, rows: list[dict[str, Any]], trainer: Trainer, state: TrainState) -> dict:
    """Returns test accuracy by several selection rules, the protocol it was reached under, and its cost.

    rows: those of metrics.jsonl.
    last: the last evaluation. median_last_20: FixMatch's rule. selected: at the best validation accuracy, null
    without a validation part. best_on_test: chosen by looking at the test set, as many published tables are; a
    leak, stored to be compared with and never to be reported as the accuracy.
    """
    evaluations = [row for row in rows if 'test_accuracy' in row]
    test = [row['test_accuracy'] for row in evaluations]
    selected = None
    if settings.data.validation:
        selected = max(evaluations, key=lambda row: row['validation_accuracy'])['test_accuracy']
    speeds = [row['images_per_second'] for row in rows if 'images_per_second' in row]
    return {
        'test_accuracy': {
            'last': test[-1],
            'median_last_20': statistics.median(test[-20:]),
            'selected': selected,
            'best_on_test': max(test),
        },
        'evaluations': len(test),
        'protocol': {
            'methods': settings.methods,
            'data': settings.data.name,
            'labels': settings.data.labels,
            'label_protocol': settings.data.manifest or settings.data.label_protocol,
            'augmentation': {name: repr(view) for name, view in trainer.augmentations.items()},
            'backbone': dict(settings.model),
            'weights': trainer.model.weights.record if trainer.model.weights else None,
            'preprocessing': repr(trainer.model.preprocess),
            'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
            'steps': settings.steps,
            'batch_size': settings.batch_size,
            'seed': settings.seed,
        },
        'settings': dataclasses.asdict(settings),
        'seconds': rows[-1]['seconds'],
        'images_per_second': statistics.median(speeds) if speeds else None,
        'device': f'{jax.local_device_count()} x {jax.devices()[0].device_kind} ({platform.machine()})',
        'versions': {'python': platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')},
        'git_commit': _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit the code is at, '+' appended where files differ from it; None outside a git checkout."""
    git = ('git', '-C', str(__file__).rsplit('/', 2)[0])
    try:
        commit = subprocess.run((*git, 'rev-parse', 'HEAD'), capture_output=True, text=True, check=True).stdout
        changed = subprocess.run((*git, 'status', '--porcelain', '-uno'), capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ('+' if changed else '')
