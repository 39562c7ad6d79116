"""The summary of a run: result.json."""

import dataclasses
import importlib.metadata
import platform
import statistics
from typing import Any

import jax

from train import provenance, selection
from train.run_folder import RunFolder
from train.streams import Streams
from train.trainer import Trainer, TrainState


def summarise(trainer: Trainer, streams: Streams, folder: RunFolder, state: TrainState, devices: int) -> dict[str, Any]:
    """Returns test accuracy by several selection rules, the protocol of the run, and its cost.

    Args:
        trainer: Network, methods and settings.
        streams: The data.
        folder: The folder of the run, with the rows of its log.
        state: The state after the last step.
        devices: Number of devices of the run or, if it was resumed, the number used since then.

    Returns:
        The content of result.json. The rules in 'test_accuracy' are:

        - last: The last evaluation.
        - median_last_20: The median of the last 20 evaluations, FixMatch's rule.
        - selected: By the setting `selection`: at the best validation accuracy or, in domain adaptation, by a rule of
          `train.selection`, which are all under 'selection'; null without a validation part.
        - best_on_test: The best on the test set, as in many published tables. It leaks test labels, and is stored for
          comparison only, never to be reported as the accuracy.
        - rotation_averaged: The last evaluation, with outputs averaged over four rotations of the image.
    """
    settings = trainer.settings
    rows = folder.rows()
    evaluations = [row for row in rows if 'test_accuracy' in row]
    test = [row['test_accuracy'] for row in evaluations]
    selected, more = None, {}
    if settings.data.target:
        labels = streams.held_out['validation'][1] if 'validation' in streams.held_out else None
        more['selection'] = selection.choose(folder.path / 'features', evaluations, labels)
        selected = more['selection'].get(settings.selection, {}).get('test_accuracy')
    elif 'validation' in streams.held_out:
        selected = max(evaluations, key=lambda row: row['validation_accuracy'])['test_accuracy']
    averaged = {
        key: row[f'test_{key}'] for row in evaluations[-1:] for key in ['rotation_averaged'] if f'test_{key}' in row
    }
    speeds = [row['images_per_second'] for row in rows if 'images_per_second' in row]
    return {
        'test_accuracy': {
            'last': test[-1],
            'median_last_20': statistics.median(test[-20:]),
            'selected': selected,
            'best_on_test': max(test),
            **averaged,
        },
        'gap': None if selected is None else max(test) - selected,
        **more,
        'evaluations': len(test),
        'protocol': {
            'methods': settings.methods,
            'data': settings.data.name,
            'target': settings.data.target,
            'test_images': settings.data.protocol,
            'selection': settings.selection,
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
        'class_names': streams.class_names,
        'image_shape': trainer.data.image_shape,
        'settings': dataclasses.asdict(settings),
        'seconds': rows[-1]['seconds'],
        'images_per_second': statistics.median(speeds) if speeds else None,
        'device': f'{devices} x {jax.devices()[0].device_kind} ({platform.machine()})',
        'devices': devices,
        'versions': {'python': platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')},
        'git_commit': provenance.commit(),
        'sources': provenance.digest(provenance.used_methods(dataclasses.asdict(settings))),
    }
