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


def inputs(method, weak=WEAK_LOGITS, strong=STRONG_LOGITS, labels=LABELS):
    views = {LABELED: LABELED_LOGITS, WEAK: weak, STRONG: strong}
    outputs = {view: {'logits': jnp.asarray(logits)} for view, logits in views.items()}
    return fakes.inputs(method, labels=labels, outputs=outputs)


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
