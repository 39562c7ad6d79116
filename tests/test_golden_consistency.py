"""Methods that teach the strong view with labels from the weak one, against NumPy, written from the papers' equations.

Only random draws come from JAX, by the same keys. Every method runs several steps: its state of one step is what the
next begins with, and NumPy keeps its own.
"""

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import methods
from methods.base import DISTORTED, LABELED, LABELED_STRONG, STRONG, WEAK

C = fakes.NUM_CLASSES
UNIFORM = np.full(C, 1 / C)
HALF = np.float32([0, 0, -200])  # the softmax of these logits is exactly (1/2, 1/2, 0)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol), actual, expected)


def double(tree):
    return jax.tree.map(np.float64, tree)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def softmax(logits):
    return np.exp(log_softmax(logits))


def cross_entropy(p, logits):
    """H(p, softmax(logits)) of one example; p: a class or probabilities."""
    p = np.eye(len(logits))[p] if np.ndim(p) == 0 else p
    return -sum(p * log_softmax(logits))


def sharpen(p, temperature):
    powers = p ** (1 / temperature)
    return powers / powers.sum()


def proportional(p):
    return p / p.sum(-1, keepdims=True)


def unit(vectors):
    return vectors / np.sqrt((vectors**2).sum(-1, keepdims=True))


def outputs(inputs, view, name='logits'):
    return np.float64(inputs.outputs[view][name])


def weak_and_strong(inputs):
    """Yields the logits of the weak and the strong view of each unlabeled image."""
    return zip(outputs(inputs, WEAK), outputs(inputs, STRONG), strict=True)


def with_logits(inputs, **logits):
    """Replaces logits: weak, strong are those of the unlabeled stream, labeled is labeled.weak."""
    names = {'weak': WEAK, 'strong': STRONG, 'labeled': LABELED}
    new = {names[k]: {**inputs.outputs[names[k]], 'logits': jnp.float32(v)} for k, v in logits.items()}
    return dataclasses.replace(inputs, outputs={**inputs.outputs, **new})


def with_indices(inputs, **indices):
    return dataclasses.replace(inputs, indices={**inputs.indices, **{k: jnp.int32(v) for k, v in indices.items()}})


def check(method, expected, state, steps, start=None, rtol=1e-5):
    """Runs a method and its NumPy counterpart over inputs of several steps, and compares them.

    Args:
        method: The method.
        expected: The counterpart, (inputs, state) -> (loss, metrics, labels, mask, new state).
        state: Expected result of init_state.
        steps: Inputs of the steps.
        start: State to begin with instead.
        rtol: Relative tolerance.

    Returns:
        Masks and states of the counterpart.
    """
    actual = method.init_state(fakes.SPEC)
    close(actual, state)
    if start is not None:
        actual, state = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), actual, start), start
    masks, states = [], []
    for inputs in steps:
        result = method.loss(inputs, actual)
        loss, metrics, labels, mask, state = expected(inputs, state)
        close(result.loss, loss, rtol)
        close(result.metrics, metrics, rtol)
        np.testing.assert_array_equal(result.pseudo_labels.labels, labels)
        close(result.pseudo_labels.mask, mask, rtol)
        close(result.state, state, rtol)
        assert result.batch_stats is None
        assert jax.tree.map(jnp.shape, result.state) == jax.tree.map(jnp.shape, actual)
        actual = result.state
        masks.append(np.float64(mask))
        states.append(state)
    return np.array(masks), states


def assert_mixed(masks):
    assert 0 < masks.mean() < 1, masks


# UDA


@pytest.mark.parametrize(('threshold', 'temperature'), [(0.8, 0.4), (0.7, 1.0), (0.0, 0.4), (1.0, 0.4)])
def test_uda_is_the_kl_divergence_from_sharpened_confident_predictions(threshold, temperature):
    def expected(inputs, state):
        total, labels, mask = 0, [], []
        for weak, strong in weak_and_strong(inputs):
            p = softmax(weak)
            target = sharpen(p, temperature)
            labels.append(p.argmax())
            mask.append(p.max() >= threshold)
            total += mask[-1] * sum(target * (np.log(target) - log_softmax(strong)))
        return 0.7 * total / 4, {'loss': total / 4}, labels, mask, state

    method = methods.create('uda', {'threshold': threshold, 'temperature': temperature, 'weight': 0.7})
    masks, _ = check(method, expected, (), [fakes.inputs(method, seed=seed) for seed in (0, 1)])
    assert {0.0: masks.all(), 1.0: not masks.any()}.get(threshold, 0 < masks.mean() < 1)


def test_uda_decides_on_the_prediction_before_it_is_sharpened():
    method = methods.create('uda', {'threshold': 0.8, 'temperature': 0.1})
    inputs = with_logits(fakes.inputs(method), weak=[[1, 0, 0]] * 4)  # 0.58, sharpened 0.9999
    result = method.loss(inputs, ())
    assert result.loss == 0
    assert not result.pseudo_labels.mask.any()


# FixMatch


def align(p, wanted, observed):
    return proportional(p * wanted / observed)


def fixmatch(method):
    def expected(inputs, state):
        guessed = state['guessed'].mean(0) if method.alignment else None
        total, labels, mask, mean = 0, [], [], np.zeros(C)
        for weak, strong in weak_and_strong(inputs):
            q = softmax(weak)
            mean += q / 4
            if method.alignment:
                q = align(q, state['wanted'], guessed)
            labels.append(q.argmax())
            mask.append(q.max() >= method.threshold)
            target = sharpen(q, method.temperature) if method.temperature else q.argmax()
            total += mask[-1] * cross_entropy(target, strong)
        if method.alignment:
            state = {**state, 'guessed': np.stack([*state['guessed'][1:], mean])}
        return method.weight * total / 4, {'loss': total / 4}, labels, mask, state

    return expected


ALIGNED = {'wanted': np.array([2, 2, 1]) / 5, 'guessed': np.full((128, C), 1 / C)}
SKEWED = {**ALIGNED, 'guessed': np.float32(np.random.default_rng(5).dirichlet([6, 3, 1], 128)).astype(float)}


@pytest.mark.parametrize('temperature', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('alignment', [False, True])
def test_fixmatch_with_soft_labels_and_alignment(temperature, alignment):
    values = {'threshold': 0.8, 'weight': 0.7, 'temperature': temperature, 'alignment': alignment}
    method = methods.create('fixmatch', values)
    steps = [fakes.inputs(method, seed=seed) for seed in (0, 1, 2)]
    masks, _ = check(method, fixmatch(method), ALIGNED if alignment else {}, steps)
    assert_mixed(masks)


@pytest.mark.parametrize('temperature', [0.0, 0.5])
def test_fixmatch_aligns_before_it_decides_on_label_and_mask(temperature):
    method = methods.create('fixmatch', {'threshold': 0.8, 'temperature': temperature, 'alignment': True})
    steps = [fakes.inputs(method, seed=seed) for seed in (0, 1, 2)]
    masks, _ = check(method, fixmatch(method), ALIGNED, steps, start=SKEWED)
    assert_mixed(masks)
    plain = [softmax(outputs(inputs, WEAK)) for inputs in steps]
    assert (masks != [q.max(-1) >= 0.8 for q in plain]).any()
    labels = method.loss(steps[0], jax.tree.map(jnp.float32, SKEWED)).pseudo_labels.labels
    assert (np.array(labels) != plain[0].argmax(-1)).any() or (masks[0] != (plain[0].max(-1) >= 0.8)).any()


def test_fixmatch_without_a_confident_prediction_is_zero():
    method = methods.create('fixmatch', {'threshold': 1.0, 'temperature': 0.5})
    result = method.loss(fakes.inputs(method), {})
    assert result.loss == 0
    assert not result.pseudo_labels.mask.any()


@pytest.mark.parametrize('temperature', [0.5, 0.1, 0.05])
def test_soft_labels_of_unsure_predictions_are_probabilities_at_any_temperature(temperature):
    # Ten classes, all but equally likely: the powers p^(1/T) are tiny, and have to be normalised all the same.
    method = methods.create('fixmatch', {'threshold': 0.0, 'temperature': temperature})
    weak, strong = np.random.default_rng(0).normal(0, [[[0.1]], [[1.0]]], (2, 4, 10)).astype(np.float32)
    inputs = with_logits(fakes.inputs(method), weak=weak, strong=strong)
    pairs = weak_and_strong(inputs)
    loss = np.mean([cross_entropy(sharpen(softmax(weak), temperature), strong) for weak, strong in pairs])
    close(method.loss(inputs, {}).loss, loss)


# FlexMatch


def flexmatch(method):
    def expected(inputs, state):
        n, sigma = len(state['labels']), state['counts']
        unused = n - sigma.sum()
        divisor = max(sigma.max(), unused) if method.warm_up else sigma.max()
        total, labels, mask, memory = 0, [], [], state['labels'].copy()
        for i, (weak, strong) in enumerate(weak_and_strong(inputs)):
            q = softmax(weak)
            c = q.argmax()
            beta = sigma[c] / divisor if sigma[c] else 0
            labels.append(c)
            mask.append(q.max() >= method.threshold * beta / (2 - beta))
            total += mask[-1] * cross_entropy(c, strong)
            if q.max() >= method.threshold:
                memory[inputs.indices['unlabeled'][i]] = c
        counts = np.array([sum(memory == c) for c in range(C)])
        return method.weight * total / 4, {'loss': total / 4}, labels, mask, {'labels': memory, 'counts': counts}

    return expected


NOTHING_MET = {'labels': np.full(7, -1), 'counts': np.zeros(C, int)}
ALL_MET = {'labels': np.array([0, 0, 1, 1, 2, 0, 0]), 'counts': np.array([4, 2, 1])}
FLEX_INDICES = ([5, 0, 2, 6], [1, 5, 3, 4], [0, 2, 5, 1], [6, 4, 3, 0])


@pytest.mark.parametrize('warm_up', [True, False])
@pytest.mark.parametrize('start', [NOTHING_MET, ALL_MET], ids=['at first', 'later'])
def test_flexmatch_is_equations_5_to_11(warm_up, start):
    method = methods.create('flexmatch', {'threshold': 0.9, 'weight': 0.7, 'warm_up': warm_up})
    steps = [with_indices(fakes.inputs(method, seed=seed), unlabeled=index) for seed, index in enumerate(FLEX_INDICES)]
    masks, states = check(method, flexmatch(method), NOTHING_MET, steps, start=start)
    assert masks[0].all() == (start is NOTHING_MET)  # no class has a count yet: all thresholds are 0
    assert start is NOTHING_MET or 0 < masks.mean() < 1
    assert states[-1]['counts'].min() < states[-1]['counts'].max()


@pytest.mark.parametrize(('warm_up', 'beta'), [(True, [3 / 5, 4 / 5, 0]), (False, [3 / 4, 1, 0])])
def test_flexmatch_lowers_the_threshold_of_classes_not_yet_learned(warm_up, beta):
    # Of twelve images three are labeled 0 and four are labeled 1; five have no label, more than any class has.
    method = methods.create('flexmatch', {'threshold': 0.8, 'warm_up': warm_up})
    state = {'labels': jnp.int32([0] * 3 + [1] * 4 + [-1] * 5), 'counts': jnp.int32([3, 4, 0])}

    def passes(label, confidence):
        q = np.insert(np.full(2, (1 - confidence) / 2), label, confidence)
        assert q.argmax() == label
        mask = method.loss(with_logits(fakes.inputs(method), weak=[np.log(q)] * 4), state).pseudo_labels.mask
        return bool(mask[0])

    for label in (0, 1):
        threshold = 0.8 * beta[label] / (2 - beta[label])
        assert not passes(label, threshold - 0.005)
        assert passes(label, threshold + 0.005)
    assert passes(2, 0.34)


def test_flexmatch_keeps_the_label_of_an_image_that_is_no_longer_confident():
    method = methods.create('flexmatch', {'threshold': 0.8})
    sure, other, unsure = [4, 0, 0], [0, 4, 0], [0, 0, 0.1]
    steps = [
        with_logits(fakes.inputs(method), weak=weak)
        for weak in ([sure, sure, unsure, other], [unsure, other, unsure, sure])
    ]
    _, states = check(method, flexmatch(method), NOTHING_MET, steps)
    # INDICES['unlabeled'] is 5, 0, 2, 6: the first keeps its label, the second and the last change theirs.
    assert states[0]['labels'].tolist() == [0, -1, -1, -1, -1, 0, 1]
    assert states[1]['labels'].tolist() == [1, -1, -1, -1, -1, 0, 0]


def test_flexmatch_thresholds_are_those_before_the_step():
    method = methods.create('flexmatch', {'threshold': 0.8, 'warm_up': False})
    weak = [[4, 0, 0], [4, 0, 0], [4, 0, 0], [0.3, 0, 0]]  # the last is unsure of a class learned in this very step
    inputs = with_logits(fakes.inputs(method), weak=weak)
    masks, _ = check(method, flexmatch(method), NOTHING_MET, [inputs, inputs])
    assert masks.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize('order', [[0, 1, 2, 3], [3, 1, 2, 0]])
def test_flexmatch_counts_an_image_that_occurs_twice_by_its_confident_view(order):
    # A batch may span epochs (data/sampler.py), so an image can be in it twice; only one of its views is confident.
    method = methods.create('flexmatch', {'threshold': 0.8})
    weak = np.float32([[4, 0, 0], [0, 4, 0], [0, 0, 0.1], [0, 0, 0.1]])[order]
    inputs = with_indices(with_logits(fakes.inputs(method), weak=weak), unlabeled=np.array([5, 0, 2, 5])[order])
    check(method, flexmatch(method), NOTHING_MET, [inputs])


# FreeMatch


def freematch(method):
    def expected(inputs, state):
        n, decay = 4, method.decay
        q = [softmax(weak) for weak in outputs(inputs, WEAK)]
        histogram = np.zeros(C)
        for row in q:
            histogram[row.argmax()] += 1 / n
        state = {
            'confidence': decay * state['confidence'] + (1 - decay) * sum(row.max() for row in q) / n,  # equation 5
            'p': decay * state['p'] + (1 - decay) * sum(q) / n,  # 6
            'histogram': decay * state['histogram'] + (1 - decay) * histogram,
        }
        tau = [state['confidence'] * p / max(state['p']) for p in state['p']]  # 7
        tau = [min(max(t, method.lowest), method.highest) for t in tau]  # TorchSSL's clamp on SVHN
        total, labels, mask, p_strong, strong_histogram = 0, [], [], np.zeros(C), np.zeros(C)
        for row, strong in zip(q, outputs(inputs, STRONG), strict=True):
            c = row.argmax()
            labels.append(c)
            mask.append(row.max() >= tau[c])
            if mask[-1]:
                total += cross_entropy(c, strong) / n  # 8
                p_strong += softmax(strong) / n  # 9
                strong_histogram[strong.argmax()] += 1 / n
        fairness = 0
        if any(mask):
            ratio = [p / h if h else 0 for p, h in zip(state['p'], state['histogram'], strict=True)]
            strong_ratio = [p / h if h else 0 for p, h in zip(p_strong, strong_histogram, strict=True)]
            expected_p, observed = proportional(np.array(ratio)), proportional(np.array(strong_ratio))
            fairness = sum(expected_p * np.log(observed + 1e-12))  # 11: minus the cross-entropy
        loss = method.weight * total + method.fairness_weight * fairness
        metrics = {'loss': total, 'loss_fairness': fairness, 'threshold': state['confidence']}
        return loss, metrics, labels, mask, state

    return expected


FREE = {'confidence': 1 / C, 'p': UNIFORM, 'histogram': UNIFORM}


@pytest.mark.parametrize('decay', [0.999, 0.6, 0.0])
def test_freematch_is_equations_5_to_12(decay):
    method = methods.create('freematch', {'weight': 0.7, 'fairness_weight': 0.3, 'decay': decay})
    steps = [fakes.inputs(method, seed=seed) for seed in (0, 1, 2)]
    masks, states = check(method, freematch(method), FREE, steps)
    if decay < 0.9:
        assert_mixed(masks)
    assert states[-1]['confidence'] != states[0]['confidence']


def test_freematch_has_a_threshold_for_each_class():
    method = methods.create('freematch', {'decay': 0.9})
    state = {'confidence': 0.9, 'p': np.array([0.8, 0.15, 0.05]), 'histogram': UNIFORM}
    weak = [[1.5, 0, 0], [0, 1.5, 0], [0, 0, 1.5], [4, 0, 0]]  # as sure of the common class is not sure enough
    steps = [with_logits(fakes.inputs(method, seed=seed), weak=weak) for seed in (0, 1)]
    masks, _ = check(method, freematch(method), FREE, steps, start=state)
    assert masks.tolist() == [[0, 1, 1, 1]] * 2


def test_freematch_limits_the_threshold_of_each_class_on_svhn():
    """Thresholds of 0.99, 0.92 and 0.2 become 0.95, 0.92 and 0.9: TorchSSL clamps the product, not its factors."""
    method = methods.create('freematch', {'decay': 1.0, 'lowest': 0.9, 'highest': 0.95})
    p = np.array([0.99, 0.92, 0.2]) / 2.11
    state = {'confidence': 0.99, 'p': p, 'histogram': UNIFORM}
    confidences = [[0.96, 0.94], [0.93, 0.91], [0.91, 0.5]]  # of each class: one that passes, and one that does not
    probabilities = []
    for c, values in enumerate(confidences):
        for value in values:
            row = np.full(C, (1 - value) / 2)
            row[c] = value
            probabilities.append(row)
    first, second = np.log(probabilities[:4]), np.log(probabilities[2:])
    steps = [with_logits(fakes.inputs(method), weak=weak) for weak in (first, second)]
    masks, _ = check(method, freematch(method), FREE, steps, start=state)
    assert masks.tolist() == [[1, 0, 1, 0]] * 2


def test_freematch_without_a_confident_prediction_is_zero_and_has_no_gradient():
    method = methods.create('freematch', {'fairness_weight': 0.3})
    inputs = with_logits(fakes.inputs(method), weak=[[0.3, 0, 0], [0, 0.3, 0], [0, 0, 0.3], [0.2, 0, 0]])
    masks, _ = check(method, freematch(method), FREE, [inputs], start={**FREE, 'confidence': 0.99})
    assert not masks.any()
    state = {**method.init_state(fakes.SPEC), 'confidence': jnp.float32(0.99)}
    result = method.loss(inputs, state)
    assert result.loss == result.metrics['loss_fairness'] == 0
    (gradient,) = jax.grad(loss_of(method, inputs, state, ['outputs']))((inputs.outputs,))
    assert (np.array(gradient[STRONG]['logits']) == 0).all()


@pytest.mark.parametrize('missing', ['in both', 'in strong', 'in weak'])
def test_freematch_fairness_when_a_class_is_missing(missing):
    # decay 0: the histogram of the weak views is that of this step, and has a zero where a class is missing.
    method = methods.create('freematch', {'fairness_weight': 0.3, 'decay': 0.0})
    two = np.float32([[3, 0, -1], [0, 2.9, -1], [3, 0, -1], [0, 2.9, -1]])
    three = np.float32([[3, 0, -1], [0, 2.9, -1], [0.3, -0.2, 2.7], [0, 3, 0.5]])
    weak, strong = {'in both': (two, two - 0.3), 'in strong': (three, two), 'in weak': (two, three)}[missing]
    strong = strong * np.float32([[1, 0.9, 1.1]])
    inputs = with_logits(fakes.inputs(method), weak=weak, strong=strong)
    masks, states = check(method, freematch(method), FREE, [inputs, inputs])
    assert masks.any()
    assert (states[-1]['histogram'].min() == 0) == (missing != 'in strong')
    assert (np.bincount(strong[masks[0] > 0].argmax(-1), minlength=C).min() == 0) == (missing != 'in weak')


# SoftMatch


def softmatch(method):
    def expected(inputs, state):
        n, m = 4, method.decay
        q = [softmax(weak) for weak in outputs(inputs, WEAK)]
        confidences = [row.max() for row in q]
        mean = sum(confidences) / n
        variance = sum((c - mean) ** 2 for c in confidences) / n
        state = {
            'mean': m * state['mean'] + (1 - m) * mean,
            'var': m * state['var'] + (1 - m) * n / (n - 1) * variance,
            'q': m * state['q'] + (1 - m) * sum(q) / n,
        }
        total, weights = 0, []
        for row, strong in zip(q, outputs(inputs, STRONG), strict=True):
            confidence = align(row, UNIFORM, state['q']).max() if method.alignment else row.max()
            gaussian = np.exp(-((confidence - state['mean']) ** 2) / (2 * state['var'] / method.sigmas**2))
            weights.append(gaussian if confidence < state['mean'] else 1)
            total += weights[-1] * cross_entropy(row.argmax(), strong) / n
        labels = [row.argmax() for row in q]
        return method.weight * total, {'loss': total, 'threshold': state['mean']}, labels, weights, state

    return expected


SOFT = {'mean': 1 / C, 'var': 1, 'q': UNIFORM}


@pytest.mark.parametrize('alignment', [True, False])
@pytest.mark.parametrize(('decay', 'sigmas'), [(0.999, 2.0), (0.5, 2.0), (0.5, 1.0)])
def test_softmatch_weighs_labels_by_a_truncated_gaussian(alignment, decay, sigmas):
    values = {'weight': 0.7, 'alignment': alignment, 'decay': decay, 'sigmas': sigmas}
    method = methods.create('softmatch', values)
    steps = [fakes.inputs(method, seed=seed, scale=0.5) for seed in (0, 1, 2)]
    start = {'mean': 0.7, 'var': 0.05, 'q': np.array([0.6, 0.3, 0.1])}
    masks, _ = check(method, softmatch(method), SOFT, steps, start=start)
    assert (masks == 1).any()
    assert (masks < 0.95).any()
    assert (masks > 0).all()


def test_softmatch_begins_at_chance_so_that_all_weights_are_one():
    method = methods.create('softmatch', {'alignment': False})
    masks, _ = check(method, softmatch(method), SOFT, [fakes.inputs(method)])
    close(masks, 1, rtol=0.01)


def test_softmatch_alignment_changes_weights_but_not_labels():
    method = methods.create('softmatch', {'decay': 0.5})
    start = {'mean': 0.9, 'var': 0.02, 'q': np.array([0.9, 0.05, 0.05])}
    inputs = with_logits(fakes.inputs(method), weak=[[1, 0.5, 0], [2, 1, -1], [0, 0, 1], [3, 2, 0]])
    check(method, softmatch(method), SOFT, [inputs], start=start)
    q = softmax(outputs(inputs, WEAK))
    observed = 0.5 * start['q'] + 0.5 * q.mean(0)
    assert (align(q, UNIFORM, observed).argmax(-1) != q.argmax(-1)).any()


# AdaMatch


def adamatch(method):
    def expected(inputs, state):
        n, size = 4, len(fakes.INDICES['labeled'])
        views = (LABELED, LABELED_STRONG)
        labeled = np.concatenate([outputs(inputs, view) for view in views])
        if method.interpolation:
            images = np.concatenate([np.float64(inputs.images[view]) for view in views])
            alone = fakes.network(double(inputs.params), images)['logits']
            share = np.float64(jax.random.uniform(inputs.key, labeled.shape))
            labeled = share * labeled + (1 - share) * alone
        weak, strong = labeled[:size], labeled[size:]
        losses = [
            (cross_entropy(y, w) + cross_entropy(y, s)) / 2 for y, w, s in zip(inputs.labels, weak, strong, strict=True)
        ]
        labeled_loss = sum(losses) / size
        p = softmax(weak)
        q = softmax(outputs(inputs, WEAK))
        state = {
            'labeled': method.decay * state['labeled'] + (1 - method.decay) * p.mean(0),
            'unlabeled': np.stack([*state['unlabeled'][1:], q.mean(0)]),
        }
        tau = method.threshold * sum(row.max() for row in p) / size
        total, labels, mask = 0, [], []
        for row, logits in zip(q, outputs(inputs, STRONG), strict=True):
            row = align(row, state['labeled'], state['unlabeled'].mean(0))
            labels.append(row.argmax())
            mask.append(row.max() >= tau)
            label = row if method.temperature == 1 else np.eye(C)[row.argmax()]
            total += mask[-1] * cross_entropy(label, logits) / n
        ramp = 0.5 - np.cos(min(np.pi, 2 * np.pi * float(inputs.progress))) / 2
        metrics = {'loss': total, 'loss_labeled': labeled_loss, 'threshold': tau}
        return labeled_loss + method.weight * ramp * total, metrics, labels, mask, state

    return expected


def adamatch_inputs(method, seed, progress):
    # The network that runs alone has other parameters than the one of the joint batch: as if batch norm differed.
    return fakes.inputs(method, seed=seed, progress=progress, params=fakes.params(method, seed=7))


@pytest.mark.parametrize('temperature', [0.0, 1.0])
@pytest.mark.parametrize('interpolation', [True, False])
def test_adamatch_is_section_3(interpolation, temperature):
    values = {'weight': 0.7, 'temperature': temperature, 'interpolation': interpolation, 'decay': 0.6, 'average': 3}
    method = methods.create('adamatch', values)
    steps = [adamatch_inputs(method, seed, 0.2) for seed in (0, 1, 2, 3)]  # more than fit the average
    state = {'labeled': UNIFORM, 'unlabeled': np.full((3, C), 1 / C)}
    masks, states = check(method, adamatch(method), state, steps)
    assert_mixed(masks)
    assert np.ptp(states[-1]['unlabeled'], axis=0).min() > 0.01


@pytest.mark.parametrize(('progress', 'ramp'), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0)])
def test_adamatch_unlabeled_term_ramps_up_over_half_of_training(progress, ramp):
    method = methods.create('adamatch', {'threshold': 0.5, 'weight': 2.0, 'average': 3})
    inputs = adamatch_inputs(method, 0, progress)
    check(method, adamatch(method), {'labeled': UNIFORM, 'unlabeled': np.full((3, C), 1 / C)}, [inputs])
    result = method.loss(inputs, method.init_state(fakes.SPEC))
    assert result.metrics['loss'] > 0.01
    close(result.loss - result.metrics['loss_labeled'], 2 * ramp * result.metrics['loss'])


def test_adamatch_interpolates_each_logit_with_the_labeled_images_alone():
    method = methods.create('adamatch', {})
    inputs = adamatch_inputs(method, 0, 0.0)
    same = dataclasses.replace(inputs, params=fakes.inputs(method).params)  # both batches agree: nothing to choose
    plain = methods.create('adamatch', {'interpolation': False})
    state = method.init_state(fakes.SPEC)
    close(method.loss(same, state).loss, plain.loss(inputs, state).loss)
    assert abs(method.loss(inputs, state).loss - plain.loss(inputs, state).loss) > 0.01
    other = dataclasses.replace(inputs, key=jax.random.key(4))
    assert abs(method.loss(inputs, state).loss - method.loss(other, state).loss) > 0.01


def test_adamatch_aligns_with_the_classes_predicted_for_labeled_images():
    method = methods.create('adamatch', {'decay': 0.9, 'average': 2, 'interpolation': False})
    start = {'labeled': np.array([0.1, 0.3, 0.6]), 'unlabeled': np.array([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]])}
    steps = [adamatch_inputs(method, seed, 0.5) for seed in (0, 1)]
    _, _ = check(method, adamatch(method), {'labeled': UNIFORM, 'unlabeled': np.full((2, C), 1 / C)}, steps, start)
    labels = method.loss(steps[0], jax.tree.map(jnp.float32, start)).pseudo_labels.labels
    assert (np.array(labels) != outputs(steps[0], WEAK).argmax(-1)).any()


# Dash


def dash(method):
    """The authors' code (idstcv/Dash, dash.py), or the paper's Algorithm 1."""

    def expected(inputs, state):
        n, progress, size = 4, float(inputs.progress), len(state['losses'])
        seen = list(state['losses'])[size - int(state['count']) :]
        rho_0 = np.mean(seen) if seen else np.log(C)
        warming = progress < method.warm_up
        i = 0 if warming else int(np.floor((progress - method.warm_up) * method.decays))
        rho = 1.0001 * method.gamma**-i * rho_0 if method.variant == 'paper' else rho_0 / method.gamma ** (i + 1)
        hard = rho <= method.rho_min and not warming
        rho = max(rho, method.rho_min)
        all_losses, labels, mask = [], [], []
        for weak, strong in weak_and_strong(inputs):
            q = softmax(weak)
            all_losses.append(cross_entropy(q.argmax() if hard else sharpen(q, method.temperature), strong))
            labels.append(q.argmax())
            if method.variant == 'paper':
                mask.append(not warming and all_losses[-1] <= rho)
            else:
                mask.append(warming or cross_entropy(q.argmax(), weak) < rho)
        selected = [loss for loss, used in zip(all_losses, mask, strict=True) if used]
        if method.variant == 'paper':
            total = sum(selected) / n
            labeled = zip(inputs.labels, outputs(inputs, LABELED), strict=True)
            all_losses = [cross_entropy(y, logits) for y, logits in labeled]
        else:
            total = 0.9 * np.mean(selected) if selected else 0
        if warming:
            seen = [*seen, *all_losses][-size:]
            state = {'losses': np.array([0] * (size - len(seen)) + seen), 'count': len(seen)}
        return method.weight * total, {'loss': total, 'threshold': rho}, labels, mask, state

    return expected


DASH = {'code': {'losses': np.zeros(7), 'count': 0}, 'paper': {'losses': np.zeros(5), 'count': 0}}
DASH_VALUES = {'weight': 0.7, 'gamma': 2.0, 'rho_min': 0.3, 'decays': 8.0, 'warm_up': 0.25}


@pytest.mark.parametrize('variant', DASH)
@pytest.mark.parametrize('temperature', [0.5, 1.0])
def test_dash_selects_by_a_threshold_on_the_loss_that_falls(variant, temperature):
    method = methods.create('dash', {**DASH_VALUES, 'variant': variant, 'temperature': temperature})
    progresses = [0.25, 0.3, 0.375, 0.45, 0.5, 0.7, 0.99]  # falls at 0.375 and at 0.5, reaches rho_min after that
    steps = [fakes.inputs(method, seed=seed, progress=p, scale=0.5) for seed, p in enumerate(progresses)]
    masks, states = check(method, dash(method), DASH[variant], steps)
    assert_mixed(masks)
    assert not any(state['count'] for state in states)  # fixed after the warm-up
    thresholds = [float(method.loss(inputs, method.init_state(fakes.SPEC)).metrics['threshold']) for inputs in steps]
    first = {'code': np.log(C) / 2, 'paper': 1.0001 * np.log(C)}[variant]
    close(thresholds, [max(first / 2**i, 0.3) for i in (0, 0, 1, 1, 2, 3, 5)])


@pytest.mark.parametrize('variant', DASH)
def test_dash_uses_hard_labels_once_the_threshold_is_at_its_minimum(variant):
    # The same step with rho just above rho_min, and at it.
    above = methods.create('dash', {**DASH_VALUES, 'variant': variant, 'gamma': 1.0, 'rho_min': 1.9})
    at = dataclasses.replace(above, rho_min=2.5)
    inputs = fakes.inputs(above, seed=2, scale=0.5)
    start = {'losses': np.full_like(DASH[variant]['losses'], 2.0), 'count': len(DASH[variant]['losses'])}
    for method in (above, at):
        masks, _ = check(method, dash(method), DASH[variant], [inputs], start=start)
        assert masks.any()
    state = jax.tree.map(jnp.float32, start)
    assert abs(above.loss(inputs, state).loss - at.loss(inputs, state).loss) > 0.001


@pytest.mark.parametrize('variant', DASH)
def test_dash_takes_the_threshold_from_the_last_losses_of_its_warm_up(variant):
    method = methods.create('dash', {**DASH_VALUES, 'variant': variant})
    progresses = [0.0, 0.1, 0.2, 0.24, 0.25, 0.4]
    steps = [fakes.inputs(method, seed=seed, progress=p, scale=0.3) for seed, p in enumerate(progresses)]
    steps[4] = with_logits(steps[4], strong=2 * steps[4].outputs[WEAK]['logits'])  # so that any pass
    masks, states = check(method, dash(method), DASH[variant], steps)
    assert (masks[:4] == (variant == 'code')).all()  # all of the unlabeled images, or none
    assert [state['count'] for state in states] == {'code': [4, 7, 7, 7, 7, 7], 'paper': [2, 4, 5, 5, 5, 5]}[variant]
    assert masks[4:].any()
    np.testing.assert_array_equal(states[3]['losses'], states[5]['losses'])


def test_dash_averages_over_the_selected_images_and_is_zero_without_any():
    method = methods.create('dash', {'rho_min': 0.05, 'warm_up': 0.0, 'gamma': 1e9})
    weak = np.float32([[9, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])  # -log max q: 0.0002, and 0.55
    inputs = with_logits(fakes.inputs(method), weak=weak, strong=[[0, 0, 1]] * 4)
    state = method.init_state(fakes.SPEC)
    close(method.loss(inputs, state).loss, 0.9 * np.log(2 + np.e))
    close(method.loss(with_logits(inputs, weak=weak[[1, 1, 2, 3]]), state).loss, 0)


def test_dash_falls_when_the_authors_script_does():
    """dash.py with --dt_start_epoch 10 --drop_step 9: gamma^-int((epoch - 1) / 9), all until epoch 10 of 1024."""
    method = methods.create('dash', {'rho_min': 0.0})
    inputs = fakes.inputs(method)
    state = jax.tree.map(jnp.asarray, method.init_state(fakes.SPEC))

    @jax.jit
    def after(progress):
        result = method.loss(dataclasses.replace(inputs, progress=progress), state)
        return result.metrics['threshold'], result.pseudo_labels.mask.mean()

    for epoch in (9, 10, 11, 18, 19, 27, 28, 100, 101):
        threshold, share = after(jnp.float32(epoch / 1024))
        if epoch < 10:
            assert share == 1
        else:
            close(float(threshold), np.log(C) * 1.27 ** -int((epoch - 1) / 9))


# CoMatch


def mean_of_batches_seen(guessed):
    """The official CoMatch keeps a list of the last batches, which begins empty."""
    return np.mean([batch for batch in guessed if batch.any()], axis=0)


COMATCH = {
    'threshold': 0.7,
    'contrast_threshold': 0.6,
    'temperature': 0.4,
    'weight': 0.7,
    'contrast_weight': 1.3,
    'alpha': 0.8,
    'embedding': 5,
    'batches': 2,
    'average': 3,
}
COMATCH_STATE = {
    'guessed': np.zeros((3, C)),
    'embeddings': np.zeros((12, 5)),
    'probabilities': np.zeros((12, C)),
}


def comatch(method, graphs=None):
    def expected(inputs, state):
        n = 4
        p = softmax(outputs(inputs, WEAK))
        guessed = np.stack([*state['guessed'][1:], p.mean(0)])
        p = np.array([proportional(row / mean_of_batches_seen(guessed)) for row in p])
        views = (LABELED, WEAK, STRONG, DISTORTED)
        labeled, weak, strong, distorted = (unit(outputs(inputs, view, 'projection')) for view in views)
        q = p.copy()
        if all(row.sum() > 0 for row in state['probabilities']):  # the memory is full
            for i in range(n):
                a = np.exp([weak[i] @ z / method.temperature for z in state['embeddings']])
                smooth = sum(a_k * p_k for a_k, p_k in zip(a / a.sum(), state['probabilities'], strict=True))
                q[i] = method.alpha * p[i] + (1 - method.alpha) * smooth
        mask = q.max(-1) >= method.threshold
        logits = outputs(inputs, STRONG)
        total = sum(mask[i] * cross_entropy(q[i], logits[i]) for i in range(n)) / n
        graph = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                w = 1 if i == j else q[i] @ q[j]
                graph[i, j] = w if w >= method.contrast_threshold else 0
        if graphs is not None:
            graphs.append(graph.copy())
        contrast = 0
        for i in range(n):
            similarities = np.exp([strong[i] @ distorted[j] / method.temperature for j in range(n)])
            for j in range(n):
                contrast -= graph[i, j] / graph[i].sum() * np.log(similarities[j] / similarities.sum()) / n
        state = {
            'guessed': guessed,
            'embeddings': np.concatenate([state['embeddings'], weak, labeled])[6:],
            'probabilities': np.concatenate([state['probabilities'], p, np.eye(C)[np.array(inputs.labels)]])[6:],
        }
        loss = method.weight * total + method.contrast_weight * contrast
        return loss, {'loss': total, 'loss_contrast': contrast}, q.argmax(-1), mask, state

    return expected


def test_comatch_is_equations_3_to_9_while_the_memory_fills_and_after():
    method = methods.create('comatch', COMATCH)
    graphs = []
    steps = [fakes.inputs(method, seed=seed, scale=0.7) for seed in range(5)]
    masks, states = check(method, comatch(method, graphs), COMATCH_STATE, steps, rtol=1e-4)
    assert_mixed(masks)
    edges = np.array(graphs)[:, ~np.eye(4, dtype=bool)]
    assert (edges > 0).any()
    assert (edges == 0).any()
    full = [(state['probabilities'].sum(-1) > 0).all() for state in states]
    assert full == [False, True, True, True, True]


@pytest.mark.parametrize(('name', 'settings'), [('comatch', COMATCH), ('simmatch', {'embedding': 5, 'threshold': 0.7})])
def test_alignment_averages_only_the_batches_there_have_been(name, settings):
    """From its first step, by three batches of which two predict nearly nothing but class 0.

    An average that began uniform would leave the first prediction nearly as it is, and pass the mask.
    """
    method = methods.create(name, {**settings, 'average': 32, 'embedding': 5})
    state = method.init_state(fakes.SPEC)
    logits = np.float32([[[3, 0, 0]] * 3 + [[2, 1, 0]], [[4, 0, 0]] * 4, [[0, 1, 3]] * 2 + [[1, 0, 0]] * 2])
    seen = []
    for step in logits:
        projection = np.ones((6, 5), np.float32)
        forward = {'logits': jnp.concatenate([jnp.zeros((2, C)), jnp.asarray(step)]), 'projection': projection}
        inputs = fakes.inputs(method, forward=lambda *_, forward=forward: (forward, {}))
        result = method.loss(with_logits(inputs, weak=step), state)
        p = softmax(np.float64(step))
        seen.append(p.mean(0))
        aligned = np.array([proportional(row / np.mean(seen, axis=0)) for row in p])
        if len(seen) == 1:  # before the memory has anything to smooth by
            assert (p.max(-1) >= 0.7).any()
            np.testing.assert_array_equal(result.pseudo_labels.mask, aligned.max(-1) >= 0.7)
            np.testing.assert_array_equal(result.pseudo_labels.labels, aligned.argmax(-1))
        average = np.array(result.state['guessed']).sum(0)
        close(average / average.sum(), np.mean(seen, axis=0))
        state = result.state


def test_comatch_smooths_only_with_a_full_memory():
    method = methods.create('comatch', {**COMATCH, 'alpha': 0.0, 'threshold': 0.0})
    p, states = [], []
    state = method.init_state(fakes.SPEC)
    for seed in range(3):
        result = method.loss(fakes.inputs(method, seed=seed), state)
        p.append(np.array(result.state['probabilities'][-6:-2]))  # aligned, not smoothed
        states.append(np.array(result.pseudo_labels.labels))
        state = result.state
    np.testing.assert_array_equal(states[:2], [row.argmax(-1) for row in p[:2]])
    assert (states[2] != p[2].argmax(-1)).any()


@pytest.mark.parametrize(('contrast_threshold', 'edges'), [(1.0, 'loops'), (0.0, 'all')])
def test_comatch_graph_with_extreme_thresholds(contrast_threshold, edges):
    method = methods.create('comatch', {**COMATCH, 'contrast_threshold': contrast_threshold, 'threshold': 1.0})
    graphs = []
    steps = [fakes.inputs(method, seed=seed) for seed in range(3)]
    masks, _ = check(method, comatch(method, graphs), COMATCH_STATE, steps, rtol=1e-4)
    assert not masks.any()
    assert all((graph > 0).sum() == {'loops': 4, 'all': 16}[edges] for graph in graphs)


# SimMatch

SIMMATCH = {
    'threshold': 0.7,
    'temperature': 0.4,
    'weight': 0.7,
    'instance_weight': 1.3,
    'alpha': 0.8,
    'embedding': 5,
    'average': 3,
}
SIMMATCH_STATE = {
    'guessed': np.zeros((3, C)),
    'embeddings': np.zeros((5, 5)),
    'classes': np.eye(C)[fakes.LABELS],
}


def simmatch(method):
    def expected(inputs, state):
        n, temperature = 4, method.temperature
        ema = double(inputs.ema_params)
        teacher = fakes.network(ema, np.float64(inputs.images[WEAK]))
        labeled = fakes.network(ema, np.float64(inputs.images[LABELED]))
        p = softmax(teacher['logits'])
        guessed = np.stack([*state['guessed'][1:], p.mean(0)])
        p = np.array([proportional(row / mean_of_batches_seen(guessed)) for row in p])
        met = [k for k in range(5) if state['embeddings'][k].any()]
        total = instance = 0
        mask, labels = [], []
        for i in range(n):
            target = p[i]
            if met:
                memory = state['embeddings'][met]
                classes = fakes.LABELS[met]
                q = softmax(memory @ unit(teacher['projection'][i]) / temperature)
                unfolded = proportional(np.array([q_k * p[i][c] for q_k, c in zip(q, classes, strict=True)]))
                aggregated = np.zeros(C)
                for q_k, c in zip(q, classes, strict=True):
                    aggregated[c] += q_k
                target = method.alpha * p[i] + (1 - method.alpha) * aggregated
                student = unit(outputs(inputs, STRONG, 'projection')[i])
                instance += cross_entropy(unfolded, memory @ student / temperature) / n
            labels.append(target.argmax())
            mask.append(target.max() >= method.threshold)
            total += mask[-1] * cross_entropy(target, outputs(inputs, STRONG)[i]) / n
        memory = state['embeddings'].copy()
        memory[inputs.indices['labeled']] = unit(labeled['projection'])
        state = {**state, 'guessed': guessed, 'embeddings': memory}
        loss = method.weight * total + method.instance_weight * instance
        return loss, {'loss': total, 'loss_instance': instance}, labels, mask, state

    return expected


def simmatch_inputs(method, seed, labeled, scale=0.7):
    inputs = with_indices(fakes.inputs(method, seed=seed, scale=scale), labeled=labeled)
    return dataclasses.replace(inputs, labels=jnp.asarray(fakes.LABELS[labeled]))


def test_simmatch_is_equations_3_to_13_while_the_memory_fills_and_after():
    method = methods.create('simmatch', SIMMATCH)
    labeled = [[3, 1], [1, 4], [0, 2], [2, 3], [4, 0]]
    steps = [simmatch_inputs(method, seed, index) for seed, index in enumerate(labeled)]
    masks, states = check(method, simmatch(method), SIMMATCH_STATE, steps, rtol=1e-4)
    assert_mixed(masks)
    assert [int(state['embeddings'].any(-1).sum()) for state in states] == [2, 3, 5, 5, 5]
    assert method.loss(steps[0], method.init_state(fakes.SPEC)).metrics['loss_instance'] == 0


def test_simmatch_memory_follows_the_latest_embedding_of_an_image():
    method = methods.create('simmatch', SIMMATCH)
    steps = [simmatch_inputs(method, seed, [3, 1]) for seed in (0, 1)]
    _, states = check(method, simmatch(method), SIMMATCH_STATE, steps, rtol=1e-4)
    assert (states[0]['embeddings'][[3, 1]] != states[1]['embeddings'][[3, 1]]).all()
    assert not states[1]['embeddings'][[0, 2, 4]].any()


def test_simmatch_memory_holds_a_view_of_an_image_that_occurs_twice():
    method = methods.create('simmatch', SIMMATCH)
    inputs = simmatch_inputs(method, 0, [3, 3])
    memory = np.array(method.loss(inputs, method.init_state(fakes.SPEC)).state['embeddings'])
    embeddings = unit(np.float64(fakes.network(inputs.ema_params, inputs.images[LABELED])['projection']))
    assert np.abs(memory[3] - embeddings).max(-1).min() < 1e-5
    assert not memory[[0, 1, 2, 4]].any()


def test_simmatch_without_aggregation_learns_from_the_aligned_prediction():
    method = methods.create('simmatch', {**SIMMATCH, 'alpha': 1.0})
    start = {**SIMMATCH_STATE, 'embeddings': np.float32(unit(np.random.default_rng(0).normal(size=(5, 5))))}
    steps = [simmatch_inputs(method, seed, [3, 1]) for seed in (0, 1)]
    check(method, simmatch(method), SIMMATCH_STATE, steps, start=start, rtol=1e-4)


def test_simmatch_aggregation_can_change_the_label():
    method = methods.create('simmatch', {**SIMMATCH, 'alpha': 0.0, 'threshold': 0.5})
    start = {**SIMMATCH_STATE, 'embeddings': np.float32(unit(np.random.default_rng(0).normal(size=(5, 5))))}
    inputs = simmatch_inputs(method, 0, [3, 1])
    check(method, simmatch(method), SIMMATCH_STATE, [inputs], start=start, rtol=1e-4)
    labels = [
        np.array(method.loss(inputs, jax.tree.map(jnp.float32, state)).pseudo_labels.labels)
        for state in (start, SIMMATCH_STATE)
    ]
    assert (labels[0] != labels[1]).any()


# All of them


@pytest.mark.parametrize('name', ['uda', 'fixmatch', 'flexmatch', 'comatch', 'simmatch'])
@pytest.mark.parametrize(('threshold', 'passes'), [(0.5, True), (0.501, False)])
def test_a_confidence_of_exactly_the_threshold_passes(name, threshold, passes):
    method = methods.create(name, {'threshold': threshold})
    half = [HALF] * 4
    inputs = with_logits(fakes.inputs(method), weak=half)

    def forward(params, images, draw=''):
        return {'logits': jnp.tile(HALF, (len(images), 1)), 'projection': jnp.ones((len(images), 128))}, {}

    state = method.init_state(fakes.SPEC)
    result = method.loss(dataclasses.replace(inputs, forward=forward), state)
    if name == 'flexmatch':  # all thresholds are 0 in its first step: it is the count that shows
        assert (np.array(result.state['counts']) == [4 * passes, 0, 0]).all()
    else:
        assert (np.array(result.pseudo_labels.mask) == passes).all()
        assert (result.metrics['loss'] > 0) == passes


def test_freematch_passes_a_confidence_of_exactly_its_threshold():
    method = methods.create('freematch', {'decay': 0.0})
    result = method.loss(with_logits(fakes.inputs(method), weak=[HALF] * 4), method.init_state(fakes.SPEC))
    assert result.metrics['threshold'] == 0.5
    assert np.array(result.pseudo_labels.mask).all()


@pytest.mark.parametrize(
    ('variant', 'above', 'passes'),
    [('paper', 0, True), ('paper', -0.001, False), ('code', 0, False), ('code', 0.001, True)],
)
def test_dash_passes_a_loss_of_exactly_its_threshold_in_the_paper_and_not_in_the_code(variant, above, passes):
    rho = float(np.log(np.float32(2))) + above
    method = methods.create('dash', {'rho_min': rho, 'gamma': 9.0, 'decays': 9.0, 'warm_up': 0.0, 'variant': variant})
    weak = {'paper': [[5, 0, 0]] * 4, 'code': [HALF] * 4}[variant]
    inputs = with_logits(fakes.inputs(method), weak=weak, strong=[HALF] * 4)
    assert (np.array(method.loss(inputs, method.init_state(fakes.SPEC)).pseudo_labels.mask) == passes).all()


ALL = {
    'uda': [{}],
    'fixmatch': [{}, {'temperature': 0.5, 'alignment': True}],
    'flexmatch': [{}],
    'freematch': [{}, {'decay': 0.0}],
    'softmatch': [{}, {'alignment': False}],
    'adamatch': [{}, {'interpolation': False}],
    'dash': [{'warm_up': 0.0, 'rho_min': 2.0, 'variant': variant} for variant in ('code', 'paper')],
    'comatch': [{'embedding': 5, 'batches': 1}],
    'simmatch': [{'embedding': 5}],
}
CASES = [pytest.param(name, values, id=f'{name}-{i}') for name, cases in ALL.items() for i, values in enumerate(cases)]
# Outputs that a method learns through; of all others it takes labels, weights and state only.
LEARNED = {
    'adamatch': {(LABELED, 'logits'), (LABELED_STRONG, 'logits'), (STRONG, 'logits')},
    'comatch': {
        (STRONG, 'logits'),
        (STRONG, 'projection'),
        (DISTORTED, 'projection'),
    },
    'simmatch': {(STRONG, 'logits'), (STRONG, 'projection')},
}


def second_state(method, **changes):
    """The state after one step, so that memories are not empty."""
    return method.loss(fakes.inputs(method, seed=9, **changes), method.init_state(fakes.SPEC)).state


def loss_of(method, inputs, state, fields):
    """The loss as a function of some fields of the inputs."""
    return lambda values: method.loss(dataclasses.replace(inputs, **dict(zip(fields, values, strict=True))), state).loss


@pytest.mark.parametrize(('name', 'values'), CASES)
def test_no_gradient_flows_through_labels(name, values):
    method = methods.create(name, values)
    if hasattr(method, 'threshold'):
        method = dataclasses.replace(method, threshold=0.4)
    inputs = fakes.inputs(method)
    loss = loss_of(method, inputs, second_state(method), ['outputs', 'ema_params'])
    gradients, of_teacher = jax.grad(loss)((inputs.outputs, inputs.ema_params))
    flows = {(view, key) for view, heads in gradients.items() for key, g in heads.items() if np.abs(g).max() > 0}
    assert flows == LEARNED.get(name, {(STRONG, 'logits')})
    assert not any(np.abs(g).max() for g in of_teacher.values())


def test_adamatch_labeled_logits_learn_from_labels_alone():
    method = methods.create('adamatch', {'interpolation': False, 'threshold': 0.5})
    inputs = fakes.inputs(method, progress=0.5)
    loss = loss_of(method, inputs, method.init_state(fakes.SPEC), ['outputs'])
    (gradients,) = jax.grad(loss)((inputs.outputs,))
    for view in (LABELED, LABELED_STRONG):
        error = softmax(outputs(inputs, view)) - np.eye(C)[np.array(inputs.labels)]
        close(gradients[view]['logits'], error / 4)  # two images, half of the loss each view


@pytest.mark.parametrize('scale', [0.0, 50.0])
@pytest.mark.parametrize(('name', 'values'), CASES)
def test_gradients_and_states_are_finite_at_extreme_logits(name, values, scale):
    method = methods.create(name, values)
    inputs = fakes.inputs(method, scale=scale)
    views = {view: inputs.images[view] for view in method.views()}

    def loss(params, state):
        new = {view: fakes.network(params, images) for view, images in views.items()}
        result = method.loss(dataclasses.replace(inputs, params=params, outputs=new), state)
        return result.loss, result.state

    for state in (method.init_state(fakes.SPEC), second_state(method, scale=scale)):
        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(inputs.params, state)
        for leaf in jax.tree.leaves((value, new, gradient)):
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize('name', [name for name in ALL if name != 'simmatch'])
@pytest.mark.parametrize(
    ('word', 'weak', 'strong'),
    [('joint', 'joint', 'joint'), ('no_grad', 'no_grad', 'joint'), ('separate', 'joint', 'separate')],
)
def test_one_word_says_which_statistics_normalise_the_views(name, word, weak, strong):
    for view, policy in methods.create(name, {'statistics': word}).views().items():
        expected = {WEAK: weak, LABELED: 'joint'}.get(view, strong)
        assert policy == expected, view
