"""Selects a step of a domain adaptation run without target labels, from features saved at each evaluation.

Each rule scores every evaluation and chooses the step with the highest score:

- validation: accuracy on held-out source images.
- entropy: minus the mean entropy of predictions for the target (Morerio et al. 2018, arXiv:1711.10288).
- information: the same plus the entropy of the mean prediction, so that all classes are predicted (information
  maximisation).
- iwcv: minus the error on held-out source images, each weighted by the density ratio of target and source domain
  (Sugiyama et al. 2007, JMLR 8, section 3).
- dev: the same with a control variate of the weights that reduces its variance (You et al. 2019, ICML, section 4).

Scores such as entropy are best for a network that predicts the same class for all images. So an evaluation is not
eligible if its target predictions have collapsed, to an effective number of classes (exp of the entropy of their
histogram) of less than half of all. No score uses test images.
"""

import pathlib
from typing import Any

import numpy as np

from train.streams import Streams

EXAMPLES = 1000  # number of images of each domain whose features are saved


def images(streams: Streams) -> dict[str, np.ndarray]:
    """Returns the images to save features of: training images of both domains and, if any, held-out source images."""
    some = {
        'source': streams.images[streams.indices['labeled'][:EXAMPLES]],
        'target': streams.images[streams.indices['unlabeled'][:EXAMPLES]],
    }
    if 'validation' in streams.held_out:
        some['validation'] = streams.held_out['validation'][0]
    return some


def save(folder: pathlib.Path, step: int, features: dict[str, np.ndarray], logits: dict[str, np.ndarray]) -> None:
    """Writes an evaluation to folder/<step>.npz.

    Args:
        folder: The folder, created if it does not exist.
        step: Step of the evaluation.
        features: {part: float32 `[N, D]`}, stored in half precision.
        logits: {part: float32 `[N, C]`}.
    """
    folder.mkdir(exist_ok=True)
    arrays = {f'{part}_features': np.clip(x, -6e4, 6e4).astype(np.float16) for part, x in features.items()}
    arrays |= {f'{part}_logits': x.astype(np.float32) for part, x in logits.items()}
    temporary = folder / f'.{step}.tmp'
    with open(temporary, 'wb') as file:
        np.savez(file, **arrays)
    temporary.replace(folder / f'{step}.npz')


def choose(folder: pathlib.Path, evaluations: list[dict], validation_labels: np.ndarray | None) -> dict[str, dict]:
    """Chooses a step by every rule.

    Args:
        folder: Folder of the evaluations that `save` wrote.
        evaluations: Rows with 'step' and 'test_accuracy'; the latter is only copied to the result.
        validation_labels: Classes of the held-out source images, int `[N]`; None if there are none.

    Returns:
        {rule: {'step', 'score', 'test_accuracy', 'a_distance'}}; the values are None if no step is eligible.
    """
    scored = []
    for row in evaluations:
        with np.load(folder / f'{row["step"]}.npz') as file:
            arrays = {name: file[name].astype(np.float64) for name in file}
        if not collapsed(arrays['target_logits']):
            scored.append((row, *scores(arrays, validation_labels)))
    chosen = {}
    for rule in ('validation', 'entropy', 'information', 'iwcv', 'dev'):
        if validation_labels is None and rule not in ('entropy', 'information'):
            continue
        if not scored:
            chosen[rule] = dict.fromkeys(('step', 'score', 'test_accuracy', 'a_distance'))
            continue
        row, values, distance = max(scored, key=lambda item: item[1][rule])
        chosen[rule] = {
            'step': row['step'],
            'score': values[rule],
            'test_accuracy': row['test_accuracy'],
            'a_distance': distance,
        }
    return chosen


def collapsed(target_logits: np.ndarray) -> bool:
    """Returns whether the effective number of classes that logits `[N, C]` predict is below half of all."""
    p = np.bincount(target_logits.argmax(-1), minlength=target_logits.shape[-1]) / len(target_logits)
    return np.exp(_entropy(p)) < len(p) / 2


def scores(arrays: dict[str, np.ndarray], validation_labels: np.ndarray | None) -> tuple[dict[str, float], float]:
    """Scores one evaluation.

    Args:
        arrays: {'<part>_features': `[N, D]`, '<part>_logits': `[N, C]`}, of source, target and, if any, validation.
        validation_labels: Classes of the held-out source images, int `[N]`; None if there are none.

    Returns:
        {rule: score} and the proxy A-distance of the features (see `a_distance`).
    """
    p = _softmax(arrays['target_logits'])
    conditional = _entropy(p).mean()
    values = {'entropy': -conditional, 'information': _entropy(p.mean(0)) - conditional}
    domains = arrays['source_features'], arrays['target_features']
    if validation_labels is not None:
        weights = density_ratio(*domains, arrays['validation_features'])
        errors = (arrays['validation_logits'].argmax(-1) != validation_labels).astype(np.float64)
        values['validation'] = 1 - errors.mean()
        weighted = weights * errors
        values['iwcv'] = -weighted.mean()
        variance = weights.var(ddof=1)
        eta = -np.cov(weighted, weights)[0, 1] / variance if variance > 1e-12 else 0.0
        values['dev'] = -(weighted.mean() + eta * (weights.mean() - 1))
    return {rule: float(value) for rule, value in values.items()}, a_distance(*domains)


def density_ratio(source: np.ndarray, target: np.ndarray, query_features: np.ndarray) -> np.ndarray:
    """Estimates the density ratio of target and source domain by logistic regression.

    Args:
        source: Features of source images `[N, D]`.
        target: Features of target images `[M, D]`.
        query_features: Features for which the ratio is estimated, `[n, D]`.

    Returns:
        Density in the target domain divided by that in the source domain, `[n]`.
    """
    scaler, x, y = _domains(source, target)
    odds = _classifier(x, y).predict_proba(scaler.transform(query_features))
    return odds[:, 1] / np.maximum(odds[:, 0], 1e-12) * len(source) / len(target)


def a_distance(source: np.ndarray, target: np.ndarray) -> float:
    """Returns the proxy A-distance of features of two domains, `[N, D]` and `[M, D]`.

    It is 2 (1 - 2 error), where the error is that of a logistic regression that predicts the domain, on the half of the
    features that it is not trained on: 2 for domains that are separable, 0 for domains that are not.
    """
    _, x, y = _domains(source, target)
    predicted = _classifier(x[::2], y[::2]).predict(x[1::2])
    return float(2 * (1 - 2 * (predicted != y[1::2]).mean()))


def _classifier(x: np.ndarray, y: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression  # only now: importing it takes a second of every command

    return LogisticRegression(max_iter=300).fit(x, y)


def _domains(source: np.ndarray, target: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """Returns the scaler of the features, all features standardised, and their domains: 0 source, 1 target."""
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([source, target])
    scaler = StandardScaler().fit(x)
    return scaler, scaler.transform(x), np.repeat([0, 1], [len(source), len(target)])


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _entropy(p: np.ndarray) -> np.ndarray:
    """Returns the entropy over the last axis, in nats."""
    return -np.sum(p * np.log(np.maximum(p, 1e-30)), axis=-1)
