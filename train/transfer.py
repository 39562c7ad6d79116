"""What features learned without labels are worth: nearest neighbours, linear probe and fine-tuning with few labels,
from one checkpoint and beside the same network with random weights."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from errors import UserError, build, unknown
from train.settings import Settings

METRICS = ('cosine', 'euclidean')
STARTS = ('random', 'pretrained')


@dataclasses.dataclass(frozen=True)
class Transfer:
    """The protocol, the settings `transfer` of a run. Published ones differ (solo-learn: k 20, temperature 0.07)."""

    labels: tuple[int, ...] = ()  # numbers of labels to evaluate with (-1: all); none: no evaluation after training
    layer: str = 'features'  # output whose average over space is evaluated; earlier ones ('stage2') are more general
    k: int = 20  # neighbours that vote
    temperature: float = 0.07  # a vote weighs exp(-distance / temperature); 0: all weigh the same
    metric: str = 'cosine'  # or 'euclidean'
    standardize: bool = False  # features, by mean and standard deviation of the labeled images, for the neighbours
    steps: int = 300  # of fine-tuning
    batch_size: int = 16
    learning_rate: float = 0.03

    def __post_init__(self):
        if self.metric not in METRICS:
            raise unknown('transfer.metric', self.metric, METRICS)
        if self.k < 1 or self.temperature < 0:
            raise UserError(f'transfer.k must be at least 1 and temperature 0, not {self.k} and {self.temperature}.')

    def neighbours(self, train: tuple, test: tuple) -> float:
        """Returns the accuracy of the k nearest neighbours. train, test: features `[N, D]` and classes `[N]`."""
        (x, y), (test_x, test_y) = train, test
        if self.standardize:
            scaler = StandardScaler().fit(x)
            x, test_x = scaler.transform(x), scaler.transform(test_x)
        weights = 'uniform'
        if self.temperature:

            def weights(distance: np.ndarray) -> np.ndarray:
                # Of the nearest one 1, so that not all of them vanish.
                return np.exp((distance.min(1, keepdims=True) - distance) / self.temperature)

        classifier = KNeighborsClassifier(min(self.k, len(x)), weights=weights, metric=self.metric, algorithm='brute')
        return float(classifier.fit(x, y).score(test_x, test_y))


def linear_probe(train: tuple, test: tuple) -> float:
    """Returns the accuracy of a logistic regression on standardised features, trained until it converges."""
    scaler = StandardScaler().fit(train[0])
    classifier = LogisticRegression(max_iter=1000).fit(scaler.transform(train[0]), train[1])
    return float(classifier.score(scaler.transform(test[0]), test[1]))


def protocol(settings: Settings) -> Transfer:
    """Returns the protocol of a run. Raises UserError for a key that does not exist."""
    return build(Transfer, 'setting of transfer', settings.transfer)


def report(
    settings: Settings, workdir: pathlib.Path, prepare: Callable, features: Callable, run: Callable
) -> list[dict]:
    """Evaluates a finished run. Its fine-tuning runs are in workdir/transfer, and are not made twice.

    prepare, features: of train/loop.py; run: `(settings, workdir) -> result`.
    Returns [{'labels', 'start' ('random' or 'pretrained'), 'neighbours', 'linear_probe', 'finetune'}], accuracies.
    """
    chosen = protocol(settings)
    found = []
    for labels in chosen.labels:
        for start in STARTS:
            tuned = finetuning(settings, chosen, labels, str(workdir) if start == 'pretrained' else '')
            trainer, streams = prepare(tuned)
            streams = features(trainer, streams, chosen.layer)
            labeled = streams.indices['labeled']
            pair = (streams.images[labeled], streams.labels[labeled]), streams.held_out['test']
            result = run(tuned, workdir / 'transfer' / f'{start}-{labels}')
            found.append(
                {
                    'labels': len(labeled),
                    'start': start,
                    'neighbours': chosen.neighbours(*pair),
                    'linear_probe': linear_probe(*pair),
                    'finetune': result['test_accuracy']['last'],
                }
            )
    return found


def finetuning(settings: Settings, chosen: Transfer, labels: int, pretrained: str) -> Settings:
    """Returns the settings of supervised training from the features of a run, or from random weights for ''."""
    return dataclasses.replace(
        settings,
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        methods={'supervised': {'weight': 1.0}},
        data=dataclasses.replace(settings.data, labels=labels, unlabeled_ratio=1, unlabeled_split=''),
        model={**settings.model, 'pretrained': pretrained},
        optimizer=dataclasses.replace(settings.optimizer, learning_rate=chosen.learning_rate),
        log_steps=min(settings.log_steps, chosen.steps),
        eval_steps=chosen.steps,
        checkpoint_steps=chosen.steps,
        transfer={},
    )


def table(found: list[dict]) -> str:
    """Returns the report for people to read."""
    lines = ['labels   start        neighbours   linear probe   fine-tuning    (test accuracy in %)']
    for row in found:
        values = (100 * row[key] for key in ('neighbours', 'linear_probe', 'finetune'))
        lines.append('{:6}   {:10} {:12.2f} {:14.2f} {:13.2f}'.format(row['labels'], row['start'], *values))
    return '\n'.join(lines)
