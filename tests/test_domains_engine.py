"""Two domains in the engine: batch norm, DANN's real steps, the streams of source and target, schedule, bottleneck."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from data import datasets
from data.augment import Weak
from errors import UserError
from methods.base import LABELED, WEAK
from models import layers
from train import losses, optimizer
from train import mesh as mesh_lib
from train import step as step_lib
from train import streams as streams_lib
from train.settings import Optimizer
from train.streams import Streams
from train.trainer import stream_key
from train.views import make_views

DIGITS, DIGITS_M = (('digits', 'train'), ('digits_m', 'train'))
EPSILON, MOMENTUM = 1e-3, 0.9
# The shares of source and target in the running statistics, as the papers of the policies have it.
SHARES = {'separate': (0.5, 0.5), 'adabn': (0.0, 1.0), 'domain_specific': (0.0, 1.0)}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(actual, expected, rtol=1e-4, atol=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


# Batch norm by domain

OF = np.int32([0, 1, 1, 0, 1, 1, 0, 1])  # the domain of each image that has a gradient
OF_OTHERS = np.int32([1, 0, 0, 0])  # and of those that have none


def variables(policy, channels=3):
    params = {'scale': [1, 2, 0.5], 'bias': [0, 1, -1]}
    if policy == 'domain_specific':
        params |= {'scale_target': [3, 0.5, 1.5], 'bias_target': [-2, 0, 1]}
    stats = {'mean': [1, 0, -1], 'var': [4, 1, 0.25]}
    return jax.tree.map(
        lambda x: np.float32(x), {'params': params, 'batch_stats': stats}, is_leaf=lambda x: isinstance(x, list)
    )


def images(shape):
    x, others = random(8, *shape), random(4, *shape, seed=1)
    # Domains that differ in mean and variance.
    shift, spread = (np.float32(v)[:, None] for v in ([0, 3], [1, 2]))
    return [
        a * spread[domains].reshape(-1, *[1] * len(shape)) + shift[domains].reshape(-1, *[1] * len(shape))
        for a, domains in ((x, OF), (others, OF_OTHERS))
    ]


def expected_norm(policy, params, stats, x, others=None):
    """(output with gradient, output without, running statistics), in float64."""
    axes = tuple(range(x.ndim - 1))
    scales = [params['scale'], params.get('scale_target', params['scale'])]
    biases = [params['bias'], params.get('bias_target', params['bias'])]
    out = [np.zeros(x.shape), None if others is None else np.zeros(others.shape)]
    means, variances = [], []
    for d in (0, 1):
        members = x[d == OF] if policy != 'joint' else x
        mean, var = members.mean(axes), members.var(axes)
        for i, (part, domains) in enumerate(((x, OF), (others, OF_OTHERS))):
            if part is not None:
                out[i][domains == d] = (part[domains == d] - mean) / np.sqrt(var + EPSILON) * scales[d] + biases[d]
        pooled = members
        if others is not None:
            pooled = np.concatenate([members, others[d == OF_OTHERS] if policy != 'joint' else others])
        means.append(pooled.mean(axes))
        variances.append(pooled.var(axes, ddof=1))
    shares = np.array(SHARES.get(policy, (0.5, 0.5)))  # joint: both are of all images
    running = {
        'mean': MOMENTUM * stats['mean'] + (1 - MOMENTUM) * shares @ means,
        'var': MOMENTUM * stats['var'] + (1 - MOMENTUM) * shares @ variances,
    }
    return *out, running


def batch_norm(policy, train, values, x, others=None, domains=OF, domains_of_others=OF_OTHERS, frozen=False):
    """Returns the outputs of a batch and of images beside it, and the running statistics, as `models.Model` does."""

    def given(domains, moments):
        if frozen:
            return values['batch_stats']
        shares = {} if policy == 'joint' else {'domains': domains, 'shares': jnp.asarray(SHARES[policy])}
        return {**shares, **moments}

    def run(x, given):
        norm = layers.BatchNorm(MOMENTUM, EPSILON)
        return norm.apply({**values, 'given': given}, x, train, mutable=['batch_stats', 'moments'])

    out, state = run(x, given(domains, {}))
    if others is None:
        return out, None, state['batch_stats']
    moments = jax.lax.stop_gradient(state['moments'])
    beside, state = run(others, given(domains_of_others, moments))
    return out, jax.lax.stop_gradient(beside), state['batch_stats']


@pytest.mark.parametrize('devices', [1, 2])
@pytest.mark.parametrize('shape', [(4, 5, 3), (3,)])
@pytest.mark.parametrize('beside', [False, True])
@pytest.mark.parametrize('policy', models.DOMAIN_POLICIES)
def test_batch_norm_by_domain(policy, beside, shape, devices):
    x, others = images(shape)
    others = others if beside else None
    values = variables(policy)
    run = jax.jit(functools.partial(batch_norm, policy, True))
    mesh = jax.make_mesh((devices,), ('data',), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        parts = mesh_lib.put_batch(mesh, (x, others, OF, OF_OTHERS))
        out, out_of_others, stats_after = run(mesh_lib.put_replicated(mesh, values), *parts)
    params, stats = (jax.tree.map(np.float64, values[key]) for key in ('params', 'batch_stats'))
    expected, expected_others, running = expected_norm(
        policy, params, stats, np.float64(x), np.float64(others) if beside else None
    )
    close(out, expected)
    if beside:
        close(out_of_others, expected_others)
    assert set(stats_after) == set(running)
    for name, value in running.items():
        close(stats_after[name], value)


@pytest.mark.parametrize('beside', [False, True])
@pytest.mark.parametrize('policy', models.DOMAIN_POLICIES)
def test_gradients_of_batch_norm_by_domain(policy, beside):
    with jax.enable_x64(True):
        x, others = (np.float64(a) for a in images((2, 2, 3)))
        weights, other_weights = np.float64(random(*x.shape, seed=2)), np.float64(random(*others.shape, seed=3))
        others = others if beside else None
        values = jax.tree.map(np.float64, variables(policy))

        def total(params, x, others):
            out, out_of_others, _ = batch_norm(policy, True, {**values, 'params': params}, x, others)
            result = (out * weights).sum()
            return result + (out_of_others * other_weights).sum() if beside else result

        actual = jax.jit(jax.grad(total, (0, 1)))(values['params'], x, others)

        tree = copy.deepcopy([values['params'], x])
        # Of the part with a gradient alone: what is only looked at gives none.
        slopes = jax.tree.map(np.zeros_like, tree)
        for leaf, slope in zip(jax.tree.leaves(tree), jax.tree.leaves(slopes), strict=True):
            for i in np.ndindex(leaf.shape):
                value, ends = leaf[i], []
                for step in (1e-6, -1e-6):
                    leaf[i] = value + step
                    out, *_ = expected_norm(policy, tree[0], values['batch_stats'], tree[1], others)
                    ends.append((out * weights).sum())
                leaf[i] = value
                slope[i] = (ends[0] - ends[1]) / 2e-6
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(slopes), strict=True):
            close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('mode', [{'train': False}, {'train': True, 'frozen': True}])
@pytest.mark.parametrize('policy', models.DOMAIN_POLICIES)
def test_evaluation_is_for_the_target_and_leaves_the_statistics(policy, mode):
    x, _ = images((2, 2, 3))
    values = variables(policy)
    out, _, stats_after = batch_norm(policy, values=values, x=x, **mode)
    params, stats = values['params'], values['batch_stats']
    scale, bias = (params.get(f'{name}_target', params[name]) for name in ('scale', 'bias'))
    close(out, (np.float64(x) - stats['mean']) / np.sqrt(stats['var'] + EPSILON) * scale + bias)
    jax.tree.map(np.testing.assert_array_equal, stats_after, stats)


def test_both_domains_begin_with_the_same_scale_and_bias():
    for policy in models.DOMAIN_POLICIES:
        model = models.create('wide_resnet', 10, blocks=(1,), width=1, batch_norm=policy)
        variables = model.init(jax.random.key(0), (8, 8, 3))
        targets = {'scale_target', 'bias_target'} if policy == 'domain_specific' else set()
        for layer in variables['batch_stats']:
            params = variables['params'][layer]
            assert set(params) == {'scale', 'bias'} | targets
            assert all((value == (1 if name.startswith('scale') else 0)).all() for name, value in params.items())


def test_an_unknown_batch_norm_is_named():
    with pytest.raises(UserError, match=r"Unknown model.batch_norm 'adbn'\. Did you mean 'adabn'\?"):
        models.create('wide_resnet', 10, batch_norm='adbn')


# Real steps


SMALL = {'data.validation': 0, 'optimizer.weight_decay': 0.0, 'model.batch_norm': 'adabn'}
OWN = {'methods.dann.widths': (8,)}


@pytest.fixture(scope='module')
def train(make_settings, data_dir):
    """Returns a function: (methods of configs/dann.py, overrides) -> trainer, first state, that after three steps."""
    streams = Streams.load(make_settings('dann', **SMALL, **OWN), data_dir)
    mesh = jax.make_mesh((2,), ('data',), (jax.sharding.AxisType.Auto,))

    @functools.cache
    def run(methods, overrides=()):
        settings = make_settings('dann', f'methods={methods}', **SMALL, **dict(overrides))
        trainer = step_lib.Trainer.create(settings, streams.spec(settings))
        with jax.set_mesh(mesh):
            # Off in the other tests (conftest.py). With fusion emitters two programs agree bit for bit.
            options = {'xla_cpu_use_fusion_emitters': True}
            step = jax.jit(functools.partial(step_lib.step, trainer), compiler_options=options)
            batch = mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, 0, 0))
            first = step_lib.init(trainer, batch)
            state = mesh_lib.put_replicated(mesh, first)
            for i in range(3):
                state, metrics = step(state, mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, 0, i)))
        return trainer, jax.device_get(first), jax.device_get(state), metrics

    return run


def dann(train, gamma):
    return train('dann', (*OWN.items(), ('methods.dann.gamma', gamma)))


def flat(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_dann_without_lambda_is_source_only_bit_for_bit(train):
    _, first, alone, _ = train('source_only')
    _, first_beside, beside, _ = dann(train, 0.0)
    moved = 0
    for name in ('params', 'ema_params', 'batch_stats'):
        start, a, b = (flat(getattr(state, name)) for state in (first, alone, beside))
        assert {key for key in b if key not in a} == (
            {key for key in b if 'head_dann' in key} if name != 'batch_stats' else set()
        )
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
            np.testing.assert_array_equal(start[key], flat(getattr(first_beside, name))[key])
            moved += np.any(a[key] != start[key])
    assert moved > 20


def test_dann_with_lambda_is_not(train):
    _, _, alone, _ = train('source_only')
    _, _, beside, _ = dann(train, 10.0)
    a, b = flat(alone.params), flat(beside.params)
    changed = {key for key in a if not np.allclose(a[key], b[key], rtol=1e-5, atol=1e-8)}
    assert {key for key in a if 'head' not in key} <= changed


@pytest.mark.parametrize('gamma', [0.0, 10.0])
def test_every_parameter_of_the_discriminator_moves(train, gamma):
    trainer, first, last, metrics = dann(train, gamma)
    start, end = flat(first.params), flat(last.params)
    own = [key for key in start if 'head_dann' in key]
    assert len(own) == 5  # two kernels, a norm's scale and bias, the last bias
    for key in own:
        assert np.any(start[key] != end[key]), key
        assert np.all(np.isfinite(end[key]))
    assert trainer.batch_sizes == {'labeled': 4, 'unlabeled': 8}
    total, count = metrics.means['dann/lambda']
    assert (total / count > 0) == (gamma > 0)
    assert metrics.means['dann/pseudo_label_accuracy_all'][1] == 8  # of the last, the first since a logged one


def test_batch_norms_domains_are_those_of_the_streams(train):
    """What the engine tells batch norm: 0 for each labeled image and 1 for each unlabeled one, in their order."""
    trainer, first, _, _ = dann(train, 0.0)
    assert trainer.views == {LABELED: 'joint', WEAK: 'joint'}
    seen = {}

    def apply(variables, images, train, *, frozen, keys, domains):
        seen['domains'] = domains
        return {'features': images}, {}

    fake = type('Fake', (), {'has_domains': True, 'apply': staticmethod(apply)})()
    views = {LABELED: jnp.zeros((4, 8, 8, 3)), WEAK: jnp.ones((8, 8, 8, 3))}
    outputs, _ = losses.forward(dataclasses.replace(trainer, model=fake), {}, first, views)
    np.testing.assert_array_equal(seen['domains'], [0] * 4 + [1] * 8)
    for view, images in views.items():
        np.testing.assert_array_equal(outputs[view]['features'], images)


def test_what_a_method_begins_with_is_drawn_by_the_seed(make_settings, data_dir):
    """CDAN's random projections: others for every seed, the same for equal ones, whatever is beside it."""

    def drawn(seed, methods='cdan'):
        settings = make_settings('dann', f'methods={methods}', **SMALL, seed=seed)
        trainer = step_lib.Trainer.create(settings, streams.spec(settings))
        state = step_lib.init(trainer, streams.batches(trainer.batch_sizes, seed, 0))
        return state.methods['cdan'].tolist()

    streams = Streams.load(make_settings('dann', **SMALL), data_dir)
    assert drawn(0) == drawn(0, 'cdan+mcc') != drawn(1)


def random_crops(make_settings, data_dir, **overrides):
    """Returns the trainer of DANN with random crops of a tenth to all of an image, and its first batch and views."""
    settings = make_settings('dann', **SMALL, **{'data.weak.min_area': 0.1, 'data.weak.flip': False, **overrides})
    streams = Streams.load(settings, data_dir)
    trainer = step_lib.Trainer.create(settings, streams.spec(settings))
    batch = streams.batches({'labeled': 64, 'unlabeled': 64}, 0, 0)
    state = type('State', (), {'seed': 7, 'step': 3})()
    return trainer, batch, make_views(trainer, state, batch)


def test_crops_of_the_target_have_an_area_of_their_own(make_settings, data_dir):
    """FixMatch in TLlib (fixmatch.py): 0.08 to 1 of the area for the source, 0.5 to 1 for the target."""
    trainer, batch, views = random_crops(make_settings, data_dir, **{'data.unlabeled_min_area': 0.6})
    for view, area in ((LABELED, 0.1), (WEAK, 0.6)):
        images = batch[view.stream]['images']
        own = Weak(flip=False, pad=trainer.settings.data.weak['pad'], min_area=area)
        draws = own.draw(stream_key(7, str(view), 3), images.shape)
        close(views[view], trainer.model.preprocess(own.apply(draws, images)))
        assert np.prod(draws['box'][:, 2:], axis=1).min() > 0.95 * area * 64 - 1e-3


def test_a_random_crop_fills_the_networks_input_and_evaluation_has_the_centre(make_settings, data_dir):
    """TLlib and everyone else: RandomResizedCrop(224) in training, Resize(256) and CenterCrop(224) in evaluation."""
    centre = {'model.resolution': 4, 'model.crop': 0.5}
    trainer, batch, views = random_crops(make_settings, data_dir, **centre)
    *_, whole = random_crops(make_settings, data_dir, **{**centre, 'model.crop': 1.0})
    *_, plain = random_crops(make_settings, data_dir, **centre, **{'data.weak.min_area': 0.0, 'data.weak.pad': 0})
    for view in (LABELED, WEAK):
        np.testing.assert_array_equal(views[view], whole[view])
        x = np.float32(batch[view.stream]['images']) / 255
        close(plain[view], 2 * x[:, 2:6, 2:6] - 1)
        close(trainer.model.preprocess(x), plain[view])


def test_domain_batch_norm_sees_both_streams_whatever_the_losses_read(make_settings, data_dir):
    def views(methods, batch_norm):
        settings = make_settings('dann', f'methods={methods}', **{**SMALL, 'model.batch_norm': batch_norm})
        return step_lib.Trainer.create(settings, streams.spec(settings)).views

    streams = Streams.load(make_settings('dann', **SMALL), data_dir)
    both = {LABELED: 'joint', WEAK: 'joint'}
    assert views('source_only', 'joint') == {LABELED: 'joint'}
    for policy in ('separate', 'adabn', 'domain_specific'):
        assert views('source_only', policy) == both


# Streams of source and target


@pytest.fixture(scope='module')
def load(make_settings, data_dir):
    return lambda **overrides: Streams.load(make_settings('dann', **{'checkpoint_steps': 3, **overrides}), data_dir)


@pytest.fixture(scope='module')
def domains(data_dir):
    """Returns {(data set, split): (images in colour, labels)}."""
    domains_by_split = {}
    for name, split in ((n, s) for n in ('digits', 'digits_m') for s in ('train', 'test')):
        arrays = datasets.load(name, split, data_dir)
        domains_by_split[name, split] = np.broadcast_to(arrays.images, (*arrays.images.shape[:3], 3)), arrays.labels
    return domains_by_split


def assert_part(streams, stream, images, labels):
    chosen = streams.indices[stream]
    np.testing.assert_array_equal(streams.images[chosen], images)
    np.testing.assert_array_equal(streams.labels[chosen], labels)


def content(images):
    return {image.tobytes() for image in images}


def test_labels_are_of_the_source_and_all_else_of_the_target(load, domains):
    streams = load(**{'data.validation': 200})
    source, target = (domains[part] for part in (DIGITS, DIGITS_M))
    assert_part(streams, 'unlabeled', *target)
    labeled = streams.indices['labeled']
    assert len(labeled) == len(set(labeled)) == 1297 - 200
    assert labeled.max() < 1297
    assert_part(streams, 'labeled', *(part[labeled] for part in source))
    images, labels = streams.held_out['validation']
    rest = np.setdiff1d(np.arange(1297), labeled)
    assert content(images) == content(source[0][rest])
    assert np.bincount(labels).tolist() == np.bincount(source[1][rest]).tolist()
    for actual, expected in zip(streams.held_out['test'], domains['digits_m', 'test'], strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert content(streams.held_out['test'][0]).isdisjoint(content(streams.unlabeled()))
    assert streams.images.dtype == np.uint8
    assert streams.num_classes == 10


def test_gray_images_become_colour_beside_colour(load):
    streams = load()
    assert streams.images.shape[1:] == (8, 8, 3)
    gray = streams.images[streams.indices['labeled']]
    assert (gray == gray[..., :1]).all()
    assert (streams.unlabeled() != streams.unlabeled()[..., :1]).any()
    # The other way around, from colour to gray.
    back = load(**{'data.name': 'digits_m', 'data.target': 'digits'})
    assert (back.unlabeled() == back.unlabeled()[..., :1]).all()
    np.testing.assert_array_equal(back.unlabeled(), streams.images[:1297])


def test_batches_of_each_stream_are_of_its_domain(load, domains, make_settings):
    streams = load(**{'data.labels': 50})
    source, target = (content(domains[part][0]) for part in (DIGITS, DIGITS_M))
    batch = streams.batches({'labeled': 30, 'unlabeled': 40}, 0, 5)
    assert content(batch['labeled']['images']) <= source
    assert content(batch['unlabeled']['images']) <= target
    spec = streams.spec(make_settings('dann', **{'data.labels': 50, 'checkpoint_steps': 3}))
    assert (len(spec.labels), spec.num_unlabeled) == (50, 1297)
    np.testing.assert_array_equal(spec.labels, domains[DIGITS][1][streams.indices['labeled']])


def test_transductive_test_images_are_the_unlabeled_ones(load, domains):
    streams = load(**{'data.protocol': 'transductive'})
    assert_part(streams, 'unlabeled', *streams.held_out['test'])
    np.testing.assert_array_equal(streams.held_out['test'][0], domains[DIGITS_M][0])
    assert content(streams.held_out['validation'][0]) <= content(domains[DIGITS][0])


def test_a_target_without_test_set_is_cut_in_two(load, domains):
    parts = {'data.target_split': 'train[:80%]', 'data.test_split': 'train[80%:]'}
    streams = load(**parts)
    images, labels = domains[DIGITS_M]
    cut = round(0.8 * len(labels))
    assert_part(streams, 'unlabeled', images[:cut], labels[:cut])
    np.testing.assert_array_equal(streams.held_out['test'][0], images[cut:])
    streams = load(**parts, **{'data.protocol': 'transductive'})
    np.testing.assert_array_equal(streams.held_out['test'][0], images[:cut])


def test_images_are_brought_to_one_size(load):
    assert load(**{'data.image_size': 5}).images.shape[1:] == (5, 5, 3)


def arrays(side=8, channels=3, names=('a', 'b')):
    images = np.random.default_rng(0).integers(0, 256, (20, side, side, channels)).astype(np.uint8)
    return datasets.Arrays(images, np.int32([0, 1] * 10), len(names), names)


@pytest.mark.parametrize(
    ('source', 'target', 'message'),
    [
        ({}, {'side': 9}, 'Images of digits and digits_m are 8x8 and 9x9 pixels: set data.image_size to one size.'),
        ({}, {'names': ('a', 'b', 'c')}, 'digits and digits_m have not the same classes'),
        ({}, {'names': ('b', 'a')}, 'digits and digits_m have not the same classes'),
        ({'channels': 4}, {}, 'data.mean has 3 values, digits has 4 channels'),
        ({}, {'channels': 4}, 'data.mean has 3 values, digits_m has 4 channels'),
    ],
)
def test_domains_that_do_not_fit_are_an_error(load, monkeypatch, source, target, message):
    given = {'digits': arrays(**source), 'digits_m': arrays(**target)}
    monkeypatch.setattr(streams_lib.datasets, 'load', lambda name, *_: given[name])
    with pytest.raises(UserError, match=message):
        load(**{'data.validation': 0, 'data.labels': 4})


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'data.unlabeled_split': 'test'}, 'With a data.target, unlabeled images come from it'),
        ({'data.protocol': 'inductiv'}, "Unknown data.protocol 'inductiv'. Did you mean 'inductive'"),
        ({'data.protocol': 'transductive', 'data.target': ''}, 'transductive is for domain adaptation'),
        ({'selection': 'entropie'}, "Unknown selection 'entropie'. Did you mean 'entropy'"),
        ({'selection': 'information', 'data.target': ''}, 'selection=information is for domain adaptation'),
        ({'selection': 'iwcv', 'data.validation': 0}, 'selection=iwcv needs source images held out'),
        ({'selection': 'dev', 'data.validation': 0}, 'selection=dev needs source images held out'),
        ({'optimizer.schedule': 'invers'}, "Unknown optimizer.schedule 'invers'. Did you mean 'inverse'"),
    ],
)
def test_settings_that_do_not_go_together_are_an_error(make_settings, overrides, message):
    with pytest.raises(UserError, match=message):
        make_settings('dann', **{'checkpoint_steps': 3, **overrides})


@pytest.mark.parametrize(
    'overrides',
    [
        {'selection': 'dev', 'data.validation': 200},
        {'selection': 'entropy', 'data.validation': 0},
        {'data.protocol': 'transductive'},
    ],
)
def test_settings_that_do_go_together(make_settings, overrides):
    make_settings('dann', **{'checkpoint_steps': 3, **overrides})


# Schedule and bottleneck


@pytest.mark.parametrize(
    ('fields', 'gamma', 'power'),
    [({}, 10, 0.75), ({'inverse_gamma': 50.0}, 50, 0.75), ({'inverse_gamma': 2.0, 'inverse_power': 0.5}, 2, 0.5)],
)
def test_the_inverse_schedule(fields, gamma, power):
    settings = Optimizer(learning_rate=0.03, schedule='inverse', **fields)
    progress = np.linspace(0, 1, 7)
    rates = jax.vmap(lambda p: optimizer.learning_rate(settings, p))(jnp.float32(progress))
    np.testing.assert_allclose(rates, [0.03 / (1 + gamma * p) ** power for p in progress], rtol=1e-5)
    if not fields:
        assert rates[-1] == pytest.approx(0.03 * 0.16556, rel=1e-3)
    warm = dataclasses.replace(settings, warmup=0.5)
    rates = jax.vmap(lambda p: optimizer.learning_rate(warm, p))(jnp.float32(progress))
    expected = [min(1, p / 0.5) * 0.03 / (1 + gamma * p) ** power for p in progress]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.fixture(scope='module')
def narrow():
    model = models.create('wide_resnet', 4, {'rotation': (4,)}, blocks=(1,), width=1, bottleneck_width=5)
    variables = model.init(jax.random.key(0), (8, 8, 3))
    key = jax.random.key(1)
    changed = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape), variables)
    return model, jax.tree.map(np.asarray, changed)


@pytest.mark.parametrize('train', [False, True])
def test_features_are_those_of_the_bottleneck(narrow, train):
    model, variables = narrow
    plain = models.create('wide_resnet', 4, blocks=(1,), width=1)
    x = random(6, 8, 8, 3)
    outputs, stats = jax.jit(model.apply, static_argnums=2)(variables, x, train)
    head = {'kernel': jnp.zeros((16, 4)), 'bias': jnp.zeros(4)}
    below, _ = jax.jit(plain.apply, static_argnums=2)(
        {**variables, 'params': {**variables['params'], 'head': head}}, x, train
    )
    params, running = (variables[key] for key in ('params', 'batch_stats'))
    dense = np.float64(below['features']) @ params['bottleneck']['kernel'] + params['bottleneck']['bias']
    mean, var = running['bottleneck_norm']['mean'], running['bottleneck_norm']['var']
    if train:
        close(stats['bottleneck_norm']['mean'], 0.9 * mean + 0.1 * dense.mean(0))
        close(stats['bottleneck_norm']['var'], 0.9 * var + 0.1 * dense.var(0, ddof=1))
        mean, var = dense.mean(0), dense.var(0)
    norm = params['bottleneck_norm']
    features = np.maximum((dense - mean) / np.sqrt(var + 1e-5) * norm['scale'] + norm['bias'], 0)
    close(outputs['features'], features, rtol=1e-3, atol=1e-3)
    assert (features == 0).any()
    for name, layer in (('logits', 'head'), ('rotation', 'head_rotation1')):
        close(outputs[name], features @ params[layer]['kernel'] + params[layer]['bias'], rtol=1e-3, atol=1e-3)
    assert outputs['stage1'].shape == below['stage1'].shape
    if not train:  # Features that were kept pass the classifier as they are.
        again, _ = jax.jit(model.apply, static_argnums=2)(variables, outputs['features'], False)
        close(again['logits'], outputs['logits'], atol=1e-5)


def test_a_bottleneck_of_dense_layer_relu_and_dropout_is_what_every_loss_sees(narrow):
    """TLlib's DAN: the maximum mean discrepancy is of features half of which are dropped, the classifier's own."""
    _, variables = narrow
    model = models.create(
        'wide_resnet',
        4,
        {'rotation': (4,)},
        blocks=(1,),
        width=1,
        bottleneck_width=5,
        bottleneck_norm=False,
        dropout=0.5,
    )
    x, keys = random(40, 8, 8, 3), jax.random.split(jax.random.key(0), 40)
    plain = models.create('wide_resnet', 4, blocks=(1,), width=1)
    params, head = variables['params'], {'kernel': jnp.zeros((16, 4)), 'bias': jnp.zeros(4)}
    apply = functools.partial(jax.jit, static_argnums=2)
    below, _ = apply(plain.apply)({**variables, 'params': {**params, 'head': head}}, x, True)
    dense = np.float64(below['features']) @ params['bottleneck']['kernel'] + params['bottleneck']['bias']
    expected = np.maximum(dense, 0)
    outputs, _ = apply(model.apply)(variables, x, True, keys=keys)
    kept = np.asarray(outputs['features']) > 0
    assert (expected[kept] > 0).all()
    assert 0.3 < kept[expected > 1e-3].mean() < 0.7
    close(outputs['features'], np.where(kept, 2 * expected, 0), rtol=1e-3, atol=1e-3)
    for name, layer in (('logits', 'head'), ('rotation', 'head_rotation1')):
        close(
            outputs[name], outputs['features'] @ params[layer]['kernel'] + params[layer]['bias'], rtol=1e-3, atol=1e-3
        )
    evaluated, _ = apply(model.apply)(variables, x, False)
    assert (np.asarray(evaluated['features']) > 0).mean() > kept.mean() + 0.1


def test_the_bottleneck_learns_at_the_rate_of_its_rule(narrow):
    model, variables = narrow
    depths = {layer: about.depth for layer, about in model.layers.items()}
    assert depths['norm'] < depths['bottleneck'] == depths['bottleneck_norm'] < depths['head']
    # As in configs/dann.py.
    settings = Optimizer(learning_rate=1.0, layer_rates=('head|bottleneck: 1', '.*: 0.1'))
    rates = optimizer.layer_rates(settings, variables['params'], depths)
    fast = {layer for layer, leaves in rates.items() if set(leaves.values()) == {1.0}}
    assert fast == {'head', 'head_rotation1', 'bottleneck', 'bottleneck_norm'}
    assert {rate for layer in rates.keys() - fast for rate in rates[layer].values()} == {0.1}


@pytest.mark.parametrize('name', ['wide_resnet', 'resnet18', 'resnet50', 'bit_r50x1', 'efficientnet_lite0'])
def test_every_network_can_have_a_bottleneck_and_is_the_same_below_it(name):
    def layers_of(**fields):
        model = models.create(name, 7, **fields)
        shapes = jax.eval_shape(lambda key: model.init(key, (64, 64, 3)), jax.random.key(0))['params']
        return {layer: jax.tree.map(jnp.shape, leaves) for layer, leaves in shapes.items()}

    plain, none, narrow = layers_of(), layers_of(bottleneck_width=0), layers_of(bottleneck_width=6)
    assert none == plain
    assert not any(layer.startswith('bottleneck') for layer in plain)
    assert narrow['head']['kernel'] == (6, 7)
    assert narrow['bottleneck']['kernel'] == (plain['head']['kernel'][0], 6)
    assert set(layers_of(bottleneck_width=6, bottleneck_norm=False)) == set(narrow) - {'bottleneck_norm'}
    above = {'head', 'bottleneck', 'bottleneck_norm'}
    assert {k: v for k, v in narrow.items() if k not in above} == {k: v for k, v in plain.items() if k not in above}
