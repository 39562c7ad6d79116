"""Methods that guess labels from the network's own outputs, and the terms all losses share, against NumPy.

What is expected is written from the papers' equations in float64. Only random draws come from JAX, by the same keys.
"""

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import methods
from data.augment import rotate
from methods import terms
from methods.base import IMAGES, JOINT, LABELED, LABELED_STRONG, STRONG, STRONG2, WEAK, WEAK2, View

P = np.array([[0.7, 0.2, 0.1], [0.25, 0.4, 0.35], [0.0, 0.05, 0.95], [0.5, 0.5, 0.0]])
LOGITS = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-4.0, 1.0, 3.0], [0.0, 9.0, -9.0]])
# (progress, length of the ramp, what is expected of it)
RAMPS = [(0.0, 0.4, 0.0), (0.1, 0.4, 0.25), (0.4, 0.4, 1.0), (0.9, 0.4, 1.0), (0.0, 0.0, 1.0), (0.25, 1.0, 0.25)]


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(p, logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return -(p * (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))).sum(-1)


def entropy(p):
    return np.array([-sum(x * np.log(x) for x in row if x > 0) for row in p])


def sharpen(p, temperature):
    return np.array([[x ** (1 / temperature) / sum(row ** (1 / temperature)) for x in row] for row in p])


def one_hot(classes, num_classes=fakes.NUM_CLASSES):
    return np.eye(num_classes)[np.asarray(classes)]


def double(tree):
    return jax.tree.map(np.float64, tree)


# Terms


def test_cross_entropy_takes_classes_or_probabilities():
    close(terms.cross_entropy(jnp.asarray([0, 2, 1, 0]), LOGITS), -np.log(softmax(LOGITS)[range(4), [0, 2, 1, 0]]))
    close(terms.cross_entropy(jnp.asarray(P), LOGITS), -(P * np.log(softmax(LOGITS))).sum(-1))
    assert terms.cross_entropy(jnp.asarray([0]), jnp.asarray([[-300.0, 300.0, 0.0]])) == 600


def test_entropy_counts_a_class_without_probability_as_zero():
    close(terms.entropy(jnp.asarray(P)), entropy(P))
    close(terms.entropy(jnp.eye(3)), 0)
    close(terms.entropy(jnp.full((1, 5), 0.2)), np.log(5))


def test_the_gradient_of_entropy_is_that_of_the_equation():
    close(jax.grad(lambda p: terms.entropy(p).sum())(jnp.asarray(P[:2])), -np.log(P[:2]) - 1)


def test_the_gradient_of_entropy_is_finite_where_a_probability_is_zero():
    assert np.isfinite(jax.grad(lambda p: terms.entropy(p).sum())(jnp.asarray(P))).all()
    # These logits are 200 apart: the probability is zero in float32. The limit of the gradient is 0.
    of_logits = jax.grad(lambda z: terms.entropy(jax.nn.softmax(z)).sum())(jnp.float32([[0, 200, -200], [1, 2, 3]]))
    p = softmax(np.array([1.0, 2.0, 3.0]))
    close(of_logits[0], 0)
    close(of_logits[1], p * ((p * np.log(p)).sum() - np.log(p)))


def test_kl_divergence_is_zero_between_equals_and_else_the_equation():
    q = softmax(LOGITS)
    expected = [sum(a * np.log(a / b) for a, b in zip(x, y, strict=True) if a > 0) for x, y in zip(P, q, strict=True)]
    close(terms.kl_divergence(jnp.asarray(P), LOGITS), expected)
    close(terms.kl_divergence(jnp.asarray(q), LOGITS), 0)


def test_squared_difference_is_averaged_over_classes():
    close(terms.squared_difference(jnp.asarray(P), P[::-1]), ((P - P[::-1]) ** 2).sum(-1) / 3)


def test_targets_are_constants():
    close(terms.targets(LOGITS), softmax(LOGITS))
    assert not jax.grad(lambda z: (terms.targets(z) * P).sum())(jnp.asarray(LOGITS)).any()


def test_sharpen_is_equation_7_of_mixmatch():
    close(terms.sharpen(jnp.asarray(P), 0.5), sharpen(P, 0.5))
    close(terms.sharpen(jnp.asarray(P), 2.0), sharpen(P, 2.0))
    close(terms.sharpen(jnp.asarray(P), 1), P)
    close(terms.sharpen(jnp.asarray(P), 0), one_hot([0, 1, 2, 0]))  # of equal classes the first


@pytest.mark.parametrize('temperature', [0.1, 0.01])
def test_sharpened_probabilities_sum_to_one_at_low_temperatures_too(temperature):
    p = np.full((1, 10), 0.1)
    p[0, :2] = 0.11, 0.09
    close(terms.sharpen(jnp.float32(p), temperature), sharpen(p, temperature), rtol=1e-3)


def test_normalise_scales_to_a_sum_of_one_and_leaves_zeros():
    close(terms.normalise(jnp.asarray([[1.0, 3.0], [1e-3, 0.0], [0.0, 0.0]])), [[0.25, 0.75], [1, 0], [0, 0]])


def test_align_multiplies_by_wanted_over_observed_frequencies():
    wanted, observed = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    expected = [row * wanted / observed / sum(row * wanted / observed) for row in P]
    close(terms.align(jnp.asarray(P), wanted, observed), expected)
    close(terms.align(jnp.asarray(P), observed, observed), P)


def test_align_gives_probabilities_for_classes_never_observed_or_not_wanted():
    close(terms.align(jnp.asarray(P[:1]), np.ones(3) / 3, np.array([0.5, 0.5, 0.0])), [[0, 0, 1]], atol=1e-4)
    # Nearly certain of a class that no label has: what is left decides, as the equation says.
    close(terms.align(jnp.float32([[2e-9, 1e-9, 1]]), np.array([0.5, 0.5, 0]), np.ones(3) / 3), [[2 / 3, 1 / 3, 0]])


def test_class_distribution_has_a_zero_for_a_class_without_labels():
    result = terms.class_distribution(jnp.asarray([0, 3, 3, 1]), 5)
    np.testing.assert_array_equal(result, np.float32([0.25, 0.25, 0, 0.5, 0]))
    assert result.dtype == jnp.float32


@pytest.mark.parametrize(
    ('threshold', 'mask'),
    [
        (0.0, [1, 1, 1, 1]),
        (0.5, [1, 0, 1, 1]),  # exactly met by the last
        (0.96, [0, 0, 0, 0]),
        ([0.71, 0.4, 0.9], [0, 1, 1, 0]),  # of the classes 0, 1, 2, 0 that they are
        ([0.5, 0.41, 0.99], [1, 0, 0, 1]),
    ],
)
def test_pseudo_labels_pass_where_the_threshold_is_reached(threshold, mask):
    result = terms.pseudo_labels(jnp.float32(P), jnp.float32(threshold))
    np.testing.assert_array_equal(result.labels, [0, 1, 2, 0])  # of equal classes the first
    np.testing.assert_array_equal(result.mask, mask)
    assert result.mask.dtype == jnp.float32
    assert result.labels.dtype == jnp.int32


@pytest.mark.parametrize(('progress', 'length', 'expected'), RAMPS)
def test_ramp_rises_linearly_and_is_one_from_the_start_at_length_zero(progress, length, expected):
    close(terms.ramp(jnp.float32(progress), length), expected)


def test_ema_keeps_the_decay_of_the_old_average():
    close(terms.ema(np.array([1.0, -2.0]), np.array([3.0, 2.0]), 0.9), [1.2, -1.6])


def test_push_forgets_the_oldest_first():
    queue = np.arange(10.0).reshape(5, 2)
    new = -np.ones((2, 2))
    np.testing.assert_array_equal(terms.push(queue, new), [[4, 5], [6, 7], [8, 9], [-1, -1], [-1, -1]])
    np.testing.assert_array_equal(terms.push(queue, queue - 50), queue - 50)


@pytest.mark.parametrize('per_example', [True, False])
def test_mixup_stays_nearer_to_the_examples_with_the_same_share_for_images_and_labels(per_example):
    key, n = jax.random.key(0), 200
    images = np.random.default_rng(0).standard_normal((2, n, 2, 2, 1))
    ones, zeros = np.ones((n, 3)), np.zeros((n, 3))
    mixed, labels = terms.mixup(key, 0.75, (images[0], ones), (images[1], zeros), per_example)
    share = np.float64(labels[:, :1])
    close(labels, share * np.ones(3))
    close(mixed, share.reshape(-1, 1, 1, 1) * images[0] + (1 - share).reshape(-1, 1, 1, 1) * images[1])
    drawn = np.float64(jax.random.beta(key, 0.75, 0.75, (n if per_example else 1,)))
    close(share[:, 0], np.maximum(drawn, 1 - drawn) * np.ones(n))
    assert share.min() >= 0.5
    assert len(np.unique(share)) == (n if per_example else 1)
    if per_example:  # mean of max(x, 1 - x) over Beta(0.75, 0.75), by integration
        x = (np.arange(100000) + 0.5) / 100000
        density = (x * (1 - x)) ** -0.25
        assert abs(share.mean() - (np.maximum(x, 1 - x) * density).sum() / density.sum()) < 0.03


def test_unit_vectors_have_length_one_and_zero_stays_zero():
    vectors = np.array([[3.0, 4.0], [-1e-3, 0.0], [1e15, 1e15]])
    close(terms.unit(jnp.asarray(vectors)), vectors / np.sqrt((vectors**2).sum(1, keepdims=True)))
    assert not terms.unit(jnp.zeros((1, 2))).any()
    assert np.isfinite(jax.grad(lambda v: terms.unit(v).sum())(jnp.zeros((1, 2)))).all()


def test_rotate_turns_counterclockwise_as_numpy_does():
    images = np.random.default_rng(0).standard_normal((6, 4, 4, 2)).astype(np.float32)
    turns = np.array([3, 0, 1, 2, 1, 0])
    expected = [np.rot90(image, k) for image, k in zip(images, turns, strict=True)]
    np.testing.assert_array_equal(rotate(images, turns), expected)


# Methods


def check(result, loss, metrics, *, labels=None, mask=None, state=(), batch_stats=None):
    """Compares everything that a method returns."""
    assert set(result.metrics) == set(metrics)
    for name, value in metrics.items():
        close(result.metrics[name], value)
    close(result.loss, loss)
    jax.tree.map(close, result.state, state)
    jax.tree.map(close, result.batch_stats, batch_stats)
    if labels is None:
        assert result.pseudo_labels is None
    else:
        np.testing.assert_array_equal(result.pseudo_labels.labels, labels)
        np.testing.assert_array_equal(result.pseudo_labels.mask, mask)


def gradient(method, inputs, state=()):
    """The gradient of a method's loss in the parameters, through `Inputs.forward` and the joint batch alike."""

    def loss(params):
        outputs = {view: fakes.network(params, inputs.images[view]) for view in method.views()}
        return method.loss(dataclasses.replace(inputs, params=params, outputs=outputs), state).loss

    return jax.grad(loss)(inputs.params)


def check_gradient(method, inputs, expected, state=()):
    """Compares the gradient with central differences of `expected(student, constant)`.

    The equation's targets are made with the parameters `constant`: no gradient may flow through them.
    """
    student, constant = double(inputs.params), double(inputs.params)
    actual = gradient(method, inputs, state)
    for name, matrix in student.items():
        if name == 'features':  # which these methods do not look at
            assert not np.any(actual[name])
            continue
        slopes = np.zeros_like(matrix)
        for i in np.ndindex(matrix.shape):
            value = matrix[i]
            matrix[i] = value + 1e-5
            above = expected(student, constant)
            matrix[i] = value - 1e-5
            slopes[i] = (above - expected(student, constant)) / 2e-5
            matrix[i] = value
        assert np.abs(slopes).max() > 1e-3
        close(actual[name], slopes, rtol=1e-4, atol=1e-4 * np.abs(slopes).max())


def logits(params, images, output='logits'):
    return fakes.network(double(params), np.float64(images))[output]


@pytest.mark.parametrize(
    ('name', 'fields', 'sizes'),
    [
        ('pseudo_label', {}, [4]),
        ('pi_model', {}, [4, 4]),
        ('mean_teacher', {}, [4, 4]),
        ('vat', {}, [4, 4, 4]),
        ('vat', {'iterations': 3}, [4, 4, 4, 4, 4]),
        ('mixmatch', {}, [4, 4, 2 + 4 + 4]),
        ('remixmatch', {'strong_views': 3}, [4, 2 + 3 * 4 + 4 + 4 + 4]),
        ('remixmatch', {}, [4, 2 + 8 * 4 + 4 + 4 + 4]),
    ],
)
def test_each_batch_is_normalised_with_the_images_that_the_method_says(name, fields, sizes):
    method, seen = methods.create(name, fields), []

    def forward(params, images, draw=''):
        seen.append(len(images))
        return fakes.forward(params, images)

    assert set(method.views().values()) == {IMAGES}
    method.loss(fakes.inputs(method, forward=forward), method.init_state(fakes.SPEC))
    assert seen == sizes


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        ('pseudo_label', {'threshold': 0.0}),
        ('pi_model', {}),
        ('mean_teacher', {}),
        ('vat', {'entropy_weight': 0.0}),
        ('vat', {}),
        ('mixmatch', {}),
        ('mixmatch', {'temperature': 0}),
        ('remixmatch', {}),
        ('self_training', {}),
    ],
)
@pytest.mark.parametrize('scale', [0.0, 50.0])
def test_gradients_are_finite_at_extreme_logits(name, fields, scale):
    method = methods.create(name, fields)
    inputs = fakes.inputs(method, scale=scale)
    p = softmax(np.float32(inputs.outputs[WEAK]['logits']))
    assert p.min() == 0 if scale else np.ptp(p) == 0
    result = gradient(method, inputs, method.init_state(fakes.SPEC))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(result))


def pseudo_label(student, constant, images, threshold):
    p = softmax(logits(constant, images))
    mask = p.max(-1) >= threshold
    return (mask * cross_entropy(one_hot(p.argmax(-1)), logits(student, images))).mean(), p.argmax(-1), mask


@pytest.mark.parametrize(('progress', 'ramp', 'share'), RAMPS)
@pytest.mark.parametrize('seed', [1, 2])
def test_pseudo_label_is_the_cross_entropy_with_confident_classes(progress, ramp, share, seed):
    method = methods.create('pseudo_label', {'threshold': 0.8, 'weight': 3.0, 'ramp': ramp})
    inputs = fakes.inputs(method, seed=seed, progress=progress)
    loss, labels, mask = pseudo_label(inputs.params, inputs.params, inputs.images[WEAK], 0.8)
    assert 0 < mask.sum() < 4
    check(method.loss(inputs, ()), 3 * share * loss, {'loss': loss}, labels=labels, mask=mask)


def test_pseudo_label_learns_from_its_classes_as_constants():
    method = methods.create('pseudo_label', {'threshold': 0.8, 'weight': 3.0})
    inputs = fakes.inputs(method, seed=1, progress=0.2)
    images = inputs.images[WEAK]
    check_gradient(method, inputs, lambda *params: 1.5 * pseudo_label(*params, images, 0.8)[0])


def test_pseudo_label_counts_a_threshold_just_reached_and_no_image_below_it():
    views = fakes.images()
    views[WEAK][0] = 0  # a black image: 1/3 for each class, and the others have more
    for threshold, mask in ((1 / 3, [1, 1, 1, 1]), (0.334, [0, 1, 1, 1]), (1.0, [0, 0, 0, 0])):
        method = methods.create('pseudo_label', {'threshold': threshold})
        inputs = fakes.inputs(method, views=views)
        np.testing.assert_array_equal(method.loss(inputs, ()).pseudo_labels.mask, mask)
    assert method.loss(inputs, ()).loss == 0
    assert not gradient(method, inputs)['logits'].any()


def consistency(student, teacher, views):
    p, q = softmax(logits(teacher, views[WEAK])), softmax(logits(student, views[WEAK2]))
    return ((p - q) ** 2).sum() / p.size


@pytest.mark.parametrize(('progress', 'ramp', 'share'), RAMPS)
def test_pi_model_and_mean_teacher_are_mean_squared_differences(progress, ramp, share):
    pi_model = methods.create('pi_model', {'weight': 7.0, 'ramp': ramp})
    mean_teacher = methods.create('mean_teacher', {'weight': 7.0, 'ramp': ramp})
    inputs = fakes.inputs(pi_model, progress=progress)
    for method, teacher in ((pi_model, inputs.params), (mean_teacher, inputs.ema_params)):
        loss = consistency(inputs.params, teacher, inputs.images)
        check(method.loss(inputs, ()), 7 * share * loss, {'loss': loss})


def test_pi_model_and_mean_teacher_train_the_student_on_the_second_view_only():
    for name in ('pi_model', 'mean_teacher'):
        method = methods.create(name, {'weight': 7.0})
        inputs = fakes.inputs(method, progress=0.1)

        def expected(student, constant, name=name, inputs=inputs):
            teacher = constant if name == 'pi_model' else inputs.ema_params
            return 7 / 4 * consistency(student, teacher, inputs.images)

        check_gradient(method, inputs, expected)


def vat_start(inputs):
    d = np.float64(jax.random.normal(inputs.key, inputs.images[WEAK].shape)).reshape(4, -1)
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def vat_direction(params, inputs, xi, iterations):
    """Power iteration: with logits z = xW the gradient of KL(p || softmax(z)) in x is (softmax(z) - p) W'."""
    x, w, d = np.float64(inputs.images[WEAK]).reshape(4, -1), double(params)['logits'], vat_start(inputs)
    for _ in range(iterations):
        g = (softmax((x + xi * d) @ w) - softmax(x @ w)) @ w.T
        d = g / np.linalg.norm(g, axis=1, keepdims=True)
    return d


def vat_curvature(inputs):
    """The matrices H of each image: KL(p(x) || p(x + r)) is r'Hr / 2 for small r (the paper's Taylor expansion)."""
    w = double(inputs.params)['logits']
    p = softmax(logits(inputs.params, inputs.images[WEAK]))
    return np.array([w @ (np.diag(q) - np.outer(q, q)) @ w.T for q in p])


def vat(student, constant, inputs, epsilon, xi, iterations):
    images = np.float64(inputs.images[WEAK])
    r = epsilon * vat_direction(constant, inputs, xi, iterations).reshape(images.shape)
    p = softmax(logits(constant, images))
    kl = (cross_entropy(p, logits(student, images + r)) - entropy(p)).mean()
    return kl, entropy(softmax(logits(student, images))).mean()


def vat_perturbation(method, inputs):
    """What the method adds to the images in its last forward pass, `[n, pixels]`."""
    seen = []

    def forward(params, images, draw=''):
        seen.append(images)
        return fakes.forward(params, images)

    method.loss(dataclasses.replace(inputs, forward=forward), ())
    return (np.float64(seen[-1]) - np.float64(inputs.images[WEAK])).reshape(4, -1)


@pytest.mark.parametrize(('progress', 'ramp', 'share'), RAMPS)
def test_vat_is_the_divergence_at_the_perturbation_and_the_entropy(progress, ramp, share):
    fields = {'weight': 2.0, 'entropy_weight': 0.3, 'epsilon': 1.5, 'xi': 0.5, 'ramp': ramp}
    method = methods.create('vat', fields)
    inputs = fakes.inputs(method, progress=progress)
    loss, entropy_loss = vat(inputs.params, inputs.params, inputs, 1.5, 0.5, 1)
    metrics = {'loss': loss, 'loss_entropy': entropy_loss}
    check(method.loss(inputs, ()), 2 * share * loss + 0.3 * entropy_loss, metrics)


def test_vat_without_ramp_is_the_papers_loss():
    method = methods.create('vat', {'weight': 1.0, 'entropy_weight': 1.0, 'epsilon': 1.5, 'xi': 0.5, 'ramp': 0})
    inputs = fakes.inputs(method, seed=1, progress=0)
    close(method.loss(inputs, ()).loss, sum(vat(inputs.params, inputs.params, inputs, 1.5, 0.5, 1)))


@pytest.mark.parametrize('iterations', [1, 2, 4])
def test_vat_perturbs_by_epsilon_in_the_direction_of_the_gradient(iterations):
    method = methods.create('vat', {'epsilon': 1.5, 'xi': 0.5, 'iterations': iterations})
    inputs = fakes.inputs(method, seed=1)
    r = vat_perturbation(method, inputs)
    close(np.linalg.norm(r, axis=1), 1.5)
    close(r, 1.5 * vat_direction(inputs.params, inputs, 0.5, iterations), rtol=1e-4, atol=1e-5)


def test_vat_finds_the_direction_in_which_the_divergence_grows_fastest():
    method = methods.create('vat', {'xi': 1e-2, 'iterations': 30})
    inputs = fakes.inputs(method, seed=1)
    r = vat_perturbation(method, inputs)
    for d, h in zip(r / 6, vat_curvature(inputs), strict=True):
        assert abs(d @ np.linalg.eigh(h)[1][:, -1]) > 0.999


@pytest.mark.parametrize('fields', [{}, {'xi': 1e-3}, {'xi': 1e-2}])
@pytest.mark.parametrize('scale', [0.3, 1.0])
def test_vat_takes_a_step_xi_that_float32_resolves(fields, scale):
    method = methods.create('vat', fields)
    cosines = []
    for seed in range(4):
        inputs = fakes.inputs(method, seed=seed, scale=scale)
        r = vat_perturbation(method, inputs)
        close(np.linalg.norm(r, axis=1), 6.0)
        exact = np.einsum('nij,nj->ni', vat_curvature(inputs), vat_start(inputs))
        cosines += [*((r * exact).sum(1) / 6 / np.linalg.norm(exact, axis=1))]
    assert min(cosines) > 0.97, np.round(cosines, 2)


@pytest.mark.parametrize('iterations', [1, 2])
def test_vat_has_no_gradient_through_direction_and_target(iterations):
    fields = {'weight': 2.0, 'entropy_weight': 0.3, 'epsilon': 1.5, 'xi': 0.5, 'ramp': 0, 'iterations': iterations}
    method = methods.create('vat', fields)
    inputs = fakes.inputs(method)

    def expected(student, constant):
        loss, entropy_loss = vat(student, constant, inputs, 1.5, 0.5, iterations)
        return 2 * loss + 0.3 * entropy_loss

    check_gradient(method, inputs, expected)


def mixed(keys, alpha, images, labels, per_example):
    """MixUp of all images with all images, in one random order."""
    n = len(images)
    order = np.asarray(jax.random.permutation(keys[0], n))
    share = np.float64(jax.random.beta(keys[1], alpha, alpha, (n if per_example else 1,)))
    share = np.maximum(share, 1 - share) * np.ones(n)
    assert {*order[:2]} - {0, 1}, 'no labeled image is mixed with an unlabeled one'
    assert share.min() < 0.95
    rows = [(s * images[i] + (1 - s) * images[j]) for i, j, s in zip(range(n), order, share, strict=True)]
    targets = [(s * labels[i] + (1 - s) * labels[j]) for i, j, s in zip(range(n), order, share, strict=True)]
    return np.array(rows), np.array(targets)


def mixmatch(student, constant, inputs, temperature, alpha, per_example):
    """Algorithm 1. Returns L_X, L_U, the guesses and the mixed images."""
    u1, u2 = (np.float64(inputs.images[view]) for view in (WEAK, WEAK2))
    guess = (softmax(logits(constant, u1)) + softmax(logits(constant, u2))) / 2
    guess = sharpen(guess, temperature) if temperature else one_hot(guess.argmax(-1))
    images = np.concatenate([np.float64(inputs.images[LABELED]), u1, u2])
    labels = np.concatenate([one_hot(inputs.labels), guess, guess])
    images, labels = mixed(jax.random.split(inputs.key), alpha, images, labels, per_example)
    z = logits(student, images)
    labeled = cross_entropy(labels[:2], z[:2]).sum() / 2
    return labeled, ((labels[2:] - softmax(z[2:])) ** 2).sum() / (3 * 8), guess, images


@pytest.mark.parametrize(('temperature', 'alpha', 'per_example'), [(0.5, 0.75, True), (1, 0.75, False), (0, 0.2, True)])
def test_mixmatch_is_algorithm_1(temperature, alpha, per_example):
    fields = {'temperature': temperature, 'alpha': alpha, 'weight': 20.0, 'ramp': 0.5, 'per_example': per_example}
    method = methods.create('mixmatch', fields)
    for seed, progress, share in ((0, 0.0, 0.0), (1, 0.125, 0.25), (2, 0.75, 1.0)):
        inputs = fakes.inputs(method, seed=seed, progress=progress, key=jax.random.key(12 + seed))
        labeled, loss, guess, images = mixmatch(inputs.params, inputs.params, inputs, temperature, alpha, per_example)
        check(
            method.loss(inputs, ()),
            labeled + 20 * share * loss,
            {'loss': loss, 'loss_labeled': labeled},
            labels=guess.argmax(-1),
            mask=np.ones(4),
            batch_stats={'mean': images.mean(0)},
        )


def test_mixmatch_is_weighted_fully_after_a_64th_of_training():
    method = methods.create('mixmatch', {})
    for progress, share in ((1 / 256, 0.25), (1 / 64, 1)):
        inputs = fakes.inputs(method, progress=progress)
        labeled, loss, _, _ = mixmatch(inputs.params, inputs.params, inputs, 0.5, 0.75, True)
        close(method.loss(inputs, ()).loss, labeled + 75 * share * loss)


def test_mixmatch_has_no_gradient_through_its_guesses():
    method = methods.create('mixmatch', {'weight': 20.0})
    inputs = fakes.inputs(method)

    def expected(student, constant):
        labeled, loss, _, _ = mixmatch(student, constant, inputs, 0.5, 0.75, True)
        return labeled + 20 * loss

    check_gradient(method, inputs, expected)


REMIXMATCH = {'strong_views': 2, 'weight': 1.2, 'anchor_weight': 0.7, 'rotation_weight': 0.4, 'average': 3}


def remixmatch(student, constant, inputs, memory, share):
    """Algorithm 1 with two strong views. memory: mean predictions of the last batches, before this one."""
    weak, *strong = (np.float64(inputs.images[v]) for v in (WEAK, STRONG, STRONG2))
    p = softmax(logits(constant, weak))
    aligned = p * np.array([0.4, 0.4, 0.2]) / np.mean(memory, axis=0)  # the frequencies of fakes.LABELS
    guess = sharpen(aligned / aligned.sum(-1, keepdims=True), 0.5)
    order_key, mix_key, turn_key = jax.random.split(inputs.key, 3)
    images = np.concatenate([np.float64(inputs.images[LABELED_STRONG]), *strong, weak])
    labels = np.concatenate([one_hot(inputs.labels), guess, guess, guess])
    images, labels = mixed((order_key, mix_key), 0.75, images, labels, per_example=True)
    turns = np.asarray(jax.random.randint(turn_key, (4,), 0, 4))
    rotated = np.array([np.rot90(image, k) for image, k in zip(strong[0], turns, strict=True)])
    z = logits(student, images)
    losses = {
        'loss': cross_entropy(labels[2:], z[2:]).sum() / 12,
        'loss_labeled': cross_entropy(labels[:2], z[:2]).sum() / 2,
        'loss_anchor': cross_entropy(guess, logits(student, strong[0])).sum() / 4,
        'loss_rotation': cross_entropy(one_hot(turns, 4), logits(student, rotated, 'rotation')).sum() / 4,
    }
    total = losses['loss_labeled'] + 1.2 * share * losses['loss']
    total += 0.7 * share * losses['loss_anchor'] + 0.4 * losses['loss_rotation']
    return total, losses, guess, p, turns, np.concatenate([images, strong[0], rotated])


def test_remixmatch_is_algorithm_1_with_guesses_aligned_by_the_last_batches():
    method = methods.create('remixmatch', REMIXMATCH)
    state = method.init_state(fakes.SPEC)
    close(state['wanted'], [0.4, 0.4, 0.2])
    memory, turned, changed = [np.full(3, 1 / 3)] * 3, set(), 0
    for step, share in enumerate([0.0, 0.5, 0.75, 1.0, 1.0]):  # more steps than the memory holds
        key = jax.random.key(20 + step)
        inputs = fakes.inputs(method, seed=step, progress=share / 64, scale=0.3, key=key)
        total, losses, guess, p, turns, images = remixmatch(inputs.params, inputs.params, inputs, memory, share)
        memory = [*memory[1:], p.mean(0)]
        turned |= {*turns}
        changed += (guess.argmax(-1) != p.argmax(-1)).sum()
        result = method.loss(inputs, state)
        new = {'wanted': np.array([0.4, 0.4, 0.2]), 'guessed': np.array(memory)}
        means = {'mean': images.mean(0)}
        check(result, total, losses, labels=guess.argmax(-1), mask=np.ones(4), state=new, batch_stats=means)
        state = result.state
    assert turned == {0, 1, 2, 3}
    assert changed > 0, 'alignment changed no guess'


def test_remixmatch_has_no_gradient_through_its_guesses():
    method = methods.create('remixmatch', REMIXMATCH)
    inputs = fakes.inputs(method, scale=0.3, key=jax.random.key(20))
    memory = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    state = {**method.init_state(fakes.SPEC), 'guessed': jnp.float32(memory)}
    check_gradient(method, inputs, lambda *params: remixmatch(*params, inputs, memory, 1.0)[0], state)


@pytest.mark.parametrize('number', [1, 2, 8])
def test_remixmatch_sees_as_many_strong_views_as_it_is_told(number):
    views = methods.create('remixmatch', {'strong_views': number}).views()
    strong = {STRONG._replace(draw=k) for k in range(1, number + 1)}
    assert set(views) == {LABELED_STRONG, WEAK} | strong
    assert methods.create('remixmatch', {}).heads() == {'rotation': (4,)}


@pytest.mark.parametrize('view', ['weak', 'strong'])
@pytest.mark.parametrize('soft', [False, True])
def test_self_training_learns_from_the_labels_of_the_round(view, soft):
    method = methods.create('self_training', {'view': view, 'soft': soft, 'weight': 0.6, 'rounds': 3})
    assert method.views() == {View('unlabeled', view): JOINT}
    rng = np.random.default_rng(0)
    labels = softmax(rng.standard_normal((7, 3))) if soft else one_hot(rng.integers(0, 3, 7))
    mask = np.array([1.0, 0, 0, 0, 0, 1, 1])
    state = {'labels': jnp.float32(labels), 'mask': jnp.float32(mask)}
    inputs = fakes.inputs(method)
    images = inputs.images[View('unlabeled', view)]
    loss, used = 0.0, []
    for image, index in zip(images, [5, 0, 2, 6], strict=True):
        used.append(mask[index])
        loss += mask[index] * cross_entropy(labels[index], logits(inputs.params, image[None])[0]) / 4
    assert 0 < sum(used) < 4
    guess = labels[[5, 0, 2, 6]].argmax(-1)
    check(method.loss(inputs, state), 0.6 * loss, {'loss': loss}, labels=guess, mask=used, state=state)

    def expected(student, constant):
        del constant
        return 0.6 * (np.array(used) * cross_entropy(labels[[5, 0, 2, 6]], logits(student, images))).mean()

    check_gradient(method, inputs, expected, state)


def test_self_training_has_no_labels_in_its_first_round():
    method = methods.create('self_training', {})
    state = method.init_state(fakes.SPEC)
    result = method.loss(fakes.inputs(method), state)
    assert jax.tree.map(np.shape, state) == {'labels': (7, 3), 'mask': (7,)}
    assert result.loss == 0
    assert not result.pseudo_labels.mask.any()
    assert not gradient(method, fakes.inputs(method), state)['logits'].any()


def relabel(fields, probabilities, number):
    method = methods.create('self_training', fields)
    count, num_classes = probabilities.shape
    state = {'labels': jnp.zeros((count, num_classes)), 'mask': jnp.zeros(count)}
    return method.relabel(state, jnp.float32(probabilities), jnp.int32(number))


def most_confident(p, quota, threshold):
    """The `quota` most confident images of each class, of those that reach the threshold."""
    mask = np.zeros(len(p))
    for c in range(p.shape[1]):
        of_class = [i for i in range(len(p)) if p[i].argmax() == c]
        for i in sorted(of_class, key=lambda i: -p[i, c])[:quota]:
            mask[i] = p[i, c] >= threshold
    return mask


@pytest.mark.parametrize('threshold', [0.0, 0.7])
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize(('growing', 'quotas'), [(True, [4, 8, 12]), (False, [12, 12, 12])])
def test_self_training_labels_the_most_confident_of_each_class(growing, quotas, soft, threshold):
    rng = np.random.default_rng(2)
    p = softmax(2 * rng.standard_normal((36, 3)) + [1.0, 0, -0.5])
    counts = np.bincount(p.argmax(-1), minlength=3)
    assert counts[0] > 12 > counts[2] > 4  # one class has more than its share of 36 / 3 images, one has less
    fields = {'rounds': 4, 'growing': growing, 'soft': soft, 'threshold': threshold}
    for number, quota in enumerate(quotas, start=1):
        state = relabel(fields, p, number)
        mask = most_confident(p, quota, threshold)
        passing = most_confident(p, quota, 0.0).sum()
        assert mask.sum() < passing if threshold and number == 3 else 0 < mask.sum() <= passing
        np.testing.assert_array_equal(state['mask'], mask)
        close(state['labels'], p if soft else one_hot(p.argmax(-1)))
        assert jax.tree.map(lambda x: x.dtype, state) == {'labels': jnp.float32, 'mask': jnp.float32}


@pytest.mark.parametrize('rounds', [2, 4, 6, 8, 11])
@pytest.mark.parametrize('part', [1, 3])
def test_self_training_uses_the_same_part_more_in_each_round(rounds, part):
    size = part * (rounds - 1)  # images of each of ten classes, all as sure
    p = np.repeat(0.6 * np.eye(10) + 0.04, size, axis=0)
    for number in range(1, rounds):
        mask = np.reshape(relabel({'rounds': rounds}, p, number)['mask'], (10, size))
        np.testing.assert_array_equal(mask.sum(1), part * number)


def test_self_training_leaves_out_less_than_one_image_of_a_share_that_is_none_of_whole_images():
    p = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.7, 0.3, 0], [0.6, 0.4, 0], [0.5, 0.4, 0.1], [0, 1, 0], [0, 1, 0]])
    mask = relabel({'rounds': 2}, p, 1)['mask']
    assert 7 / 3 - 1 < sum(mask[:5]) < 7 / 3 + 1
    np.testing.assert_array_equal(mask[:2], 1)
    np.testing.assert_array_equal(mask[3:], [0, 0, 1, 1])


def test_self_training_keeps_no_more_than_a_share_of_images_as_confident():
    p = np.array([[0.25, 0.75, 0.0]] * 9)
    mask = relabel({'rounds': 4}, p, 2)['mask']
    assert sum(mask) == 2


def test_self_training_keeps_labels_that_just_reach_the_threshold():
    p = np.array([[0.75, 0.25, 0.0], [0.74, 0.26, 0.0], [0.0, 0.75, 0.25]])
    np.testing.assert_array_equal(relabel({'rounds': 2, 'threshold': 0.75}, p, 1)['mask'], [1, 0, 1])
    np.testing.assert_array_equal(relabel({'rounds': 2, 'threshold': 0.76}, p, 1)['mask'], [0, 0, 0])
