"""Evaluation of the learned features: nearest neighbours, linear probe and fine-tuning with few labels.

All start from the last checkpoint and, for comparison, from the same network with random weights.
"""

import dataclasses
import pathlib

import numpy as np

from train import evaluation, run
from train import mesh as mesh_lib
from train.settings import Settings, Transfer
from train.streams import Streams

STARTS = ('random', 'pretrained')


def check(settings: Settings, data_dir: str | None = None) -> None:
    """Checks that the features can be evaluated.

    Args:
        settings: Settings of the run.
        data_dir: Folder of prepared data sets; by default tfds's own.

    Raises:
        UserError: The data set does not have the labels that `transfer.labels` asks for.
    """
    for labels in settings.transfer.labels:
        Streams.load(finetuning(settings, labels, ''), data_dir)


def report(settings: Settings, workdir: pathlib.Path, data_dir: str | None = None) -> list[dict]:
    """Evaluates the features of a finished run.

    Args:
        settings: Settings of the run, with those of the evaluation in `transfer`.
        workdir: Its folder. The runs of fine-tuning are in workdir/transfer, and are not repeated.
        data_dir: Folder of prepared data sets; by default tfds's own.

    Returns:
        [{'labels', 'start' ('random' or 'pretrained'), 'neighbours', 'linear_probe', 'finetune'}], the last three
        accuracies in [0, 1].
    """
    rows = []
    for labels in settings.transfer.labels:
        for start in STARTS:
            tuned = finetuning(settings, labels, str(workdir) if start == 'pretrained' else '')
            trainer, streams = run.prepare(tuned, data_dir)
            mesh = mesh_lib.create(*trainer.together)
            streams = evaluation.features(trainer, streams, mesh, settings.transfer.layer)
            labeled = streams.indices['labeled']
            train, test = (streams.images[labeled], streams.labels[labeled]), streams.held_out['test']
            result = run.run(tuned, workdir / 'transfer' / f'{start}-{labels}', data_dir)
            rows.append(
                {
                    'labels': len(labeled),
                    'start': start,
                    'neighbours': evaluation.neighbours(settings.transfer, train, test),
                    'linear_probe': linear_probe(train, test),
                    'finetune': result['test_accuracy']['last'],
                }
            )
    return rows


def finetuning(settings: Settings, labels: int, pretrained: str) -> Settings:
    """Returns the settings of a run that fine-tunes features.

    Args:
        settings: Settings of the run that learned them.
        labels: Number of labeled images; -1: all.
        pretrained: Folder of the run that learned them, or '' for random weights.
    """
    transfer = settings.transfer
    frozen = settings.model.get('frozen_statistics', False) and bool(pretrained)
    return dataclasses.replace(
        settings,
        steps=transfer.steps,
        batch_size=transfer.batch_size,
        micro_batches=1,
        micro_batches_apart=False,
        methods={transfer.method: {}},
        data=dataclasses.replace(settings.data, labels=labels, unlabeled_ratio=1, unlabeled_split=''),
        model={**settings.model, 'pretrained': pretrained, 'frozen_statistics': frozen},
        # Its rate is one of SGD.
        optimizer=dataclasses.replace(settings.optimizer, name='sgd', learning_rate=transfer.learning_rate),
        log_steps=min(settings.log_steps, transfer.steps),
        eval_steps=transfer.steps,
        checkpoint_steps=transfer.steps,
        transfer=Transfer(),
    )


def linear_probe(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """Trains a logistic regression on standardised features to convergence.

    Args:
        train: Features `[N, D]` and classes int `[N]` of the labeled images.
        test: The same of the test images.

    Returns:
        The accuracy on the test images, in [0, 1].
    """
    from sklearn.linear_model import LogisticRegression  # only now: importing it takes a second of every command
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train[0])
    classifier = LogisticRegression(max_iter=1000).fit(scaler.transform(train[0]), train[1])
    return float(classifier.score(scaler.transform(test[0]), test[1]))


def table(rows: list[dict]) -> str:
    """Returns the report as a text table."""
    lines = ['labels   start        neighbours   linear probe   fine-tuning    (test accuracy in %)']
    for row in rows:
        values = (100 * row[key] for key in ('neighbours', 'linear_probe', 'finetune'))
        lines.append('{:6}   {:10} {:12.2f} {:14.2f} {:13.2f}'.format(row['labels'], row['start'], *values))
    return '\n'.join(lines)
