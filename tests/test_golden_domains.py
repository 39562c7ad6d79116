"""Losses of domain adaptation, and what they share, against NumPy in float64, written from the papers' equations."""

import dataclasses
import math

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import methods
from methods import terms
from methods.base import LABELED, WEAK
from methods.terms import reverse_gradient
from models import mlp
from models.mlp import MLP

DOMAINS = (LABELED, WEAK)  # source and target
NARROW = (6, 4)  # hidden layers of a discriminator
EPSILON = 1e-5  # of its batch norm


def close(actual, expected, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def double(tree):
    return jax.tree.map(lambda x: np.array(x, np.float64), tree)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(p):
    return np.array([-sum(x * np.log(x) for x in row if x > 0) for row in p])


def dense_layers(params, name, x, hidden):
    """Dense layers with batch norm, where `params` has any, and ReLU between them."""
    for i in range(1, hidden + 1):
        layer = params[f'head_{name}{i}']
        x = x @ layer['kernel'] + layer.get('bias', 0)
        if (norm := params.get(f'head_{name}_norm{i}')) is not None:
            x = (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).mean(0) + EPSILON) * norm['scale'] + norm['bias']
        x = np.where(x > 0, x, 0)
    layer = params[f'head_{name}{hidden + 1}']
    return x @ layer['kernel'] + layer['bias']


def bce(source, target, source_weights=1.0, target_weights=1.0):
    """-log D(x) of a source, -log(1 - D(x)) of a target example, D a sigmoid; half the sum of both domains' means."""
    of_source = -np.log(1 / (1 + np.exp(-source)))
    of_target = -np.log(1 - 1 / (1 + np.exp(-target)))
    return ((source_weights * of_source).mean() + (target_weights * of_target).mean()) / 2


def discriminator_metrics(source, target):
    errors = ((source <= 0).mean() + (target > 0).mean()) / 2
    return {'domain_accuracy': 1 - errors, 'a_distance': 2 * (1 - 2 * errors)}


def ramp(progress, gamma):
    return 2 / (1 + math.exp(-gamma * progress)) - 1


def outputs(params, images):
    """{'features', 'logits'} of both domains, in float64."""
    return [{k: fakes.network(params, np.float64(images[view]))[k] for k in ('features', 'logits')} for view in DOMAINS]


def gradient(method, inputs, state=()):
    """The gradient of a method's loss in the network and the method's own networks."""

    def loss(params):
        outputs = {view: fakes.network(params, inputs.images[view]) for view in method.views()}
        return method.loss(dataclasses.replace(inputs, params=params, outputs=outputs), state).loss

    return jax.jit(jax.grad(loss))(inputs.params)


def assert_gradients(actual, expected):
    for name in expected:
        for a, b in zip(jax.tree.leaves(actual[name]), jax.tree.leaves(expected[name]), strict=True):
            close(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max() + 1e-6)


def initial_state(method):
    return jax.tree.map(jnp.asarray, method.init_state(fakes.SPEC))


def check(method, inputs, loss, metrics, weight):
    """Compares all that a method returns; the target's predicted classes are its pseudo-labels, for the log."""
    state = initial_state(method)
    result = fakes.loss(method, inputs, state)
    assert set(result.metrics) == {'loss', *metrics}
    for name, value in {'loss': loss, **metrics}.items():
        close(result.metrics[name], value)
    close(result.loss, weight * loss)
    np.testing.assert_array_equal(result.pseudo_labels.labels, inputs.outputs[WEAK]['logits'].argmax(-1))
    np.testing.assert_array_equal(result.pseudo_labels.mask, np.ones(4))
    assert result.batch_stats is None
    jax.tree.map(np.testing.assert_array_equal, result.state, state)


# Gradient reversal


@pytest.mark.parametrize('factor', [0.0, 0.3, 1.0, 7.7])
def test_reverse_gradient_is_the_identity_with_a_gradient_of_minus_lambda(factor):
    x, weights, factor = random(3, 5), random(3, 5, seed=1), np.float32(factor)
    expected = -factor * weights

    def plain(x, factor):
        return (weights * reverse_gradient(x, factor)).sum()

    def mapped(x, factor):
        return (weights * jax.vmap(reverse_gradient, (0, None))(x, factor)).sum()

    def scanned(x, factor):
        def body(total, row):
            reversed_row, row_weights = reverse_gradient(row[0], factor), row[1]
            return total + (row_weights * reversed_row).sum(), reversed_row

        return jax.lax.scan(body, 0.0, (x, jnp.asarray(weights)))[0]

    for wrap in (lambda f: f, jax.jit):
        np.testing.assert_array_equal(wrap(reverse_gradient)(x, factor), x)
        np.testing.assert_array_equal(wrap(jax.vmap(reverse_gradient, (0, None)))(x, factor), x)
        for function in (plain, mapped, scanned):
            to_x, to_factor = wrap(jax.grad(function, (0, 1)))(x, factor)
            np.testing.assert_array_equal(to_x, expected)
            assert to_factor == 0


def test_a_factor_for_each_example_under_vmap():
    x, factors = random(4, 3), random(4, seed=1)
    gradient = jax.vmap(jax.grad(lambda row, factor: reverse_gradient(row, factor).sum()))(x, factors)
    np.testing.assert_array_equal(gradient, -factors[:, None] * np.ones((4, 3), np.float32))


def test_reversal_inside_a_function_reverses_what_passes_it_and_nothing_else():
    x, first, second = random(4, 3), random(3, 2, seed=1), random(2, seed=2)

    def loss(params, np, reverse):
        hidden = x @ params[0]
        return (hidden**2).sum() + (np.sin(reverse(hidden) @ params[1]) * np.cos(reverse(hidden[:, 0]))).sum()

    def part(f):
        return fakes.numeric(f, double([first, second]))

    around = part(lambda p: ((x @ p[0]) ** 2).sum())
    through = part(lambda p: loss(p, np, lambda h: h) - ((x @ p[0]) ** 2).sum())
    gradients = jax.jit(jax.grad(lambda p: loss(p, jnp, lambda h: reverse_gradient(h, jnp.float32(0.6)))))(
        [first, second]
    )
    close(gradients[0], around[0] - 0.6 * through[0], atol=1e-4)
    close(gradients[1], through[1], atol=1e-4)
    twice = jax.grad(lambda x: jnp.sin(reverse_gradient(reverse_gradient(x, jnp.float32(2)), jnp.float32(3))))(0.7)
    close(twice, 6 * math.cos(0.7))


@pytest.mark.parametrize(
    ('progress', 'gamma', 'expected'),
    [
        (0.0, 10.0, 0.0),
        (0.1, 10.0, 0.46211716),  # tanh(1/2)
        (0.5, 2.0, 0.46211716),
        (0.2, 10.0, 0.76159416),
        (0.5, 10.0, 0.98661430),
        (1.0, 10.0, 0.99990920),
        (0.7, 0.0, 0.0),
        (1.0, 500.0, 1.0),
    ],
)
def test_adversarial_ramp(progress, gamma, expected):
    close(terms.adversarial_ramp(jnp.float32(progress), gamma), expected, rtol=1e-5, atol=1e-7)
    if not expected:
        assert terms.adversarial_ramp(jnp.float32(progress), gamma) == 0


# The discriminator


SOURCE = np.array([3.0, 0.5, -1.0])
TARGET = np.array([-2.0, 1.5, -0.1, 0.0, -4.0])


def test_domain_loss_is_the_mean_of_both_domains_means_of_the_cross_entropy():
    loss, metrics = terms.domain_loss(jnp.float32(SOURCE), jnp.float32(TARGET))
    close(loss, bce(SOURCE, TARGET))
    # One of three and one of five are wrong; zero counts as the target.
    close(metrics['domain_accuracy'], (2 / 3 + 4 / 5) / 2)
    close(metrics['a_distance'], 2 * (1 - (1 / 3 + 1 / 5)))
    weights = np.array([0.5, 1.0, 1.5]), np.array([0.0, 2.0, 1.0, 1.0, 1.0])
    weighted, same = terms.domain_loss(jnp.float32(SOURCE), jnp.float32(TARGET), weights)
    close(weighted, bce(SOURCE, TARGET, *weights))
    close(same['domain_accuracy'], metrics['domain_accuracy'])


@pytest.mark.parametrize(('sign', 'accuracy', 'distance'), [(1, 1.0, 2.0), (-1, 0.0, -2.0)])
def test_a_certain_discriminator_has_a_finite_loss_and_the_distance_of_its_errors(sign, accuracy, distance):
    loss, metrics = terms.domain_loss(jnp.full(3, sign * 500.0), jnp.full(5, -sign * 500.0))
    assert loss == (0 if sign > 0 else 500)
    assert metrics['domain_accuracy'] == accuracy
    assert metrics['a_distance'] == distance
    for logit in (0.0, -3.0, 3.0):  # The same for all: it tells nothing.
        assert terms.domain_loss(jnp.full(3, logit), jnp.full(5, logit))[1]['a_distance'] == 0


@pytest.mark.parametrize('batch_norm', [False, True])
def test_own_networks_are_dense_layers_with_batch_norm_before_each_relu(batch_norm):
    own = MLP((6, 4, 2), lambda features, num_classes: 2 * features + num_classes, batch_norm)
    params = own.init(jax.random.key(0), 'domain', 3, 1)
    shapes = {name: {leaf: x.shape for leaf, x in layer.items()} for name, layer in params.items()}
    if batch_norm:
        norms = {f'head_domain_norm{i}': {'scale': (n,), 'bias': (n,)} for i, n in ((1, 6), (2, 4))}
        hidden = {'head_domain1': {'kernel': (7, 6)}, 'head_domain2': {'kernel': (6, 4)}}
        assert shapes == {**hidden, **norms, 'head_domain3': {'kernel': (4, 2), 'bias': (2,)}}
    else:
        widths = (7, 6, 4, 2)
        assert shapes == {
            f'head_domain{i}': {'kernel': (widths[i - 1], widths[i]), 'bias': (widths[i],)} for i in (1, 2, 3)
        }
    changed = jax.tree.map(lambda x: x + 0.3 * random(*x.shape), params)
    x = random(9, 7) * 3 + 1
    expected = dense_layers(double(changed), 'domain', np.float64(x), hidden=2)
    close(mlp.apply(changed, 'domain', x), expected, atol=1e-4)
    # Where a unit is nearly the same for all, too.
    for scale in (0, 1e-3):
        x = scale * random(9, 7)
        close(mlp.apply(changed, 'domain', x), dense_layers(double(changed), 'domain', np.float64(x), 2), atol=1e-4)
    # Beside other networks, it is the one of that name.
    others = {**params, **MLP((5, 5, 5, 2)).init(jax.random.key(1), 'domains', 7, 1), 'head': {}, 'stem': {}}
    np.testing.assert_array_equal(mlp.apply(others, 'domain', x), mlp.apply(params, 'domain', x))


def test_own_networks_begin_with_glorots_variance_and_other_values_in_every_layer():
    params = MLP((200, 200, 200, 1)).init(jax.random.key(0), 'x', 200, 3)
    for i in (1, 2, 3):
        assert np.std(params[f'head_x{i}']['kernel']) == pytest.approx(np.sqrt(2 / 400), rel=0.02)
        assert not params[f'head_x{i}']['bias'].any()
    assert np.abs(np.corrcoef([np.ravel(params[f'head_x{i}']['kernel']) for i in (1, 2, 3)]) - np.eye(3)).max() < 0.05
    other = MLP((200, 200, 200, 1)).init(jax.random.key(1), 'x', 200, 3)
    assert np.any(other['head_x1']['kernel'] != params['head_x1']['kernel'])


ADVERSARIES = [
    ('dann', {}),
    ('dann', {'batch_norm': False}),
    ('cdan', {}),
    ('cdan', {'entropy': True}),
    ('cdan', {'randomized': 7, 'batch_norm': False}),
]


def adversary(name, fields):
    return methods.create(name, {'widths': NARROW, 'weight': 1.7, 'gamma': 4.0, **fields})


def cdan_projections(state, features, randomized):
    """The random matrices, drawn as a method's state says; which they are is not for the paper to say."""
    keys = jax.random.split(jax.random.wrap_key_data(state))
    sizes = features, fakes.NUM_CLASSES
    return [np.float64(jax.random.normal(key, (n, randomized))) for key, n in zip(keys, sizes, strict=True)]


def domain_logits(method, params, features, p, state=()):
    """What the discriminator makes of both domains: DANN's of the features, CDAN's of features and predictions."""
    joint = features
    if hasattr(method, 'randomized'):
        if method.randomized:
            f, g = cdan_projections(state, features.shape[1], method.randomized)
            joint = (features @ f) * (p @ g) / np.sqrt(method.randomized)
        else:
            joint = np.stack([np.outer(a, b).ravel() for a, b in zip(features, p, strict=True)])
    return dense_layers(params, 'domain', joint, hidden=len(method.widths))[:, 0]


def adversarial(method, params, images, constant=None):
    """The loss before its weight; `constant` are parameters for what no gradient flows through.

    CDAN+E as in the authors' code (thuml/CDAN, pytorch/loss.py): weights with a gradient, over their sum without one.
    """
    parts = outputs(params, images)
    live, p = (
        softmax(np.concatenate([part['logits'] for part in outputs(values, images)]))
        for values in (params, constant or params)
    )
    state = initial_state(method)
    logits = domain_logits(method, params, np.concatenate([part['features'] for part in parts]), p, state)
    weights = np.ones(2), np.ones(4)
    if getattr(method, 'entropy', False):
        certainty, fixed = (1 + np.exp(-entropy(q)) for q in (live, p))
        weights = certainty[:2] / fixed[:2].sum() * 2, certainty[2:] / fixed[2:].sum() * 4
    return bce(logits[:2], logits[2:], *weights), logits


@pytest.mark.parametrize(('name', 'fields'), ADVERSARIES)
@pytest.mark.parametrize(('seed', 'progress'), [(0, 0.5), (1, 0.0)])
def test_adversarial_losses(name, fields, seed, progress):
    method = adversary(name, fields)
    inputs = fakes.inputs(method, seed=seed, progress=progress)
    loss, logits = adversarial(method, double(inputs.params), inputs.images)
    metrics = {'lambda': ramp(progress, 4.0), **discriminator_metrics(logits[:2], logits[2:])}
    check(method, inputs, loss, metrics, weight=1.7)


@pytest.mark.parametrize(('name', 'fields'), ADVERSARIES)
def test_the_discriminator_goes_down_and_the_features_up_the_loss(name, fields):
    """Gradients by finite differences: plain for the discriminator, times -lambda for the network below it."""
    method = adversary(name, fields)
    inputs = fakes.inputs(method, progress=0.3)
    constant = double(inputs.params)
    slopes = fakes.numeric(lambda p: adversarial(method, p, inputs.images, constant)[0], double(inputs.params))
    actual = gradient(method, inputs, initial_state(method))
    strength = ramp(0.3, 4.0)
    assert np.abs(slopes['features']).max() > 1e-3
    expected = {layer: jax.tree.map(lambda x: 1.7 * x, slopes[layer]) for layer in slopes}
    for below in ('features', 'logits'):  # which CDAN+E reaches by its weights
        expected[below] = -strength * expected[below]
    assert (np.abs(slopes['logits']).max() > 1e-4) == bool(fields.get('entropy'))
    assert_gradients(actual, expected)


@pytest.mark.parametrize(('name', 'fields'), ADVERSARIES)
def test_gamma_zero_trains_the_discriminator_alone_and_as_fast(name, fields):
    usual, off = (adversary(name, {**fields, 'gamma': gamma}) for gamma in (4.0, 0.0))
    inputs = fakes.inputs(off)
    usual, off = (gradient(method, inputs, initial_state(method)) for method in (usual, off))
    for layer in off:
        if layer.startswith('head_domain'):
            jax.tree.map(np.testing.assert_array_equal, usual[layer], off[layer])
            assert all(np.any(g) for g in jax.tree.leaves(off[layer]))
        else:
            assert not np.any(off[layer])
    assert np.any(usual['features'])


def test_entropy_conditioning_weighs_certain_examples_up_to_twice_as_much():
    """One certain and one uncertain target example: weights 2 : 1 + 1/3, with a mean of one."""
    method = adversary('cdan', {'widths': (), 'batch_norm': False, 'entropy': True})
    inputs = fakes.inputs(method)
    logits = np.float32([[0, 90, 0], [0, 0, 0]])
    features = random(2, fakes.FEATURES)
    part = {'features': jnp.asarray(features), 'logits': jnp.asarray(logits)}
    inputs = dataclasses.replace(inputs, outputs=dict.fromkeys(DOMAINS, part))
    kernel = np.float64(inputs.params['head_domain1']['kernel'])[:, 0]
    domain_logits = np.array([np.outer(a, b).ravel() @ kernel for a, b in zip(features, softmax(logits), strict=True)])
    weights = np.array([2, 1 + 1 / 3]) / (5 / 3)
    close(
        method.loss(inputs, initial_state(method)).metrics['loss'], bce(domain_logits, domain_logits, weights, weights)
    )


def test_random_products_are_the_outer_product_on_average():
    """Equation 6: the inner product of two randomized joint variables estimates that of the full ones."""
    features, p = np.float64(random(2, 5)), softmax(np.float64(random(2, 3, seed=1)))
    full = [np.outer(a, b).ravel() for a, b in zip(features, p, strict=True)]
    f, g = cdan_projections(initial_state(adversary('cdan', {})), 5, 40000)
    joint = (features @ f) * (p @ g) / np.sqrt(40000)
    close(joint @ joint.T, np.array(full) @ np.array(full).T, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(('name', 'fields'), ADVERSARIES)
def test_the_discriminator_learns_to_tell_fixed_features_apart(name, fields):
    """Plain gradient descent on its parameters, whatever lambda is, until it is right and not before."""
    method = methods.create(name, {'widths': (16,), **fields})
    inputs = fakes.inputs(method, progress=0.8)
    # On top of features that say nothing: a shift of one of them, and predictions that are the same for all.
    source, target = random(24, fakes.FEATURES), random(40, fakes.FEATURES, seed=1)
    source[:, 2] += 4
    target[:, 2] -= 4
    outputs = {
        view: {'features': jnp.asarray(x), 'logits': jnp.zeros((len(x), fakes.NUM_CLASSES))}
        for view, x in zip(DOMAINS, (source, target), strict=True)
    }
    inputs = dataclasses.replace(inputs, outputs=outputs, labels=jnp.zeros(len(source), jnp.int32))
    state = initial_state(method)

    def loss(params):
        result = method.loss(dataclasses.replace(inputs, params=params), state)
        return result.loss, result.metrics

    @jax.jit
    def train(params):
        def body(params, _):
            slopes, metrics = jax.jit(jax.grad(loss, has_aux=True))(params)
            return jax.tree.map(lambda p, g: p - 0.3 * g, params, slopes), metrics

        return jax.lax.scan(body, params, None, 60)

    params, metrics = train(inputs.params)
    assert np.any(metrics['domain_accuracy'][0] != 1)
    assert metrics['domain_accuracy'][-1] > 0.95
    assert metrics['a_distance'][-1] > 1.8
    assert metrics['loss'][-1] < metrics['loss'][0] / 2
    for values in (inputs.params, params):
        features, p = np.concatenate([source, target]), np.full((64, 3), 1 / 3)
        logits = domain_logits(method, double(values), np.float64(features), p, state)
        assert logits.std() > 0.05 * (1 if values is inputs.params else 20)
    assert np.abs(logits[:24].mean() - logits[24:].mean()) > 2


# MCC


def mcc(logits, temperature, constant=None):
    """Equations 3 to 7; `constant` are logits for the weights, through which no gradient flows."""
    p = softmax(logits / temperature)
    certainty = 1 + np.exp(-entropy(softmax((logits if constant is None else constant) / temperature)))
    weights = len(p) * certainty / certainty.sum()
    classes = range(p.shape[1])
    confusion = np.array(
        [[sum(w * q[j] * q[k] for w, q in zip(weights, p, strict=True)) for k in classes] for j in classes]
    )
    confusion = np.array([row / row.sum() for row in confusion])
    return sum(confusion[j, k] for j in classes for k in classes if j != k) / p.shape[1]


@pytest.mark.parametrize('temperature', [1.0, 2.5])
@pytest.mark.parametrize('scale', [0.3, 2.0])
def test_mcc_is_the_class_confusion_of_the_target(temperature, scale):
    method = methods.create('mcc', {'temperature': temperature, 'weight': 0.4})
    inputs = fakes.inputs(method, scale=scale)
    logits = np.float64(inputs.outputs[WEAK]['logits'])
    check(method, inputs, mcc(logits, temperature), {}, weight=0.4)


def test_mcc_gives_its_weights_no_gradient():
    method = methods.create('mcc', {'weight': 0.4})
    inputs = fakes.inputs(method, scale=3.0)
    images = np.float64(inputs.images[WEAK])
    fixed = fakes.network(double(inputs.params), images)['logits']
    slopes = fakes.numeric(
        lambda p: 0.4 * mcc(fakes.network(p, images)['logits'], 2.5, fixed), double({'logits': inputs.params['logits']})
    )
    assert np.abs(slopes['logits']).max() > 1e-3
    assert_gradients(gradient(method, inputs), slopes)


def test_mcc_is_zero_for_certain_predictions_and_largest_for_uniform_ones():
    method = methods.create('mcc', {})

    def value(logits):
        part = {'logits': jnp.float32(logits)}
        return method.loss(fakes.inputs(method, outputs={WEAK: part}), ()).loss

    assert value(300 * np.eye(3)[[0, 1, 2, 0]]) == pytest.approx(0, abs=1e-6)
    assert value(np.zeros((4, 3))) == pytest.approx(2 / 3)


# Maximum mean discrepancy


def mmd(parts, scales, joint, linear, constant=None):
    """`constant` are the parts that the bandwidth is taken of. As in TLlib (tllib/alignment/dan.py and jan.py).

    Kernels are added up. Linear: each example and the next one of its batch, the first after the last, with those of
    the other domain at the same places. Otherwise all pairs of different examples.
    """
    x = np.concatenate([part['features'] for part in parts])
    p = softmax(np.concatenate([part['logits'] for part in parts]))
    fixed = np.concatenate([part['features'] for part in constant or parts])
    mean = np.mean([((a - b) ** 2).sum() for a in fixed for b in fixed])

    def kernel(i, j):
        distance = ((x[i] - x[j]) ** 2).sum()
        k = sum(np.exp(-distance / (2 * scale * mean)) for scale in scales)
        return k * np.exp(-((p[i] - p[j]) ** 2).sum() / (2 * 0.92**2)) if joint else k

    n, total = len(parts[0]['features']), len(x)
    source, target = list(range(n)), list(range(n, total))
    if linear:
        estimates = []
        for i in range(max(n, total - n)):
            (s, after_s), (t, after_t) = ((part[i % len(part)], part[(i + 1) % len(part)]) for part in (source, target))
            estimates.append(kernel(s, after_s) + kernel(t, after_t) - kernel(s, after_t) - kernel(after_s, t))
        return np.mean(estimates)
    within = [np.mean([kernel(i, j) for i in part for j in part if i != j]) for part in (source, target)]
    return sum(within) - 2 * np.mean([kernel(i, j) for i in source for j in target])


SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


BOTH = pytest.mark.parametrize(('joint', 'linear'), [(False, True), (True, False), (False, False), (True, True)])


@BOTH
@pytest.mark.parametrize('scales', [SCALES, (0.7,)])
def test_mmd_between_streams_of_two_and_four(joint, linear, scales):
    method = methods.create('mmd', {'joint': joint, 'linear': linear, 'scales': scales, 'weight': 3.0})
    inputs = fakes.inputs(method)
    check(method, inputs, mmd(outputs(double(inputs.params), inputs.images), scales, joint, linear), {}, weight=3.0)


def test_dan_is_five_kernels_added_up_over_neighbours():
    """By hand, in one dimension: source 0 and 1, target 0 and 3, so that the mean squared distance is 3."""
    features = [jnp.float32([[0.0], [1.0]]), jnp.float32([[0.0], [3.0]])]
    parts = {view: {'features': x, 'logits': jnp.zeros((2, 3))} for view, x in zip(DOMAINS, features, strict=True)}

    def k(difference):
        return sum(math.exp(-(difference**2) / (2 * scale * 3)) for scale in SCALES)

    # s1 s2, t1 t2, s1 t2, s2 t1; then the first after the last: s2 s1, t2 t1, s2 t1, s1 t2.
    method = methods.create('mmd', {})
    close(method.loss(fakes.inputs(method, outputs=parts), ()).loss, k(1) + k(3) - k(3) - k(1), atol=1e-6)
    parts[WEAK] = {**parts[WEAK], 'features': jnp.float32([[3.0], [0.0]])}
    close(method.loss(fakes.inputs(method, outputs=parts), ()).loss, k(1) + k(3) - k(0) - k(2))


@BOTH
@pytest.mark.parametrize(('n', 'm'), [(5, 5), (7, 3)])
def test_mmd_with_any_batch_sizes(joint, linear, n, m):
    method = methods.create('mmd', {'joint': joint, 'linear': linear})
    parts = [
        {'features': random(k, 6, seed=k + i) + i, 'logits': random(k, 3, seed=9 + i)} for i, k in enumerate((n, m))
    ]
    result = method.loss(
        fakes.inputs(method, outputs=jax.tree.map(jnp.asarray, dict(zip(DOMAINS, parts, strict=True)))), ()
    )
    close(result.loss, mmd(double(parts), SCALES, joint, linear))


@BOTH
def test_mmd_gives_its_bandwidth_no_gradient(joint, linear):
    method = methods.create('mmd', {'joint': joint, 'linear': linear})
    inputs = fakes.inputs(method, scale=0.3)
    fixed = outputs(double(inputs.params), inputs.images)
    slopes = fakes.numeric(
        lambda p: mmd(outputs(p, inputs.images), SCALES, joint, linear, fixed), double(inputs.params)
    )
    assert np.abs(slopes['features']).max() > 1e-3
    assert np.any(slopes['logits']) == joint
    assert_gradients(gradient(method, inputs), slopes)


@pytest.mark.parametrize('linear', [False, True])
def test_mmd_has_a_mean_of_zero_between_samples_of_one_distribution_and_grows_with_their_distance(linear):
    method = methods.create('mmd', {'linear': linear})

    @jax.jit
    @jax.vmap
    def value(source, target):
        parts = [{'features': x, 'logits': x[:, :3]} for x in (source, target)]
        return method.loss(fakes.inputs(method, outputs=dict(zip(DOMAINS, parts, strict=True))), ()).loss

    source, target = random(400, 6, 4), random(400, 9, 4, seed=1)
    same, near, far = (value(source, target + shift) for shift in (0, 0.5, 2))
    assert abs(same.mean()) < 3 * same.std() / 20
    assert same.min() < 0  # without bias, and so below zero at times
    assert near.mean() > 0.1
    assert far.mean() > 3 * near.mean()


def test_mmd_of_features_that_are_all_the_same_is_zero_and_its_gradient_finite():
    method = methods.create('mmd', {})
    views = {view: 0 * x for view, x in fakes.images().items()}
    inputs = fakes.inputs(method, views=views)
    assert method.loss(inputs, ()).loss == pytest.approx(0, abs=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient(method, inputs)))


# CORAL


def coral(parts, output):
    source, target = (np.cov(part[output], rowvar=False) for part in parts)
    return ((source - target) ** 2).sum() / (4 * len(source) ** 2)


@pytest.mark.parametrize('output', ['logits', 'features'])
@pytest.mark.parametrize('seed', [0, 1])
def test_coral_is_the_distance_of_covariances(output, seed):
    method = methods.create('coral', {'output': output, 'weight': 0.3})
    inputs = fakes.inputs(method, seed=seed)
    check(method, inputs, coral(outputs(double(inputs.params), inputs.images), output), {}, weight=0.3)


@pytest.mark.parametrize('output', ['logits', 'features'])
def test_coral_trains_both_domains(output):
    method = methods.create('coral', {'output': output})
    inputs = fakes.inputs(method, scale=0.3)
    slopes = fakes.numeric(lambda p: coral(outputs(p, inputs.images), output), double(inputs.params))
    assert np.abs(slopes[output]).max() > 1e-3
    assert_gradients(gradient(method, inputs), slopes)


def test_coral_does_not_see_a_shift_of_the_mean():
    method = methods.create('coral', {})
    logits = random(4, 3)
    parts = {LABELED: {'logits': logits}, WEAK: {'logits': logits + 5}}
    assert method.loss(fakes.inputs(method, outputs=parts), ()).loss == pytest.approx(0, abs=1e-6)
