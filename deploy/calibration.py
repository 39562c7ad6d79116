"""Probabilities that mean what they say, and when to abstain."""

import numpy as np
import scipy.optimize
import scipy.special


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature at which held-out images have the least cross-entropy (arXiv:1706.04599, section 4.2).

    Labels are smoothed as if there were one image more, of every class alike. Otherwise a few images that are all right
    would have a temperature of zero, and every picture a probability of one.

    Args:
        logits: `[N, C]`.
        labels: Classes, int `[N]`.

    Returns:
        A number from 1e-3 to 1e3, by which logits are to be divided.
    """
    logits = logits.astype(np.float64)
    count, classes = logits.shape
    targets = (count * np.eye(classes)[labels] + 1 / classes) / (count + 1)

    def loss(log_temperature: float) -> float:
        scaled = scipy.special.log_softmax(logits / np.exp(log_temperature), axis=-1)
        return float(-(targets * scaled).sum(-1).mean())

    limit = np.log(1e3)
    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-limit, limit), method='bounded').x))


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Returns probabilities, float64 `[N, C]`, of logits `[N, C]`."""
    return scipy.special.softmax(logits.astype(np.float64) / temperature, axis=-1)


def expected_error(confidences: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Returns the expected calibration error: the mean difference of confidence and accuracy (arXiv:1706.04599, eq. 3).

    Args:
        confidences: Probabilities of the predicted classes, in [0, 1], `[N]`.
        right: Whether they are right, bool `[N]`.
        bins: Number of bins of equal width.
    """
    return sum(
        share * abs(confidence - accuracy) for share, confidence, accuracy in reliability(confidences, right, bins)
    )


def reliability(confidences: np.ndarray, right: np.ndarray, bins: int = 15) -> list[tuple[float, float, float]]:
    """Returns (share of the predictions, mean confidence, accuracy) of each bin that is not empty."""
    number = np.minimum((confidences * bins).astype(int), bins - 1)
    members = [number == b for b in range(bins)]
    filled = [m for m in members if m.any()]
    return [(float(m.mean()), float(confidences[m].mean()), float(right[m].mean())) for m in filled]


def least_probability(confidences: np.ndarray, right: np.ndarray, risk: float) -> float:
    """Returns the least probability so that, of the predictions with at least that, at most a share `risk` is wrong.

    Args:
        confidences: Probabilities of the predicted classes, `[N]`.
        right: Whether they are right, bool `[N]`.
        risk: In [0, 1].

    Returns:
        One of the probabilities; infinity if there is none.
    """
    order = np.argsort(-confidences, kind='stable')
    wrong = np.cumsum(~right[order]) / np.arange(1, len(right) + 1)
    last = np.append(np.diff(confidences[order]) < 0, True)  # equal probabilities are accepted together
    accepted = np.flatnonzero(last & (wrong <= risk))
    return float(confidences[order][accepted[-1]]) if len(accepted) else float('inf')
