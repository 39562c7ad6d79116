"""Losses of methods against NumPy, written from the papers' equations."""

import fakes
import jax.numpy as jnp
import numpy as np
import pytest

import methods
from errors import UserError
from methods.base import LABELED, STRONG, WEAK

LABELED_LOGITS = np.float32([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]])
WEAK_LOGITS = np.float32([[4.0, 0.0, -1.0], [0.2, 0.1, 0.0], [-2.0, -2.0, 3.0], [1.0, 1.5, -0.5]])
STRONG_LOGITS = np.float32([[1.0, 0.5, 0.0], [0.0, 3.0, 0.0], [2.0, 0.0, -1.0], [0.3, -0.3, 0.9]])
LABELS = np.int32([0, 2])


def inputs(method, weak=WEAK_LOGITS, strong=STRONG_LOGITS, labels=LABELS, **changes):
    views = {LABELED: LABELED_LOGITS, WEAK: weak, STRONG: strong}
    outputs = {view: {'logits': jnp.asarray(logits)} for view, logits in views.items()}
    return fakes.inputs(method, labels=labels, outputs=outputs, **changes)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_supervised_is_the_mean_cross_entropy():
    method = methods.create('supervised', {'weight': 2.0})
    result = method.loss(inputs(method), ())
    p = softmax(LABELED_LOGITS)
    expected = -(np.log(p[0, 0]) + np.log(p[1, 2])) / 2
    np.testing.assert_allclose(result.metrics['loss'], expected, rtol=1e-6)
    np.testing.assert_allclose(result.loss, 2 * expected, rtol=1e-6)
    assert result.metrics['accuracy'] == 1


SCHEDULES = {'linear': lambda t: t, 'log': lambda t: 1 - np.exp(-5 * t), 'exp': lambda t: np.exp(5 * (t - 1))}


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_training_signal_annealing_drops_labeled_images_that_are_too_easy(schedule):
    """UDA: the official code's `anneal_sup_loss`. The images' classes have a probability of 0.79 and of 0.37."""
    method = methods.create('supervised', {'weight': 2.0, 'annealing': schedule})
    counts = set()
    for progress in (0.0, 0.1, 0.3, 0.55, 0.75, 0.97):
        eta = SCHEDULES[schedule](progress) * (1 - 1 / 3) + 1 / 3
        p = softmax(LABELED_LOGITS)
        used = [-np.log(p[i, c]) for i, c in enumerate(LABELS) if p[i, c] <= eta]
        result = method.loss(inputs(method, progress=progress), ())
        np.testing.assert_allclose(result.metrics['threshold'], eta, rtol=1e-6)
        np.testing.assert_allclose(result.metrics['loss'], np.sum(used) / max(len(used), 1), rtol=1e-5)
        np.testing.assert_allclose(result.loss, 2 * result.metrics['loss'], rtol=1e-6)
        assert result.metrics['kept'] == len(used) / 2
        counts.add(len(used))
    assert counts == {0, 1, 2}


def test_training_signal_annealing_reads_the_probability_of_the_true_class():
    """A confident mistake is not an easy example (TorchSSL and USB would drop it)."""
    method = methods.create('supervised', {'annealing': 'linear'})
    wrong = np.int32([1, 2])  # the first image is predicted to be of class 0 with 0.79
    assert method.loss(inputs(method, labels=wrong, progress=0.5), ()).metrics['kept'] == 1


def test_unknown_schedule_of_training_signal_annealing_is_named():
    with pytest.raises(UserError, match=r"annealing 'lin'\. Did you mean 'linear'"):
        methods.create('supervised', {'annealing': 'lin'})


@pytest.mark.parametrize('threshold', [0.0, 0.5, 0.95, 0.98, 1.0])
def test_fixmatch_is_equation_4(threshold):
    method = methods.create('fixmatch', {'threshold': threshold, 'weight': 0.7})
    result = method.loss(inputs(method), method.init_state(fakes.SPEC))
    total, used = 0.0, []
    for q, p in zip(softmax(WEAK_LOGITS), softmax(STRONG_LOGITS), strict=True):
        used.append(q.max() >= threshold)
        total += used[-1] * -np.log(p[q.argmax()])
    np.testing.assert_allclose(result.metrics['loss'], total / 4, rtol=1e-6)
    np.testing.assert_allclose(result.loss, 0.7 * total / 4, rtol=1e-6)
    np.testing.assert_array_equal(result.pseudo_labels.mask, used)
    np.testing.assert_array_equal(result.pseudo_labels.labels, [0, 0, 2, 1])


def test_the_thresholds_above_tell_examples_apart():
    assert np.sort(softmax(WEAK_LOGITS).max(-1)) == pytest.approx([0.367, 0.574, 0.976, 0.987], abs=1e-3)


def test_unknown_names_say_what_is_valid():
    with pytest.raises(UserError, match=r"Unknown method 'fixmach'\. Did you mean 'fixmatch'\?"):
        methods.create('fixmach', {})
    with pytest.raises(UserError, match=r"hyper-parameter of fixmatch 'treshold'\. Did you mean 'threshold'\?"):
        methods.create('fixmatch', {'treshold': 0.5})
