"""The training step: what it must compute, and what must not reach it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from errors import UserError
from methods.base import LABELED, STRONG, WEAK
from models.conv import conv
from train import diagnostics, losses, optimizer
from train import mesh as mesh_lib
from train import step as step_lib
from train import views as views_lib
from train.settings import OPTIMIZERS
from train.streams import Streams


@pytest.fixture(scope='module')
def start(make_settings, data_dir):
    """Returns a function: settings overrides -> (trainer, state, batch) before the first step."""
    streams = Streams.load(make_settings(), data_dir)

    @functools.cache
    def make(name, overrides):
        settings = make_settings(name, **dict(overrides))
        trainer = step_lib.Trainer.create(settings, streams.spec(settings))
        # RandAugment takes as long to compile as all else; what it does is for other tests.
        augmentations = {**trainer.augmentations, 'strong': trainer.augmentations['weak']}
        trainer = dataclasses.replace(trainer, augmentations=augmentations)
        batch = streams.batches(trainer.batch_sizes, settings.seed, 0)
        return trainer, step_lib.init(trainer, batch), batch

    return lambda name='fixmatch', **overrides: make(name, tuple(overrides.items()))


def run_step(trainer, state, batch):
    """Makes a step, compiled once for a trainer."""
    if id(trainer) not in _compiled:
        _compiled[id(trainer)] = jax.jit(functools.partial(step_lib.step, trainer)), trainer
    return _compiled[id(trainer)][0](state, batch)


_compiled = {}


def make_views(trainer, state, batch):
    return jax.jit(functools.partial(views_lib.make_views, trainer))(state, batch)


def forward(trainer, state, images):
    """Returns the outputs of the step's forward pass."""
    return jax.jit(lambda state, images: losses.forward(trainer, state.params, state, images)[0])(state, images)


def flat(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def differs(a, b):
    return any(np.any(x != y) for x, y in zip(flat(a).values(), flat(b).values(), strict=True))


def test_one_fixmatch_step_equals_numpy(start):
    """Golden step: the loss from the logits by equations 3 and 4, the update by the rule of Nesterov SGD."""
    trainer, state, batch = start()
    images = make_views(trainer, state, batch)
    outputs = forward(trainer, state, images)
    logits = {view: np.float64(output['logits']) for view, output in outputs.items()}
    # A threshold that half of the images pass.
    confidence = np.exp(logits[WEAK].max(-1)) / np.exp(logits[WEAK]).sum(-1)
    threshold = float(np.median(confidence))
    trainer, state, batch = start(**{'methods.fixmatch.threshold': threshold})

    def numpy_loss(logits):
        p = {view: np.exp(x) / np.exp(x).sum(-1, keepdims=True) for view, x in logits.items()}
        labels = batch['labeled']['labels']
        supervised = -np.log(p[LABELED][np.arange(4), labels]).mean()
        weak, strong = p[WEAK], p[STRONG]
        terms = [(q.max() >= threshold) * -np.log(r[q.argmax()]) for q, r in zip(weak, strong, strict=True)]
        return supervised, np.mean(terms), np.mean(weak.max(-1) >= threshold)

    supervised, unlabeled, mask_rate = numpy_loss(logits)
    assert 0 < mask_rate < 1
    new, metrics = run_step(trainer, state, batch)
    mean = {name: float(s / n) for name, (s, n) in metrics.means.items()}
    assert mean['supervised/loss'] == pytest.approx(supervised, rel=1e-4)
    assert mean['fixmatch/loss'] == pytest.approx(unlabeled, rel=1e-4)
    assert mean['loss'] == pytest.approx(supervised + unlabeled, rel=1e-4)
    assert mean['fixmatch/mask_rate'] == pytest.approx(mask_rate)
    right = logits[WEAK].argmax(-1) == batch['unlabeled']['labels']
    assert mean['fixmatch/pseudo_label_accuracy_all'] == pytest.approx(right.mean())

    # The head's bias has no weight decay; its gradient is the mean of p - y over each view.
    p = {view: np.exp(x) / np.exp(x).sum(-1, keepdims=True) for view, x in logits.items()}
    eye = np.eye(10)
    gradient = (p[LABELED] - eye[batch['labeled']['labels']]).mean(0)
    mask = p[WEAK].max(-1, keepdims=True) >= threshold
    gradient += (mask * (p[STRONG] - eye[p[WEAK].argmax(-1)])).mean(0)
    rate = trainer.settings.optimizer.learning_rate
    momentum = trainer.settings.optimizer.momentum
    expected = -rate * (gradient + momentum * gradient)
    np.testing.assert_allclose(new.params['head']['bias'], expected, rtol=1e-3, atol=1e-6)


def test_true_classes_of_unlabeled_images_reach_nothing_but_the_log(start):
    trainer, state, batch = start(**{'methods.fixmatch.threshold': 0.0})
    new, metrics = run_step(trainer, state, batch)
    other = {**batch, 'unlabeled': {**batch['unlabeled'], 'labels': (batch['unlabeled']['labels'] + 1) % 10}}
    permuted, other_metrics = run_step(trainer, state, other)
    for name in ('params', 'batch_stats', 'ema_params', 'opt_state', 'methods'):
        assert_same(getattr(new, name), getattr(permuted, name))
    name = 'fixmatch/pseudo_label_accuracy_all'
    metrics, other_metrics = metrics.means, other_metrics.means
    assert metrics[name][0] + other_metrics[name][0] <= metrics[name][1]  # no guess is right both times


def test_images_whose_class_nobody_knows_do_not_count_in_pseudo_label_accuracy(start):
    trainer, state, batch = start(**{'methods.fixmatch.threshold': 0.0})
    _, known = run_step(trainer, state, batch)
    labels = np.where(np.arange(8) < 3, batch['unlabeled']['labels'], -1).astype(np.int32)
    _, partly = run_step(trainer, state, {**batch, 'unlabeled': {**batch['unlabeled'], 'labels': labels}})
    for name in ('fixmatch/pseudo_label_accuracy', 'fixmatch/pseudo_label_accuracy_all'):
        assert known.means[name][1] == 8
        assert partly.means[name][1] == 3
        assert partly.means[name][0] <= known.means[name][0]


def test_supervised_reads_no_unlabeled_image(start):
    trainer, _, batch = start('supervised')
    assert list(trainer.batch_sizes) == list(batch) == ['labeled']


def test_unknown_batch_norm_policy_is_named(start):
    with pytest.raises(UserError, match=r"Unknown batch-norm policy 'no-grad'\. Did you mean 'no_grad'"):
        start(**{'methods.fixmatch.statistics': 'no-grad'})


def test_two_methods_that_need_different_heads_of_one_name_are_named(start):
    trainer = start()[0]
    both = {name: {} for name in ('comatch', 'simmatch')}
    settings = dataclasses.replace(trainer.settings, methods=both)
    with pytest.raises(UserError, match=r'simmatch needs a projection of widths \(0, 128\)'):
        step_lib.Trainer.create(settings, trainer.data)


@pytest.mark.parametrize(
    ('name', 'field', 'value'),
    [('dash', 'variant', 'papre'), ('self_training', 'view', 'waek'), ('self_training', 'rounds', 0)],
)
def test_values_that_a_method_does_not_have_are_named(start, name, field, value):
    with pytest.raises(UserError, match=str(value)):
        start(name, **{f'methods.{name}.{field}': value})


@pytest.mark.parametrize('policy', ['joint', 'no_grad'])
def test_running_statistics_come_from_all_three_views(start, policy):
    trainer, state, batch = start(**{'methods.fixmatch.statistics': policy})
    images = make_views(trainer, state, batch)
    assert sorted(images) == [LABELED, STRONG, WEAK]
    # The first batch norm sees the first convolution's output.
    x = np.concatenate([conv(v, state.params['stem']['kernel']) for v in images.values()])
    new, _ = run_step(trainer, state, batch)
    decay = trainer.settings.model['bn_momentum']
    stats = new.batch_stats['stage1_block1_norm1']
    np.testing.assert_allclose(stats['mean'], (1 - decay) * x.mean((0, 1, 2)), rtol=1e-3, atol=1e-6)
    expected = decay + (1 - decay) * x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(stats['var'], expected, rtol=1e-4)


def test_gradient_without_the_weak_view_equals_finite_differences(start):
    """Under no_grad the weak view is a constant, so the step's gradient is that of a plain function."""
    trainer, state, batch = start(
        **{'methods.fixmatch.threshold': 0.0, 'methods.fixmatch.statistics': 'no_grad', 'ema_decay': 0.0}
    )
    images = make_views(trainer, state, batch)
    outputs = forward(trainer, state, images)
    labels = outputs[WEAK]['logits'].argmax(-1)

    @jax.jit
    def loss(kernel):
        params = {**state.params, 'stem': {'kernel': kernel}}
        outputs, _ = losses.forward(trainer, params, state, images)
        strong = jax.nn.log_softmax(outputs[STRONG]['logits'])
        labeled = jax.nn.log_softmax(outputs[LABELED]['logits'])
        terms = (jnp.take_along_axis(strong, labels[:, None], 1), batch['labeled']['labels'][:, None])
        return -terms[0].mean() - jnp.take_along_axis(labeled, terms[1], 1).mean()

    new, _ = run_step(trainer, state, batch)
    kernel = state.params['stem']['kernel']
    settings = trainer.settings.optimizer
    step = settings.learning_rate * (1 + settings.momentum)
    gradient = (kernel - new.params['stem']['kernel']) / step - settings.weight_decay * kernel
    direction = np.random.default_rng(0).standard_normal(kernel.shape).astype(np.float32)
    numeric = (loss(kernel + 1e-4 * direction) - loss(kernel - 1e-4 * direction)) / 2e-4
    assert float(numeric) == pytest.approx(float((gradient * direction).sum()), rel=0.05)


def test_weight_decay_acts_on_kernels_only(start):
    decay = 0.1
    plain, _ = run_step(*start(**{'optimizer.weight_decay': 0.0}))
    trainer, state, batch = start(**{'optimizer.weight_decay': decay})
    decayed, _ = run_step(trainer, state, batch)
    rate = trainer.settings.optimizer.learning_rate * (1 + trainer.settings.optimizer.momentum)
    before, without, withit = flat(state.params), flat(plain.params), flat(decayed.params)
    assert any('kernel' in name for name in before)
    for name, value in before.items():
        expected = rate * decay * value if 'kernel' in name else 0
        np.testing.assert_allclose(without[name] - withit[name], expected, atol=1e-6, err_msg=name)


def test_learning_rate_is_the_papers_cosine(make_settings):
    settings = make_settings(arg='cifar10,labels=40', steps=1000).optimizer
    steps = np.array([0, 250, 999])
    rates = [float(optimizer.learning_rate(settings, jnp.float32(k / 1000))) for k in steps]
    np.testing.assert_allclose(rates, 0.03 * np.cos(7 * np.pi * steps / (16 * 1000)), rtol=1e-5)


def adam_by_hand(w, gradient, memory, number, settings):
    """Returns Adam's update, from its moments, of Kingma and Ba 2015 (arXiv:1412.6980, algorithm 1)."""
    b1, b2 = settings.beta1, settings.beta2
    memory['m'] = b1 * memory.get('m', 0) + (1 - b1) * gradient
    memory['v'] = b2 * memory.get('v', 0) + (1 - b2) * gradient**2
    return memory['m'] / (1 - b1**number) / (np.sqrt(memory['v'] / (1 - b2**number)) + settings.epsilon)


def by_hand(w, gradient, memory, number, settings, is_kernel):
    """Returns what the learning rate is multiplied with, from the papers' equations, see `optimizer.create`."""
    decay = settings.weight_decay * w * is_kernel
    if settings.name in ('adamw', 'lamb'):
        update = adam_by_hand(w, gradient, memory, number, settings) + decay
        if settings.name == 'lamb' and is_kernel:
            update = update * np.linalg.norm(w) / np.linalg.norm(update)
        return update
    update = gradient + decay
    if settings.name == 'lars' and is_kernel:
        update = update * settings.trust_coefficient * np.linalg.norm(w) / np.linalg.norm(update)
    memory['v'] = settings.momentum * memory.get('v', 0) + update
    return update + settings.momentum * memory['v'] if settings.name == 'sgd' else memory['v']


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('clip', [0.0, 1.5])
def test_five_updates_are_those_of_the_papers(name, clip, make_settings):
    changed = {
        'name': name,
        'weight_decay': 0.01,
        'clip_norm': clip,
        'trust_coefficient': 0.02,
        'beta2': 0.9,
        'epsilon': 1e-3,
    }
    settings = make_settings(**{f'optimizer.{key}': value for key, value in changed.items()}).optimizer
    tx = optimizer.create(settings)
    rng = np.random.default_rng(0)
    expected = {'kernel': rng.normal(size=(3, 2)), 'bias': rng.normal(size=2)}
    params = jax.tree.map(jnp.float32, expected)
    state, memory = tx.init(params), {'kernel': {}, 'bias': {}}
    for number in range(1, 6):
        gradient = {key: rng.normal(size=value.shape) for key, value in expected.items()}
        clipped = optimizer.clip(settings, jax.tree.map(jnp.float32, gradient))
        updates, state = tx.update(clipped, state, params)
        params = jax.tree.map(lambda w, u: w - 0.1 * u, params, updates)
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        scale = min(1, clip / norm) if clip else 1
        for key, w in expected.items():
            update = by_hand(w, scale * gradient[key], memory[key], number, settings, key == 'kernel')
            expected[key] = w - 0.1 * update
            np.testing.assert_allclose(params[key], expected[key], rtol=1e-4, atol=1e-6)


def test_ema_follows_the_new_parameters_and_if_asked_for_the_running_statistics(start):
    for averages in (False, True):
        trainer, state, batch = start(ema_decay=0.9, ema_statistics=averages)
        new, _ = run_step(trainer, state, batch)

        def close(old, now, ema):
            np.testing.assert_allclose(ema, 0.9 * old + 0.1 * now, rtol=1e-4, atol=1e-6)

        jax.tree.map(close, state.params, new.params, new.averaged[0])
        if averages:
            jax.tree.map(close, state.batch_stats, new.batch_stats, new.averaged[1])
    assert np.any(state.batch_stats['norm']['mean'] != new.averaged[1]['norm']['mean'])


def test_without_being_asked_for_no_running_statistics_are_averaged(start):
    _, state, _ = start(ema_decay=0.9)
    assert not state.ema_batch_stats
    assert state.averaged[1] is state.batch_stats


def test_augmentation_differs_between_streams_steps_seeds_and_examples_and_is_repeatable(start):
    trainer, state, batch = start()
    trainer = step_lib.Trainer.create(trainer.settings, trainer.data)  # with RandAugment
    make_views = jax.jit(functools.partial(views_lib.make_views, trainer))
    image = batch['unlabeled']['images'][:1]
    same = {s: {**b, 'images': np.repeat(image, len(b['images']), 0)} for s, b in batch.items()}
    views = make_views(state, same)
    assert_same(views, make_views(state, same))
    labeled, weak, strong = (views[v] for v in (LABELED, WEAK, STRONG))
    assert np.any(labeled != weak[:4])
    for view in (labeled, weak, strong):
        assert np.any(view != view[:1])
    for other in (dataclasses.replace(state, step=jnp.int32(1)), dataclasses.replace(state, seed=jnp.int32(1))):
        for view, images in make_views(other, same).items():
            assert np.any(images != views[view]), view


def test_metrics_are_means_since_the_last_logged_step(start):
    trainer, state, batch = start(log_steps=2)
    singles, window = [], []
    fresh = start(log_steps=1)[0]
    one = state
    for _ in range(4):
        one, metrics = run_step(fresh, one, batch)
        singles.append(metrics.means['loss'][0])
        state, metrics = run_step(trainer, state, batch)
        window.append(metrics.means['loss'])
    assert [float(w[1]) for w in window] == [1, 2, 1, 2]
    np.testing.assert_allclose(window[1][0], singles[0] + singles[1], rtol=1e-5)
    np.testing.assert_allclose(window[3][0], singles[2] + singles[3], rtol=1e-5)


def test_a_batch_that_does_not_divide_over_the_devices_uses_fewer(caplog):
    assert mesh_lib.create(4, 28).size == 2
    assert not caplog.records
    assert mesh_lib.create(3, 21).size == 1
    assert 'Using 1 of 2 devices' in caplog.text


PER_IMAGE = {  # a network that treats each image alone
    'model.frozen_statistics': True,
    'model.dropout': 0.5,
    'methods.fixmatch.threshold': 0.0,
    'batch_size': 4,
}


def test_parts_of_a_batch_one_after_another_equal_the_whole_batch(make_settings, data_dir):
    """Also when each of two devices takes its own share of each part; dropped units are the same ones."""

    def steps(devices, **overrides):
        settings = make_settings(**PER_IMAGE, **overrides)
        streams = Streams.load(settings, data_dir)
        trainer = step_lib.Trainer.create(settings, streams.spec(settings))
        trainer = dataclasses.replace(
            trainer, augmentations={**trainer.augmentations, 'strong': trainer.augmentations['weak']}
        )
        mesh = jax.make_mesh((devices,), ('data',), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
        with jax.set_mesh(mesh):
            state = None
            for i in range(2):
                batch = mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, 0, i))
                state = state or mesh_lib.put_replicated(mesh, step_lib.init(trainer, batch))
                state, metrics = run_step(trainer, state, batch)
        means = {name: total / count for name, (total, count) in metrics.means.items()}
        return dataclasses.replace(state, metrics=None), means

    whole, parts = steps(1), steps(2, micro_batches=2)
    assert whole[1]['fixmatch/mask_rate'] == 1
    for name, value in flat(whole).items():
        np.testing.assert_allclose(flat(parts)[name], value, rtol=2e-4, atol=2e-6, err_msg=name)


def test_parts_that_batch_norm_or_a_method_would_see_apart_have_to_be_asked_for(start, caplog):
    settings = start(**{'batch_size': 4})[0].settings
    settings = dataclasses.replace(settings, micro_batches=2, methods={'supervised': {}, 'freematch': {}})
    data = start(**{'batch_size': 4})[0].data
    with pytest.raises(UserError, match=r'batch norm and freematch would look at one part .* micro_batches_apart=True'):
        step_lib.Trainer.create(settings, data)
    accepted = step_lib.Trainer.create(dataclasses.replace(settings, micro_batches_apart=True), data)
    diagnostics.check_micro_batches(2, accepted.apart)
    assert 'only a part of the batch at a time is seen by batch norm and freematch' in caplog.text
    aligned = dataclasses.replace(accepted.settings, methods={'supervised': {}, 'fixmatch': {'alignment': True}})
    assert step_lib.Trainer.create(aligned, data).apart == ['batch norm', 'fixmatch']
    with pytest.raises(UserError, match='micro_batches=3 does not divide the 4 labeled images'):
        step_lib.Trainer.create(dataclasses.replace(settings, micro_batches=3), data)


def test_separate_views_have_statistics_of_their_own_and_evaluation_those_of_the_clean_ones(start):
    trainer, state, batch = start(**{'methods.fixmatch.statistics': 'separate'})
    images = make_views(trainer, state, batch)
    outputs = forward(trainer, state, images)
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    alone, _ = jax.jit(functools.partial(trainer.model.apply, train=True))(variables, images[STRONG])
    np.testing.assert_allclose(outputs[STRONG]['logits'], alone['logits'], rtol=1e-4, atol=1e-5)
    new, _ = run_step(trainer, state, batch)
    clean = np.concatenate([conv(images[view], state.params['stem']['kernel']) for view in (LABELED, WEAK)])
    decay = trainer.settings.model['bn_momentum']
    stats = new.batch_stats['stage1_block1_norm1']
    np.testing.assert_allclose(stats['mean'], (1 - decay) * clean.mean((0, 1, 2)), rtol=1e-3, atol=1e-6)


def test_two_methods_that_set_the_running_statistics_are_named(start):
    trainer, _, batch = start('mixmatch')
    settings = dataclasses.replace(trainer.settings, methods={'mixmatch': {}, 'remixmatch': {}})
    both = step_lib.Trainer.create(settings, trainer.data)
    with pytest.raises(UserError, match='mixmatch and remixmatch both set the running statistics'):
        step_lib.check(both, batch)


def test_two_methods_that_want_one_view_joint_and_separate_are_named(start):
    trainer = start()[0]
    settings = dataclasses.replace(
        trainer.settings, methods={'supervised': {}, 'uda': {}, 'fixmatch': {'statistics': 'separate'}}
    )
    with pytest.raises(UserError, match=r"want unlabeled\.strong 'joint' and 'separate'"):
        _ = step_lib.Trainer.create(settings, trainer.data).views


def test_a_step_is_traced_once(make_settings, data_dir, monkeypatch):
    """Whatever a run does with it: to check its settings, to find out its metrics, and to compile it."""
    settings = make_settings('pseudo_label')
    streams = Streams.load(settings, data_dir)
    trainer = step_lib.Trainer.create(settings, streams.spec(settings))
    traced = []
    total = losses.total
    monkeypatch.setattr(losses, 'total', lambda *args: traced.append(1) or total(*args))
    mesh = mesh_lib.create(*trainer.batch_sizes.values())
    with jax.set_mesh(mesh):
        batch = mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, 0, 0))
        step_lib.check(trainer, batch)
        state = mesh_lib.put_replicated(mesh, step_lib.init(trainer, batch))
        step = jax.jit(functools.partial(step_lib.step, trainer), donate_argnums=0)
        for i in range(2):
            state, _ = step(state, mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, 0, i)))
    assert len(traced) == 1
