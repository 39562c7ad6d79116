"""Methods whose weak view teaches the strong view, against NumPy.

What is expected is written from the papers' equations in float64. Only random draws come from JAX, by the same keys.
"""

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import methods
from methods.base import JOINT, NO_GRAD

WANTED = np.array([0.4, 0.4, 0.2])  # the frequencies of fakes.LABELS
UNIFORM = np.full(3, 1 / 3)
SURE_AND_EVEN = np.float32([[0, 0, -200], [0, 200, 0], [1, 0, 0.5], [-200, 0, 0]])  # max q: 1/2 exactly, 1, 0.51, 1/2
NAMES = ['uda', 'fixmatch', 'flexmatch', 'freematch', 'softmatch', 'adamatch', 'dash', 'comatch', 'simmatch']


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(p, logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return -(p * (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))).sum(-1)


def one_hot(classes):
    return np.eye(3)[np.asarray(classes)]


def sharpen(p, temperature):
    if temperature == 0:
        return one_hot(p.argmax(-1))
    return np.array([row ** (1 / temperature) / sum(row ** (1 / temperature)) for row in p])


def scaled(rows):
    return rows / rows.sum(-1, keepdims=True)


def unit(vectors):
    return vectors / np.sqrt((vectors**2).sum(-1, keepdims=True))


def output(inputs, view, name='logits'):
    """What the network says of a view, in float64."""
    return np.float64(inputs.images[view]).reshape(len(inputs.images[view]), -1) @ np.float64(inputs.params[name])


def weak_and_strong(inputs):
    return softmax(output(inputs, 'unlabeled.weak')), output(inputs, 'unlabeled.strong')


def with_logits(inputs, view, logits):
    outputs = {**inputs.outputs, view: {**inputs.outputs[view], 'logits': jnp.float32(logits)}}
    return dataclasses.replace(inputs, outputs=outputs)


def check(result, loss, metrics, labels, mask, state):
    """Compares everything that a method returns."""
    assert set(result.metrics) == set(metrics)
    for name, value in metrics.items():
        close(result.metrics[name], value)
    close(result.loss, loss)
    np.testing.assert_array_equal(result.pseudo_labels.labels, labels)
    close(result.pseudo_labels.mask, mask)
    jax.tree.map(close, result.state, state)
    assert result.batch_stats is None


def mixed(masks):
    """Whether there are images that pass and images that do not."""
    values = np.concatenate([np.ravel(mask) for mask in masks])
    return (values == 1).any() and (values < 1).any()


# UDA


@pytest.mark.parametrize(('threshold', 'temperature'), [(0.8, 0.4), (0.8, 1.0), (0.9, 0.0)])
def test_uda_is_the_masked_divergence_from_sharpened_predictions(threshold, temperature):
    method = methods.create('uda', {'threshold': threshold, 'temperature': temperature, 'weight': 0.7})
    masks = []
    for seed in range(3):
        inputs = fakes.inputs(method, seed=seed)
        p, strong = weak_and_strong(inputs)
        mask = p.max(-1) >= threshold  # of the prediction before it is sharpened
        loss = 0.0
        for i, target in enumerate(sharpen(p, temperature)):
            for c in range(3):
                if mask[i] and target[c] > 0:
                    loss += target[c] * (np.log(target[c]) - np.log(softmax(strong[i])[c])) / 4
        check(method.loss(inputs, ()), 0.7 * loss, {'loss': loss}, p.argmax(-1), mask, ())
        masks.append(mask)
    assert mixed(masks)


def test_uda_masks_by_the_prediction_before_it_is_sharpened():
    method = methods.create('uda', {'threshold': 0.6, 'temperature': 0.1})
    inputs = with_logits(fakes.inputs(method), 'unlabeled.weak', SURE_AND_EVEN)
    assert (sharpen(softmax(np.float64(SURE_AND_EVEN)), 0.1).max(-1) >= 0.6).sum() == 2
    np.testing.assert_array_equal(method.loss(inputs, ()).pseudo_labels.mask, [0, 1, 0, 0])


@pytest.mark.parametrize('name', ['uda', 'fixmatch'])
@pytest.mark.parametrize(('threshold', 'mask'), [(0.5, [1, 1, 1, 1]), (0.505, [0, 1, 1, 0]), (1.0, [0, 1, 0, 0])])
def test_a_prediction_that_just_reaches_the_threshold_passes(name, threshold, mask):
    method = methods.create(name, {'threshold': threshold})
    inputs = with_logits(fakes.inputs(method), 'unlabeled.weak', SURE_AND_EVEN)
    np.testing.assert_array_equal(method.loss(inputs, method.init_state(fakes.SPEC)).pseudo_labels.mask, mask)


@pytest.mark.parametrize('name', ['uda', 'fixmatch', 'flexmatch', 'adamatch', 'comatch', 'simmatch'])
def test_without_passing_pseudo_labels_the_main_term_is_zero(name):
    method = methods.create(name, {'threshold': 1.01})
    inputs = fakes.inputs(method, scale=0.3)
    state = method.init_state(fakes.SPEC)
    if name == 'flexmatch':  # every class is learned as well
        state = {'labels': jnp.int32([0, 0, 1, 1, 2, 2, -1]), 'counts': jnp.int32([2, 2, 2])}
    if name == 'adamatch':  # the threshold is relative
        method = methods.create(name, {'threshold': 3.01})
    result = method.loss(inputs, state)
    assert not result.pseudo_labels.mask.any()
    assert result.metrics['loss'] == 0


# FixMatch


@pytest.mark.parametrize(('temperature', 'alignment'), [(0.5, False), (1.0, False), (0.0, True), (0.5, True)])
def test_fixmatch_learns_soft_labels_and_aligns_with_the_batches_before(temperature, alignment):
    fields = {'threshold': 0.7, 'weight': 0.7, 'temperature': temperature, 'alignment': alignment}
    method = methods.create('fixmatch', fields)
    state, memory, masks, changed = method.init_state(fakes.SPEC), [UNIFORM] * 128, [], 0
    if alignment:  # a history in which the classes were not predicted equally often
        memory = [np.array([0.6, 0.3, 0.1])] * 127 + [np.array([0.1, 0.1, 0.8])]
        state = {**state, 'guessed': jnp.float32(memory)}
    for seed in range(3):
        inputs = fakes.inputs(method, seed=seed)
        q, strong = weak_and_strong(inputs)
        raw = q
        if alignment:
            q = scaled(q * WANTED / np.mean(memory, axis=0))
            memory = [*memory[1:], raw.mean(0)]
        mask = q.max(-1) >= 0.7
        changed += ((raw.max(-1) >= 0.7) != mask).sum() + (raw.argmax(-1) != q.argmax(-1)).sum()
        loss = sum(mask * cross_entropy(sharpen(q, temperature), strong)) / 4
        new = {'wanted': WANTED, 'guessed': np.array(memory)} if alignment else {}
        result = method.loss(inputs, state)
        check(result, 0.7 * loss, {'loss': loss}, q.argmax(-1), mask, new)
        state = result.state
        masks.append(mask)
    assert mixed(masks)
    assert bool(changed) == alignment


def test_fixmatch_alignment_starts_uniform():
    state = methods.create('fixmatch', {'alignment': True}).init_state(fakes.SPEC)
    close(state['wanted'], WANTED)
    close(state['guessed'], np.full((128, 3), 1 / 3))
    assert methods.create('fixmatch', {}).init_state(fakes.SPEC) == {}


# FlexMatch


def flexmatch_thresholds(labels, threshold, warm_up):
    """Equations 5-7, 10 and 11."""
    sigma = [sum(label == c for label in labels) for c in range(3)]
    largest = max(*sigma, sum(label == -1 for label in labels)) if warm_up else max(sigma)
    beta = [s / largest if largest else 0.0 for s in sigma]
    return np.array([threshold * b / (2 - b) for b in beta]), sigma


@pytest.mark.parametrize('warm_up', [True, False])
def test_flexmatch_lowers_the_threshold_of_classes_not_yet_learned(warm_up):
    method = methods.create('flexmatch', {'threshold': 0.9, 'weight': 0.7, 'warm_up': warm_up})
    state, labels, masks, differ = method.init_state(fakes.SPEC), [-1] * 7, [], 0
    np.testing.assert_array_equal(state['labels'], labels)
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(7)[:4].astype(np.int32)
        indices = {**fakes.INDICES, 'unlabeled': jnp.asarray(order)}
        inputs = fakes.inputs(method, seed=seed, scale=0.7, indices=indices)
        q, strong = weak_and_strong(inputs)
        thresholds, _ = flexmatch_thresholds(labels, 0.9, warm_up)  # before the step
        mask = np.array([row.max() >= thresholds[row.argmax()] for row in q])
        loss = sum(mask * cross_entropy(one_hot(q.argmax(-1)), strong)) / 4
        for i, row in zip(order, q, strict=True):
            if row.max() >= 0.9:
                labels[i] = row.argmax()
        after, counts = flexmatch_thresholds(labels, 0.9, warm_up)
        differ += (np.array([row.max() >= after[row.argmax()] for row in q]) != mask).sum()
        result = method.loss(inputs, state)
        new = {'labels': np.array(labels), 'counts': np.array(counts)}
        check(result, 0.7 * loss, {'loss': loss}, q.argmax(-1), mask, new)
        state = result.state
        masks.append(mask)
    assert mixed(masks)
    assert differ, 'thresholds after the step would give the same masks'


@pytest.mark.parametrize(
    ('labels', 'warm_up', 'expected'),
    [
        ([-1, -1, -1, -1, -1, -1, -1], True, [0, 0, 0]),
        ([-1, -1, -1, -1, -1, -1, -1], False, [0, 0, 0]),
        ([-1, -1, -1, -1, 0, 0, 1], True, [1 / 3, 1 / 7, 0]),  # beta is 2/4, 1/4, 0
        ([-1, -1, -1, -1, 0, 0, 1], False, [1, 1 / 3, 0]),
        ([-1, -1, 0, 0, 0, 1, 2], True, [1, 1 / 5, 1 / 5]),  # fewer without a label than of class 0
    ],
)
def test_flexmatch_thresholds_at_hand_made_counts(labels, warm_up, expected):
    """Each class's threshold is 0.9 times `expected`: predictions just above it pass, those just below do not."""
    method = methods.create('flexmatch', {'threshold': 0.9, 'warm_up': warm_up})
    close(flexmatch_thresholds(labels, 0.9, warm_up)[0], 0.9 * np.array(expected))
    counts = [labels.count(c) for c in range(3)]
    state = {'labels': jnp.int32(labels), 'counts': jnp.int32(counts)}
    for c, threshold in enumerate(0.9 * np.array(expected)):
        for confidence in (threshold - 1e-3, threshold + 1e-3):
            if confidence < 0.34:
                confidence = 0.34  # the least that the likeliest of three classes has
            p = np.full(3, (1 - confidence) / 2)
            p[c] = confidence
            inputs = with_logits(fakes.inputs(method), 'unlabeled.weak', np.log([p] * 4))
            np.testing.assert_array_equal(method.loss(inputs, state).pseudo_labels.mask, [confidence >= threshold] * 4)


def test_flexmatch_keeps_the_label_of_an_image_that_is_no_longer_confident():
    method = methods.create('flexmatch', {'threshold': 0.5})
    state = {'labels': jnp.int32([2, -1, -1, 1, -1, 2, -1]), 'counts': jnp.int32([0, 1, 2])}
    # Images 5, 0, 2, 6: 0 gets another label, 5 and 2 just reach the threshold, 6 does not and has none.
    logits = np.float32([[0, 0, -200], [0, 200, 0], [-200, 0, 0], [0, 0.1, 0]])
    result = method.loss(with_logits(fakes.inputs(method), 'unlabeled.weak', logits), state)
    np.testing.assert_array_equal(result.state['labels'], [1, -1, 1, 1, -1, 0, -1])
    np.testing.assert_array_equal(result.state['counts'], [1, 3, 0])
    result = method.loss(with_logits(fakes.inputs(method), 'unlabeled.weak', np.zeros((4, 3))), result.state)
    np.testing.assert_array_equal(result.state['labels'], [1, -1, 1, 1, -1, 0, -1])
    np.testing.assert_array_equal(result.state['counts'], [1, 3, 0])


@pytest.mark.parametrize('confident', [0, 1])
def test_flexmatch_counts_an_image_that_is_in_the_batch_twice_once(confident):
    method = methods.create('flexmatch', {'threshold': 0.9})
    logits = np.zeros((4, 3), np.float32)
    logits[confident, 2] = 20
    inputs = fakes.inputs(method, indices={**fakes.INDICES, 'unlabeled': jnp.int32([4, 4, 1, 3])})
    result = method.loss(with_logits(inputs, 'unlabeled.weak', logits), method.init_state(fakes.SPEC))
    np.testing.assert_array_equal(result.state['labels'], [-1, -1, -1, -1, 2, -1, -1])
    np.testing.assert_array_equal(result.state['counts'], [0, 0, 1])


# FreeMatch


def freematch(q, strong, state, decay):
    """Equations 5-12. Returns the new state, the mask, the loss and the fairness term."""
    histogram = sum(one_hot(row.argmax()) for row in q) / len(q)
    confidence = decay * state['confidence'] + (1 - decay) * q.max(-1).mean()
    p = decay * state['p'] + (1 - decay) * q.mean(0)
    h = decay * state['histogram'] + (1 - decay) * histogram
    mask = np.array([row.max() >= confidence * p[row.argmax()] / p.max() for row in q])
    loss = sum(mask * cross_entropy(one_hot(q.argmax(-1)), strong)) / len(q)
    fairness = 0.0
    if mask.any():
        passing = softmax(strong)[mask]
        counts = np.array([sum(row.argmax() == c for row in passing) for c in range(3)])
        found = np.array([m / n if n else 0.0 for m, n in zip(passing.mean(0), counts, strict=True)])
        fairness = sum(scaled(p / h) * np.log(scaled(found) + 1e-12))  # 1e-12 as in the official code
    return {'confidence': confidence, 'p': p, 'histogram': h}, mask, loss, fairness


def test_freematch_adapts_its_thresholds_and_adds_fairness():
    method = methods.create('freematch', {'weight': 0.7, 'fairness_weight': 0.3, 'decay': 0.6})
    state = method.init_state(fakes.SPEC)
    expected = {'confidence': 1 / 3, 'p': UNIFORM, 'histogram': UNIFORM}
    jax.tree.map(close, state, expected)
    masks, found = [], set()
    for seed in range(8):
        inputs = fakes.inputs(method, seed=seed, scale=0.7)
        q, strong = weak_and_strong(inputs)
        expected, mask, loss, fairness = freematch(q, strong, expected, 0.6)
        metrics = {'loss': loss, 'loss_fairness': fairness, 'threshold': expected['confidence']}
        result = method.loss(inputs, state)
        check(result, 0.7 * loss + 0.3 * fairness, metrics, q.argmax(-1), mask, expected)
        state = result.state
        masks.append(mask)
        found.add(len({*strong[mask].argmax(-1)}))
    assert mixed(masks)
    assert found >= {2, 3}, 'in some batches a class has to be missing, in some none'


def test_freematch_fairness_at_hand_made_predictions():
    """All pass; p / h is uniform; every class is predicted by the strong views as often as it is likely."""
    method = methods.create('freematch', {'decay': 1.0})
    strong = np.log(np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7]]))
    inputs = with_logits(fakes.inputs(method), 'unlabeled.weak', SURE_AND_EVEN)
    result = method.loss(with_logits(inputs, 'unlabeled.strong', strong), method.init_state(fakes.SPEC))
    np.testing.assert_array_equal(result.pseudo_labels.mask, [1, 1, 1, 1])
    found = scaled(np.array([1.3 / 2, 1.4 / 1, 1.3 / 1]))
    close(result.metrics['loss_fairness'], np.log(found).mean())


def test_freematch_has_no_loss_and_no_gradient_where_nothing_passes():
    method = methods.create('freematch', {'fairness_weight': 0.3})
    state = {'confidence': jnp.float32(0.9), 'p': jnp.float32(UNIFORM), 'histogram': jnp.float32(UNIFORM)}
    inputs = with_logits(fakes.inputs(method), 'unlabeled.weak', np.zeros((4, 3)))

    def loss(logits):
        return method.loss(with_logits(inputs, 'unlabeled.strong', logits), state).loss

    result = method.loss(inputs, state)
    q, strong = np.full((4, 3), 1 / 3), output(inputs, 'unlabeled.strong')
    new, mask, _, _ = freematch(q, strong, jax.tree.map(np.float64, state), 0.999)
    assert not mask.any()
    metrics = {'loss': 0, 'loss_fairness': 0, 'threshold': new['confidence']}
    check(result, 0, metrics, [0, 0, 0, 0], mask, new)
    assert not jax.grad(loss)(jnp.float32(strong)).any()


# SoftMatch


@pytest.mark.parametrize(('alignment', 'sigmas'), [(True, 2.0), (False, 2.0), (True, 1.0)])
def test_softmatch_weights_by_a_truncated_gaussian(alignment, sigmas):
    method = methods.create('softmatch', {'weight': 0.7, 'sigmas': sigmas, 'decay': 0.7, 'alignment': alignment})
    state = method.init_state(fakes.SPEC)
    mean, var, average = 1 / 3, 1.0, UNIFORM
    jax.tree.map(close, state, {'mean': mean, 'var': var, 'q': average})
    weights, differ = [], 0
    for seed in range(4):
        inputs = fakes.inputs(method, seed=seed, scale=0.5)
        q, strong = weak_and_strong(inputs)
        confidence = q.max(-1)
        batch = sum(confidence) / 4
        mean = 0.7 * mean + 0.3 * batch
        var = 0.7 * var + 0.3 * sum((confidence - batch) ** 2) / (4 - 1)
        average = 0.7 * average + 0.3 * q.mean(0)
        aligned = scaled(q * (1 / 3) / average) if alignment else q
        differ += (aligned.argmax(-1) != q.argmax(-1)).any() or not np.allclose(aligned.max(-1), confidence)
        weight = np.ones(4)
        for i, row in enumerate(aligned):
            if row.max() < mean:
                weight[i] = np.exp(-((row.max() - mean) ** 2) / (2 * var / sigmas**2))
        loss = sum(weight * cross_entropy(one_hot(q.argmax(-1)), strong)) / 4
        result = method.loss(inputs, state)
        new = {'mean': mean, 'var': var, 'q': average}
        check(result, 0.7 * loss, {'loss': loss, 'threshold': mean}, q.argmax(-1), weight, new)
        state = result.state
        weights.append(weight)
    assert mixed(weights)
    assert np.min(weights) < 0.95
    assert bool(differ) == alignment


def test_softmatch_labels_are_those_before_alignment():
    method = methods.create('softmatch', {'decay': 1.0})
    state = {'mean': jnp.float32(0.5), 'var': jnp.float32(0.1), 'q': jnp.float32([0.8, 0.1, 0.1])}
    p = np.array([[0.6, 0.3, 0.1]] * 4)
    result = method.loss(with_logits(fakes.inputs(method), 'unlabeled.weak', np.log(p)), state)
    np.testing.assert_array_equal(result.pseudo_labels.labels, 0)  # aligned: 0.16, 0.63, 0.21
    np.testing.assert_array_equal(result.pseudo_labels.mask, 1)


# AdaMatch


def centred(params, images):
    """A network whose output depends on the batch, as with batch norm."""
    return fakes.forward(params, images - images.mean(0))


@pytest.mark.parametrize(('interpolation', 'temperature'), [(True, 0.0), (False, 0.0), (True, 1.0), (False, 0.5)])
def test_adamatch_is_section_3(interpolation, temperature):
    fields = {'temperature': temperature, 'weight': 0.7, 'interpolation': interpolation, 'decay': 0.6, 'average': 3}
    method = methods.create('adamatch', fields)
    state = method.init_state(fakes.SPEC)
    labeled, memory = UNIFORM, [UNIFORM] * 3
    jax.tree.map(close, state, {'labeled': labeled, 'unlabeled': np.array(memory)})
    masks, changed = [], 0
    # At 0, 1/4, 1/2, 1 and in between; more steps than the memory holds.
    for seed, (progress, ramp) in enumerate([(0, 0), (1 / 4, 1 / 2), (1 / 6, 1 / 4), (1 / 2, 1), (3 / 4, 1), (1, 1)]):
        key = jax.random.key(seed)
        inputs = fakes.inputs(method, seed=seed, scale=0.7, progress=progress, key=key, forward=centred)
        weak, strong = output(inputs, 'labeled.weak'), output(inputs, 'labeled.strong')
        if interpolation:
            both = np.concatenate([np.float64(inputs.images[f'labeled.{view}']) for view in ('weak', 'strong')])
            alone = (both - both.mean(0)).reshape(4, -1) @ np.float64(inputs.params['logits'])
            share = np.float64(jax.random.uniform(key, (4, 3)))
            weak = share[:2] * weak + (1 - share[:2]) * alone[:2]
            strong = share[2:] * strong + (1 - share[2:]) * alone[2:]
        truth = one_hot(inputs.labels)
        labeled_loss = (cross_entropy(truth, weak) + cross_entropy(truth, strong)).sum() / 4
        p = softmax(weak)
        raw, strong = weak_and_strong(inputs)
        labeled = 0.6 * labeled + 0.4 * p.mean(0)
        memory = [*memory[1:], raw.mean(0)]
        q = scaled(raw * labeled / np.mean(memory, axis=0))
        threshold = 0.9 * p.max(-1).mean()
        mask = q.max(-1) >= threshold
        changed += ((raw.max(-1) >= threshold) != mask).sum() + (raw.argmax(-1) != q.argmax(-1)).sum()
        loss = sum(mask * cross_entropy(sharpen(q, temperature), strong)) / 4
        metrics = {'loss': loss, 'loss_labeled': labeled_loss, 'threshold': threshold}
        new = {'labeled': labeled, 'unlabeled': np.array(memory)}
        result = method.loss(inputs, state)
        check(result, labeled_loss + 0.7 * ramp * loss, metrics, q.argmax(-1), mask, new)
        state = result.state
        masks.append(mask)
    assert mixed(masks)
    assert changed, 'alignment changed nothing'


def test_adamatch_interpolates_with_the_labeled_images_alone():
    method, seen = methods.create('adamatch', {}), []

    def forward(params, images):
        seen.append(np.asarray(images))
        return fakes.forward(params, images)

    inputs = fakes.inputs(method, forward=forward)
    method.loss(inputs, method.init_state(fakes.SPEC))
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0][:2], inputs.images['labeled.weak'])
    np.testing.assert_array_equal(seen[0][2:], inputs.images['labeled.strong'])


# Dash


@pytest.mark.parametrize('select', ['strong', 'weak'])
@pytest.mark.parametrize('temperature', [0.5, 1.0])
def test_dash_selects_by_a_threshold_on_the_loss_that_falls(select, temperature):
    fields = {'weight': 0.7, 'temperature': temperature, 'C': 1.1, 'gamma': 2.0, 'rho_min': 0.2, 'decays': 10.0}
    method = methods.create('dash', {**fields, 'warm_up': 0.125, 'select': select})
    state, rho_0, masks, hard = method.init_state(fakes.SPEC), np.log(3), [], []
    close(state['rho_0'], rho_0)
    # (progress, number of decays; None in the warm-up); the warm-up ends at 1/8 exactly
    steps = [(0.0, None), (0.0625, None), (0.124, None), (0.125, 0), (0.2, 0), (0.23, 1), (0.33, 2), (0.6, 4), (1, 8)]
    for seed, (progress, decays) in enumerate(steps):
        inputs = fakes.inputs(method, seed=seed, progress=progress, scale=0.7)
        if decays is None:
            z = output(inputs, 'labeled.weak')
            rho_0 = 0.9 * rho_0 + 0.1 * cross_entropy(one_hot(inputs.labels), z).mean()
        rho = max(1.1 * 2.0 ** -(decays or 0) * rho_0, 0.2)
        q, strong = weak_and_strong(inputs)
        label = sharpen(q, 0 if rho <= 0.2 else temperature)
        losses = cross_entropy(label, strong)
        compared = losses if select == 'strong' else cross_entropy(label, output(inputs, 'unlabeled.weak'))
        mask = (compared <= rho) & (decays is not None)
        loss = sum(mask * losses) / 4
        result = method.loss(inputs, state)
        check(result, 0.7 * loss, {'loss': loss, 'threshold': rho}, q.argmax(-1), mask, {'rho_0': rho_0})
        state = result.state
        if decays is not None:
            masks.append(mask)
            hard.append(rho <= 0.2)
    assert mixed(masks)
    assert mixed([np.float64(hard)])
    assert any(mask.any() for mask, is_hard in zip(masks, hard, strict=True) if is_hard)


def test_dash_falls_as_often_as_in_the_paper():
    """Every 10 of 1024 epochs by 1.27, from 1.0001 rho_0, after the warm-up."""
    method = methods.create('dash', {})
    for epochs in (5, 15, 25, 95):
        inputs = fakes.inputs(method, progress=1 / 512 + epochs / 1024)
        rho = method.loss(inputs, {'rho_0': jnp.float32(2.0)}).metrics['threshold']
        close(rho, max(1.0001 * 1.27 ** -(epochs // 10) * 2, 0.05))


def test_dash_selects_all_or_none_at_extreme_thresholds():
    for rho_0, expected in ((1e6, 1), (0.0, 0)):
        method = methods.create('dash', {'rho_min': 1e-9})
        result = method.loss(fakes.inputs(method), {'rho_0': jnp.float32(rho_0)})
        np.testing.assert_array_equal(result.pseudo_labels.mask, [expected] * 4)


# CoMatch


def comatch(inputs, memory, fields):
    """Equations 3-9. memory: 'guessed', 'embeddings' and 'probabilities', lists, oldest first; it is changed."""
    z, z1, z2 = (unit(output(inputs, f'unlabeled.{v}', 'projection')) for v in ('weak', 'strong', 'strong2'))
    raw, strong = weak_and_strong(inputs)
    memory['guessed'] = [*memory['guessed'], raw.mean(0)][-fields['average'] :]
    p = scaled(raw / np.mean(memory['guessed'], axis=0))
    q, alpha, t = p.copy(), fields['alpha'], fields['temperature']
    size = fields['batches'] * 6
    if len(memory['embeddings']) == size:
        for b in range(4):
            a = np.array([np.exp(z[b] @ z_k / t) for z_k in memory['embeddings']])
            q[b] = alpha * p[b] + (1 - alpha) * sum(w * p_k for w, p_k in zip(a, memory['probabilities'])) / a.sum()
    mask = q.max(-1) >= fields['threshold']
    loss = sum(mask * cross_entropy(q, strong)) / 4
    graph = np.array([[1.0 if i == j else q[i] @ q[j] for j in range(4)] for i in range(4)])
    graph[graph < fields['contrast_threshold']] = 0
    contrast_loss = sum(cross_entropy(scaled(graph), z1 @ z2.T / t)) / 4
    embeddings = [*z, *unit(output(inputs, 'labeled.weak', 'projection'))]
    memory['embeddings'] = [*memory['embeddings'], *embeddings][-size:]
    memory['probabilities'] = [*memory['probabilities'], *p, *one_hot(inputs.labels)][-size:]
    return q, mask, loss, contrast_loss, graph


@pytest.mark.parametrize('batches', [1, 2])
def test_comatch_smooths_once_the_memory_is_full_and_compares_graphs(batches):
    fields = {'threshold': 0.75, 'contrast_threshold': 0.4, 'temperature': 0.3, 'alpha': 0.7}
    fields |= {'embedding': 4, 'batches': batches, 'average': 3}
    method = methods.create('comatch', {**fields, 'weight': 0.7, 'contrast_weight': 0.3})
    assert method.heads() == {'projection': (8, 4)}
    state = method.init_state(fakes.SPEC)
    assert jax.tree.map(np.shape, state) == {
        'guessed': (3, 3),
        'embeddings': (6 * batches, 4),
        'probabilities': (6 * batches, 3),
    }
    memory = {'guessed': [UNIFORM] * 3, 'embeddings': [], 'probabilities': []}
    masks, edges = [], []
    for seed in range(5):
        inputs = fakes.inputs(method, seed=seed, scale=0.7)
        q, mask, loss, contrast_loss, graph = comatch(inputs, memory, fields)
        result = method.loss(inputs, state)
        missing = 6 * batches - len(memory['embeddings'])
        new = {
            'guessed': np.array(memory['guessed']),
            'embeddings': np.array([np.zeros(4)] * missing + memory['embeddings']),
            'probabilities': np.array([np.zeros(3)] * missing + memory['probabilities']),
        }
        metrics = {'loss': loss, 'loss_contrast': contrast_loss}
        check(result, 0.7 * loss + 0.3 * contrast_loss, metrics, q.argmax(-1), mask, new)
        state = result.state
        masks.append(mask)
        edges.append(graph[~np.eye(4, dtype=bool)] > 0)
    assert mixed(masks)
    assert mixed(np.float64(edges))


def test_comatch_graph_keeps_a_similarity_that_just_reaches_the_threshold():
    """Images 0 and 1 are alike by 1/2 exactly, 2 and 3 by 0; the strong embeddings are all the same."""
    logits = np.float32([[0, 0, -200], [200, 0, 0], [-200, 200, 0], [-200, 0, 200]])
    z1, z2 = np.eye(2, dtype=np.float32)[[0, 0, 0, 0]], np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]
    # Similarity 1 to image 0, 0 to all others, at temperature 1.
    log = np.array([1, 0, 0, 0]) - np.log(np.e + 3)
    for threshold, row_0, row_1 in ((0.5, [1, 0.5, 0.5, 0], [0.5, 1, 0, 0]), (0.51, [1, 0, 0, 0], [0, 1, 0, 0])):
        fields = {'contrast_threshold': threshold, 'temperature': 1.0, 'embedding': 2, 'average': 1 << 14}
        method = methods.create('comatch', fields)
        inputs = with_logits(fakes.inputs(method), 'unlabeled.weak', logits)
        for view, z in (('unlabeled.strong', z1), ('unlabeled.strong2', z2)):
            inputs.outputs[view]['projection'] = jnp.asarray(3 * z)
        # Alignment by as good as uniform averages leaves the predictions; make it exact:
        state = {**method.init_state(fakes.SPEC), 'guessed': jnp.full((1 << 14, 3), 1 / 3)}
        q = softmax(np.float64(logits))
        aligned = scaled(q / (np.float64(state['guessed'][1:].sum(0) + q.mean(0)) / (1 << 14)))
        graph = np.where(np.eye(4), 1, aligned @ aligned.T)
        del row_0, row_1
        graph[graph < threshold] = 0
        close(method.loss(inputs, state).metrics['loss_contrast'], -(scaled(graph) @ log).mean())


# SimMatch


def simmatch(inputs, state, fields):
    """Equations 3-13 over the labeled images met before. state: 'guessed' (list) and 'memory' ({image: embedding})."""
    t, alpha = fields['temperature'], fields['alpha']
    teacher = {
        view: {k: np.float64(inputs.images[view]).reshape(-1, 16) @ np.float64(m) for k, m in inputs.ema_params.items()}
        for view in ('labeled.weak', 'unlabeled.weak')
    }
    raw, z = softmax(teacher['unlabeled.weak']['logits']), unit(teacher['unlabeled.weak']['projection'])
    z_strong = unit(output(inputs, 'unlabeled.strong', 'projection'))
    state['guessed'] = [*state['guessed'][1:], raw.mean(0)]
    p = scaled(raw / np.mean(state['guessed'], axis=0))
    mixed_p, instance_loss = p.copy(), 0.0
    met = sorted(state['memory'])
    if met:
        memory, classes = np.array([state['memory'][k] for k in met]), fakes.LABELS[met]
        for b in range(4):
            q = softmax(memory @ z[b] / t)
            unfolded = scaled(np.array([q[k] * p[b, classes[k]] for k in range(len(met))]))  # equations 6-8
            instance_loss += cross_entropy(unfolded, memory @ z_strong[b] / t) / 4
            for c in range(3):  # aggregation
                mixed_p[b, c] = alpha * p[b, c] + (1 - alpha) * sum(q[classes == c])
    mask = mixed_p.max(-1) >= fields['threshold']
    loss = sum(mask * cross_entropy(mixed_p, output(inputs, 'unlabeled.strong'))) / 4
    for k, embedding in zip(inputs.indices['labeled'], unit(teacher['labeled.weak']['projection']), strict=True):
        state['memory'][int(k)] = embedding
    return mixed_p, mask, loss, instance_loss


def test_simmatch_unfolds_and_aggregates_over_the_labeled_images_met():
    fields = {'threshold': 0.7, 'temperature': 0.3, 'alpha': 0.7, 'embedding': 4, 'average': 3}
    method = methods.create('simmatch', {**fields, 'weight': 0.7, 'instance_weight': 0.3})
    state = method.init_state(fakes.SPEC)
    expected, masks, known = {'guessed': [UNIFORM] * 3, 'memory': {}}, [], []
    for seed, labeled in enumerate([[3, 1], [1, 0], [4, 2], [0, 3], [2, 1]]):
        known.append(len(expected['memory']))
        index = np.int32(labeled)
        changes = {
            'indices': {**fakes.INDICES, 'labeled': jnp.asarray(index)},
            'labels': jnp.asarray(fakes.LABELS[index]),
        }
        inputs = fakes.inputs(method, seed=seed, scale=0.7, **changes)
        p, mask, loss, instance_loss = simmatch(inputs, expected, fields)
        result = method.loss(inputs, state)
        new = {
            'guessed': np.array(expected['guessed']),
            'embeddings': np.array([expected['memory'].get(k, np.zeros(4)) for k in range(5)]),
            'classes': one_hot(fakes.LABELS),
        }
        metrics = {'loss': loss, 'loss_instance': instance_loss}
        check(result, 0.7 * loss + 0.3 * instance_loss, metrics, p.argmax(-1), mask, new)
        assert (instance_loss > 0) == (known[-1] > 0)
        state = result.state
        masks.append(mask)
    assert known == [0, 2, 3, 5, 5]
    assert mixed(masks)


# All


@pytest.mark.parametrize('name', [n for n in NAMES if n != 'simmatch'])
def test_the_batch_norm_of_the_weak_view_can_be_chosen(name):
    assert methods.create(name, {}).views()['unlabeled.weak'] == JOINT
    views = methods.create(name, {'weak_batch_norm': 'no_grad'}).views()
    assert views.pop('unlabeled.weak') == NO_GRAD
    assert set(views.values()) == {JOINT}


def after_two_steps(method, inputs):
    state = method.init_state(fakes.SPEC)
    for _ in range(2):
        state = method.loss(inputs, state).state
    return state


def fields_that_pass(name):
    """Hyper-parameters with which at least one image passes."""
    fields = {'threshold': 0.4} if name in ('uda', 'fixmatch', 'flexmatch', 'adamatch', 'comatch', 'simmatch') else {}
    if name == 'dash':
        fields = {'rho_min': 2.0}
    return {**fields, **({'alignment': True} if name == 'fixmatch' else {})}


@pytest.mark.parametrize('name', NAMES)
def test_the_weak_view_of_unlabeled_images_only_teaches(name):
    method = methods.create(name, fields_that_pass(name))
    inputs = fakes.inputs(method, scale=0.5)
    state = after_two_steps(method, inputs)

    def loss(outputs, ema_params):
        return method.loss(dataclasses.replace(inputs, outputs=outputs, ema_params=ema_params), state).loss

    outputs, ema_params = jax.grad(loss, argnums=(0, 1))(inputs.outputs, inputs.ema_params)
    assert not any(g.any() for g in jax.tree.leaves([outputs['unlabeled.weak'], ema_params]))
    assert outputs['unlabeled.strong']['logits'].any()
    assert all(g.any() for g in outputs['unlabeled.strong'].values())
    assert outputs['labeled.weak']['logits'].any() == (name == 'adamatch')
    if name == 'comatch':
        assert outputs['unlabeled.strong2']['projection'].any()
        assert not outputs['labeled.weak']['projection'].any()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('scale', [0.0, 50.0])
def test_gradients_are_finite_at_extreme_logits(name, scale):
    method = methods.create(name, fields_that_pass(name))
    inputs = fakes.inputs(method, scale=scale)
    p = softmax(np.float32(inputs.outputs['unlabeled.weak']['logits']))
    assert p.min() == 0 if scale else np.ptp(p) == 0
    for state in (method.init_state(fakes.SPEC), after_two_steps(method, inputs)):

        def loss(params, state=state):
            outputs = {view: fakes.network(params, x) for view, x in inputs.images.items()}
            result = method.loss(dataclasses.replace(inputs, params=params, outputs=outputs), state)
            return result.loss, result.state

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(inputs.params)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves([value, new, gradient]))
