"""Fine-tuning: what is frozen stays, what learns does so at its own rate, and where training begins.

The engine's tests make real steps of a tiny wide ResNet on digits; the losses are compared with NumPy on small inputs.
"""

import dataclasses
import functools
import importlib
import json
import shutil
import types

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import methods
import models
from configs import finetune
from errors import UserError
from methods import terms
from methods.base import IMAGES, JOINT, LABELED, Loss, Method, Start
from models import layers
from train import checkpoint, evaluation, experiment, loop, losses, optimizer
from train import mesh as mesh_lib
from train import run as run_lib
from train import settings as settings_lib
from train import step as step_lib
from train.checkpoint import Checkpoints
from train.streams import Streams

# The tiny network, from the images to the logits: how deep each layer is, written out by hand.
DEPTHS = {
    'stem': 0,
    'stage1_block1_norm1': 1,
    'stage1_block1_conv1': 1,
    'stage1_block1_norm2': 1,
    'stage1_block1_conv2': 1,
    'norm': 2,
    'head': 3,
}
BACKBONE = DEPTHS.keys() - {'head'}
NORMS = {name for name in DEPTHS if 'norm' in name}
HEAD_ONLY = ('head: 1', '.*: 0')
EXACT = {'data.weak.flip': False, 'data.weak.pad': 0}  # no augmentation


def flat(tree) -> dict[str, np.ndarray]:
    """Returns {'layer/parameter': array} of parameters, running statistics or the optimizer's state."""
    dict_key = jax.tree_util.DictKey
    return {
        '/'.join(key.key for key in path if isinstance(key, dict_key)): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def momenta(state) -> dict[str, np.ndarray]:
    """Returns {'layer/parameter': momentum}, of the heads' part of the optimizer's state and of the others'."""
    return {name.partition('/')[2]: value for name, value in flat(state.opt_state).items()}


def moved(before, after) -> set[str]:
    """Returns the names of what is not the same bit for bit."""
    before, after = flat(before), flat(after)
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if value.tobytes() != after[name].tobytes()}


def of_layers(names, tree) -> set[str]:
    return {name for name in flat(tree) if name.split('/')[0] in names}


def assert_equal(expected, actual):
    assert not moved(expected, actual)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run before its first step, and its compiled step."""

    trainer: step_lib.Trainer
    streams: Streams
    state: step_lib.TrainState
    step: object

    def steps(self, number: int) -> tuple[step_lib.TrainState, list[dict[str, float]]]:
        """Returns the state after some steps and the metrics of each."""
        state, logged = self.state, []
        for i in range(number):
            state, metrics = self.step(state, self.streams.batches(self.trainer.batch_sizes, 0, i))
            logged.append({name: float(s / n) for name, (s, n) in metrics.means.items()})
        return state, logged


@pytest.fixture(scope='module')
def begin(make_settings, data_dir):
    """Returns a function: (methods instead of supervised, overrides) -> Run."""

    def make(chosen=None, **overrides) -> Run:
        settings = make_settings('supervised', **{'log_steps': 1, **overrides})
        if chosen:
            settings = dataclasses.replace(settings, methods=chosen)
        trainer, streams = run_lib.prepare(settings, data_dir)
        state = step_lib.init(trainer, streams.batches(trainer.batch_sizes, 0, 0))
        return Run(trainer, streams, state, jax.jit(functools.partial(step_lib.step, trainer)))

    return make


def first_state(settings, data_dir) -> step_lib.TrainState:
    """Returns the state that a run begins with."""
    trainer, streams = run_lib.prepare(settings, data_dir)
    return step_lib.init(trainer, streams.batches(trainer.batch_sizes, 0, 0))


def last_state(workdir, like) -> step_lib.TrainState:
    """Returns the state of a run's last checkpoint."""
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        return jax.device_get(checkpoints.latest(like))


def one_line(error) -> str:
    message = str(error.value)
    assert '\n' not in message
    return message


# Frozen parameters and running statistics


@pytest.mark.parametrize(
    ('rules', 'chosen', 'still', 'still_statistics'),
    [
        # Parts of layers, too: their running statistics go on.
        (('stem: 0', '.*/bias: 0', '.*: 1'), None, {'stem/kernel', *(f'{n}/bias' for n in (*NORMS, 'head'))}, set()),
        # Mixup runs the network by itself.
        (
            ('stage1: 0', '.*: 1'),
            {'finetune': {'mixup': 0.5}},
            {f'{name}/{leaf}' for name in DEPTHS if 'stage1' in name for leaf in ('kernel', 'scale', 'bias')},
            {name for name in NORMS if 'stage1' in name},
        ),
        (HEAD_ONLY, None, {f'{name}/{leaf}' for name in BACKBONE for leaf in ('kernel', 'scale', 'bias')}, NORMS),
    ],
    ids=['stem and biases', 'stage1', 'all but head'],
)
def test_what_is_frozen_does_not_change_by_a_bit_and_the_rest_does(begin, rules, chosen, still, still_statistics):
    run = begin(chosen, **{'optimizer.layer_rates': rules, 'optimizer.weight_decay': 0.01, 'ema_decay': 0.9})
    before, (after, _) = run.state, run.steps(3)
    learning = flat(before.params).keys() - still
    assert learning
    assert moved(before.params, after.params) == moved(before.ema_params, after.ema_params) == learning
    assert moved(before.batch_stats, after.batch_stats) == of_layers(NORMS - still_statistics, before.batch_stats)
    # Nothing is kept for what is always frozen.
    assert momenta(after).keys() == learning
    # What learns has a momentum and an average of its own.
    assert all(np.any(momentum) for momentum in momenta(after).values())
    assert moved(after.params, after.ema_params) == learning


@pytest.fixture(scope='module')
def regularised(begin):
    """Returns a run of all regularisers with frozen statistics, its state after two steps, and the metrics of three."""
    chosen = {'finetune': {}, 'l2_sp': {'alpha': 0.1}, 'delta': {}, 'bss': {}}
    run = begin(chosen, **{'model.frozen_statistics': True})
    return run, run.steps(2)[0], run.steps(3)[1]


def test_frozen_statistics_stay_while_scale_and_bias_learn(regularised):
    run, after, _ = regularised
    assert_equal(run.state.batch_stats, after.batch_stats)
    assert moved(run.state.params, after.params) == flat(after.params).keys()


def test_regularisers_begin_at_zero_and_keep_where_training_began(regularised):
    run, after, logged = regularised
    assert logged[0]['l2_sp/from_start'] == 0
    assert logged[0]['delta/loss'] == pytest.approx(0, abs=1e-9)  # same statistics, so the same feature maps
    start, now = flat(run.state.params), flat(after.params)
    kernels = {k: v for k, v in start.items() if k.endswith('/kernel') and k != 'head/kernel'}
    assert_equal(kernels, {f'{layer}/kernel': kernel for layer, kernel in after.methods['l2_sp'].items()})
    source = after.methods['delta']
    assert_equal({k: v for k, v in run.state.params.items() if k != 'head'}, source['params'])
    assert_equal(run.state.batch_stats, source['batch_stats'])
    assert source['attention'].keys() == {k for k in BACKBONE if k not in NORMS}
    assert logged[2]['delta/loss'] > 1e-7
    distance = np.sqrt(sum(np.square(now[k] - start[k]).sum() for k in kernels))
    assert logged[2]['l2_sp/from_start'] == pytest.approx(distance, rel=1e-5)
    assert distance > 0


# Learning rates of layers


@pytest.fixture(scope='module')
def updates(begin):
    """Returns a function: overrides -> (trainer, {name: update / learning rate}) of one step without momentum."""
    plain = {'optimizer.momentum': 0.0, 'optimizer.weight_decay': 0.0, 'optimizer.learning_rate': 0.5}

    def make(**overrides):
        run = begin(**plain, **overrides)
        after, _ = run.steps(1)
        before, after = flat(run.state.params), flat(after.params)
        return run, {name: (after[name] - value) / 0.5 for name, value in before.items()}

    return make


@pytest.fixture(scope='module')
def gradients(updates):
    """Returns the run without factors, and minus the gradient of everything in its first step."""
    return updates()


def test_an_update_is_the_learning_rate_times_the_gradient(gradients):
    """With a classifier of zeros all classes are as likely: the gradient of its bias is 1/10 - frequency."""
    run, _ = gradients
    zeros = jax.tree.map(jnp.zeros_like, run.state.params['head'])
    state = dataclasses.replace(run.state, params={**run.state.params, 'head': zeros})
    batch = run.streams.batches(run.trainer.batch_sizes, 0, 0)
    after, _ = run.step(state, batch)
    frequency = np.bincount(batch['labeled']['labels'], minlength=10) / 4
    close(after.params['head']['bias'], -0.5 * (0.1 - frequency))


@pytest.mark.parametrize(
    ('overrides', 'factors'),
    [
        (
            {'optimizer.layer_rates': ('head/bias: 3', 'head: 1', '.*conv: 0.1', '.*: 0.5')},
            {'head/bias': 3, 'head/kernel': 1, 'stage1_block1_conv1': 0.1, 'stage1_block1_conv2': 0.1},
        ),
        (
            {'optimizer.layer_rates': ('stage1.*kernel: 0.1', '.*: 1'), 'optimizer.layer_decay': 0.5},
            {'stem': 1 / 8, 'stage1_block1_norm': 1 / 4, 'stage1_block1_conv': 0.1 / 4, 'norm': 1 / 2, 'head': 1},
        ),
    ],
    ids=['layer_rates', 'both'],
)
def test_a_factor_multiplies_the_update_of_its_layer(updates, gradients, overrides, factors):
    _, slopes = gradients
    _, changes = updates(**overrides)
    for name, slope in slopes.items():
        factor = next((f for start, f in factors.items() if name.startswith(start)), 0.5)
        size = np.linalg.norm(slope)
        assert size > 0
        assert np.linalg.norm(changes[name]) / size == pytest.approx(factor, rel=1e-3), name
        close(changes[name], factor * slope, rtol=0, atol=1e-3 * factor * np.abs(slope).max() + 1e-6)


def shapes(name: str, heads=None, side: int = 32, **settings):
    """Returns a model and the shapes of its parameters."""
    model = models.create(name, 10, heads, **settings)
    return model, jax.eval_shape(functools.partial(model.init, image_shape=(side, side, 3)), jax.random.key(0))[
        'params'
    ]


@pytest.mark.parametrize(
    ('name', 'settings', 'deepest', 'some'),
    [
        (
            'wide_resnet',
            {'blocks': (2, 1), 'width': 1},
            5,
            {'stem': 0, 'stage1_block1_norm1': 1, 'stage1_block2_conv2': 2, 'stage2_block1_shortcut': 3, 'norm': 4},
        ),
        ('resnet18', {}, 9, {'conv1': 0, 'bn1': 0, 'layer1_0_bn1': 1, 'layer2_0_downsample_0': 3, 'layer4_1_conv2': 8}),
        ('bit_r50x1', {}, 18, {'stem': 0, 'stage1_block1_shortcut': 1, 'stage2_block1_conv1': 4, 'norm': 17}),
        (
            'efficientnet_lite0',
            {},
            18,
            {'conv_stem': 0, 'bn0': 0, 'blocks_1_bn0': 2, 'blocks_10_bn0': 11, 'conv_head': 17, 'bn1': 17},
        ),
    ],
)
def test_depth_counts_blocks_from_the_images_and_heads_are_deepest(name, settings, deepest, some):
    model, params = shapes(name, {'projection': (4, 4)}, **settings)
    depths = {layer: about.depth for layer, about in model.layers.items()}
    assert set(params) <= set(depths)
    assert {layer: depths[layer] for layer in some} == some
    assert {depths[layer] for layer in ('head', 'head_projection1', 'head_projection2')} == {deepest}
    assert set(depths.values()) == set(range(deepest + 1))


def rates(*rules, **settings):
    """Returns the factors of the tiny network's parameters."""
    params = {name: {'scale': 0, 'bias': 0} if name in NORMS else {'kernel': 0} for name in DEPTHS}
    params['head'] = {'kernel': 0, 'bias': 0}
    chosen = settings_lib.Optimizer(learning_rate=0.1, layer_rates=rules, **settings)
    return flat(optimizer.layer_rates(chosen, params, DEPTHS))


def test_layer_decay_is_a_power_of_depth_and_the_first_rule_that_fits_counts():
    for name, factor in rates(layer_decay=0.8).items():
        assert factor == pytest.approx(0.8 ** (3 - DEPTHS[name.split('/')[0]]))
    factors = rates('head/kernel: 2', 'head: 0', 'norm: 5', '(?:stem|stage1.*bias): .25', '.*norm: 3', '.*: 1')
    assert (factors['head/kernel'], factors['head/bias'], factors['norm/scale'], factors['norm/bias']) == (2, 0, 5, 5)
    assert (factors['stem/kernel'], factors['stage1_block1_norm1/bias']) == (0.25, 0.25)
    assert (factors['stage1_block1_norm1/scale'], factors['stage1_block1_conv1/kernel']) == (3, 1)


@pytest.mark.parametrize(
    ('rules', 'named'),
    [
        (('layer4: 0', '.*: 1'), "'layer4: 0' fits no parameter"),
        (('.*: 1', 'head: 1'), "'head: 1' fits no parameter"),  # an earlier one has them all
        (('head: 1', 'stage1: 0'), 'leaves out stem/kernel, norm/scale, norm/bias'),
        (('head', '.*: 0'), "'head' is not"),
        (('head: fast', '.*: 0'), "'head: fast' is not"),
        (('(head: 1', '.*: 0'), "'(head: 1' is not"),
        (('head: 1', '.*:'), "'.*:' is not"),
        (('0.1',), "'0.1' is not"),
        (('.*: nan',), "'.*: nan' is not"),
        (('.*: -1',), "'.*: -1' is not"),
    ],
)
def test_rules_that_say_nothing_or_leave_something_out_are_named(rules, named):
    with pytest.raises(UserError) as error:
        rates(*rules)
    assert named in one_line(error)


def test_a_wrong_rule_stops_a_run_before_it_writes_anything(make_settings, data_dir, tmp_path):
    settings = make_settings('supervised', **{'optimizer.layer_rates': ('haed: 1', '.*: 0')})
    with pytest.raises(UserError, match="'haed: 1' fits no parameter"):
        experiment.run(settings, tmp_path / 'run', data_dir)
    assert not (tmp_path / 'run').exists()


# Schedules


def learning_rate(progress, **settings):
    chosen = settings_lib.Optimizer(learning_rate=0.8, **settings)
    return jax.jit(jax.vmap(functools.partial(optimizer.learning_rate, chosen)))(jnp.float32(progress))


def test_steps_divide_the_learning_rate_by_ten_after_a_warmup():
    progress = [0, 0.05, 0.1, 0.3, 0.49, 0.5, 0.7, 0.75, 0.99]
    expected = [0, 0.4, 0.8, 0.8, 0.8, 0.08, 0.08, 0.008, 0.008]
    close(learning_rate(progress, schedule='steps', boundaries=(0.5, 0.75), warmup=0.1), expected)
    close(learning_rate(progress, schedule='steps'), 0.8)


def test_cosine_has_a_warmup_too():
    actual = learning_rate([0, 0.25, 0.5, 0.75], cosine_cycles=0.5, warmup=0.5)
    close(actual, [0, 0.4 * np.cos(np.pi / 8), 0.8 * np.cos(np.pi / 4), 0.8 * np.cos(3 * np.pi / 8)])


@pytest.mark.parametrize('size', [5000, 50_000, 1_000_000])
def test_a_boundary_counts_from_its_very_step(size):
    warmup, *boundaries, steps = finetune.bit_steps(size)
    step = np.arange(steps)
    chosen = settings_lib.Optimizer(
        learning_rate=0.8, schedule='steps', warmup=warmup / steps, boundaries=tuple(b / steps for b in boundaries)
    )
    actual = jax.jit(jax.vmap(lambda step: optimizer.learning_rate(chosen, step % steps / steps)))(jnp.int32(step))
    expected = 0.8 * np.minimum(1, step / warmup) / 10 ** sum(step >= b for b in boundaries)
    close(actual, expected)


def test_an_unknown_schedule_is_named():
    with pytest.raises(UserError, match=r"Unknown optimizer\.schedule 'stesp'\. Did you mean 'steps'"):
        settings_lib.Optimizer(learning_rate=0.1, schedule='stesp')


# The classifier first, then everything


class Killed(BaseException):
    """Ends a run in the middle of the loop, as nothing that the loop handles would."""


def test_until_unfreeze_step_only_the_head_learns_and_stopping_there_changes_nothing(
    make_settings, data_dir, tmp_path, monkeypatch
):
    every = {'steps': 6, 'checkpoint_steps': 1, 'eval_steps': 6}
    settings = make_settings('supervised', **every, **{'optimizer.unfreeze_step': 3})
    experiment.run(settings, tmp_path / 'whole', data_dir)
    start = first_state(settings, data_dir)
    draw = Streams.batch
    for stop in (2, 3, 4):

        def batch(self, stream, seed, step, size, stop=stop):
            if step == stop:
                raise Killed
            return draw(self, stream, seed, step, size)

        with monkeypatch.context() as patch:
            patch.setattr(Streams, 'batch', batch)
            with pytest.raises(Killed):
                experiment.run(settings, tmp_path / 'parts', data_dir)
        saved = last_state(tmp_path / 'parts', start)
        assert saved.step == stop
        learning = DEPTHS.keys() if stop > 3 else {'head'}
        for before, after in ((start.params, saved.params), (start.ema_params, saved.ema_params)):
            assert moved(before, after) == of_layers(learning, start.params)
        assert moved(start.batch_stats, saved.batch_stats) == of_layers(learning, start.batch_stats)
        momentum = {name for name, value in momenta(saved).items() if np.any(value)}
        assert momentum == of_layers(learning, start.params)
    experiment.run(settings, tmp_path / 'parts', data_dir)
    whole, parts = (last_state(tmp_path / name, start) for name in ('whole', 'parts'))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ('name', 'length', 'expected'),
    [
        ('adamw', lambda x: np.abs(x).max(), lambda w: 1),
        ('lars', np.linalg.norm, lambda w: 0.02 * np.linalg.norm(w)),
        ('lamb', np.linalg.norm, np.linalg.norm),
    ],
)
def test_a_layer_learns_at_its_rate_with_every_optimizer_and_after_unfreezing_from_its_first_step(
    begin, name, length, expected
):
    """A first update is known: Adam's is 1, LARS's and LAMB's has the norm of the parameters."""
    chosen = {
        'name': name,
        'layer_rates': ('stem: 0', 'head: 0.5', '.*: 1'),
        'weight_decay': 0.0,
        'learning_rate': 0.01,
    }
    chosen |= {'trust_coefficient': 0.02, 'epsilon': 1e-12, 'cosine_cycles': 0.0}
    run = begin(**{f'optimizer.{key}': value for key, value in chosen.items()})
    step = jax.jit(functools.partial(step_lib.step, run.trainer), static_argnames='head_only')
    states = [run.state]
    for i, head_only in enumerate((True, True, False)):
        batch = run.streams.batches(run.trainer.batch_sizes, 0, i)
        states.append(step(states[-1], batch, head_only=head_only)[0])

    def check(layer, before, after, rate):
        before, after = (np.asarray(state.params[layer]['kernel']) for state in (before, after))
        np.testing.assert_allclose(length(after - before), rate * expected(before), rtol=1e-3)

    check('head', states[0], states[1], 0.5 * 0.01)
    assert moved(states[0].params, states[2].params) == {'head/kernel', 'head/bias'}
    for layer in BACKBONE - {'stem'}:
        if 'kernel' in run.state.params[layer]:
            check(layer, states[2], states[3], 0.01)
    assert not moved(states[2].params['stem'], states[3].params['stem'])


# Another run's network to begin with


@dataclasses.dataclass(frozen=True)
class Projection(Method):
    """A method with a head of its own, cheaper to compile than those of methods/."""

    def views(self):
        return {LABELED: JOINT}

    def heads(self):
        return {'projection': (8, 8)}

    def loss(self, inputs, state):
        loss = jnp.square(inputs.outputs[LABELED]['projection'] - 1).mean()
        return Loss(loss, metrics={'loss': loss})


@pytest.fixture(scope='module')
def source(make_settings, data_dir, tmp_path_factory):
    """Returns the folder of a finished run with a head beside the classifier, and its last state."""
    settings = make_settings(
        'supervised', steps=4, checkpoint_steps=2, eval_steps=4, ema_decay=0.5, ema_statistics=True
    )
    settings = dataclasses.replace(settings, methods={**settings.methods, 'projection': {}})
    workdir = tmp_path_factory.mktemp('source') / 'run'
    create = methods.create
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, 'create', lambda name, f: Projection() if name == 'projection' else create(name, f))
        experiment.run(settings, workdir, data_dir)
        return workdir, last_state(workdir, first_state(settings, data_dir))


@pytest.fixture(scope='module')
def probe(source, make_settings, data_dir, tmp_path_factory):
    """Returns (settings, folder, result) of a linear probe of that network, on images and on cached features."""
    runs = []
    for cached in (False, True):
        settings = make_settings(
            'supervised',
            **EXACT,
            **{
                'steps': 8,
                'checkpoint_steps': 8,
                'model.pretrained': str(source[0]),
                'optimizer.layer_rates': HEAD_ONLY,
                'optimizer.learning_rate': 0.3,
                'data.cache_features': cached,
                'data.mean': (0.1,),
            },
        )
        workdir = tmp_path_factory.mktemp('probe') / 'run'
        runs.append((settings, workdir, experiment.run(settings, workdir, data_dir)))
    return runs


def test_a_run_begins_with_the_average_of_another(source, begin):
    workdir, last = source
    assert moved(last.params, last.ema_params)
    run = begin(**{'model.pretrained': str(workdir), 'data.mean': (0.1,)})
    kept = {layer: leaves for layer, leaves in last.ema_params.items() if layer in DEPTHS}  # the classifier, too
    assert last.ema_params.keys() - kept.keys() == {'head_projection1', 'head_projection2'}
    for state in (run.state.params, run.state.ema_params):
        assert_equal(kept, state)
    assert_equal(last.ema_batch_stats, run.state.batch_stats)
    assert moved(last.batch_stats, last.ema_batch_stats)
    assert run.trainer.model.preprocess.mean == (0.5,)  # what the weights are used to


def test_another_number_of_classes_and_other_heads_begin_anew(source, begin):
    workdir, last = source
    trainer = begin(**{'model.pretrained': str(workdir)}).trainer
    data = dataclasses.replace(trainer.data, num_classes=7)
    heads = {'comatch': {}, 'remixmatch': {}}  # a projection of other widths, and a rotation classifier
    settings = dataclasses.replace(trainer.settings, methods={**trainer.settings.methods, **heads})
    params = step_lib.initial(step_lib.Trainer.create(settings, data, trainer.model.weights), 0, 0)['params']
    random = step_lib.initial(step_lib.Trainer.create(settings, data), 0, 0)['params']
    assert_equal({layer: last.ema_params[layer] for layer in BACKBONE}, {layer: params[layer] for layer in BACKBONE})
    assert params['head']['kernel'].shape == (16, 7)
    assert not any(np.any(value) for value in params['head'].values())
    others = [layer for layer in params if layer not in DEPTHS]
    assert others
    assert_equal({layer: random[layer] for layer in others}, {layer: params[layer] for layer in others})


def test_a_network_of_another_shape_is_one_line_that_lists_what_is_missing(source, begin):
    with pytest.raises(UserError) as error:
        begin(**{'model.pretrained': str(source[0]), 'model.blocks': (1, 1)})
    message = one_line(error)
    assert str(source[0]) in message
    assert 'missing' in message
    assert 'params/stage2_block1_conv1/kernel' in message
    assert 'stem' not in message
    assert 'head_projection' not in message


def test_config_and_result_say_where_the_weights_came_from(source, probe):
    for _, workdir, result in probe:
        config = json.loads((workdir / 'config.json').read_text())
        weights = config['weights']
        assert result['protocol']['weights'] == weights
        assert (weights['source'], weights['step']) == (str(source[0]), 4)
        assert len(weights['sha256']) == 64
        assert int(weights['sha256'], 16)
        assert config['preprocessing']['mean'] == [0.5]


def test_a_run_is_not_continued_from_other_weights(source, probe, data_dir):
    settings, workdir, result = probe[1]
    assert experiment.run(settings, workdir, data_dir) == result
    newest = source[0] / 'checkpoints' / '4'
    newest.rename(source[0] / 'away')
    try:
        with pytest.raises(UserError) as error:
            experiment.run(settings, workdir, data_dir)
    finally:
        (source[0] / 'away').rename(newest)
    message = one_line(error)
    assert f'weights.sha256 was {result["protocol"]["weights"]["sha256"]}, now ' in message
    assert 'weights.step was 4, now 2' in message


def test_a_folder_that_holds_no_run_is_one_line(source, make_settings, data_dir, tmp_path):
    (tmp_path / 'empty').mkdir()
    for name, kept in (('config', ()), ('checkpoints', ('config.json',)), ('saved', ('config.json', 'checkpoints'))):
        (tmp_path / name).mkdir()
        for file in kept:
            if file == 'checkpoints':
                (tmp_path / name / file).mkdir()
            else:
                shutil.copy(source[0] / file, tmp_path / name / file)
    for name in ('empty', 'config', 'checkpoints', 'saved', 'nowhere'):
        settings = make_settings('supervised', **{'model.pretrained': str(tmp_path / name)})
        with pytest.raises(UserError) as error:
            experiment.run(settings, tmp_path / 'run', data_dir)
        assert str(tmp_path / name) in one_line(error)
    assert not (tmp_path / 'run').exists()


@pytest.mark.filterwarnings('ignore')  # orbax has its own to say
@pytest.mark.parametrize('what', ['older', 'damaged'])
def test_a_run_that_cannot_be_read_is_one_line(source, tmp_path, what):
    """Without what newer runs say about preprocessing, or with files cut off."""
    folder = tmp_path / 'run'
    shutil.copytree(source[0], folder)
    if what == 'older':
        config = json.loads((folder / 'config.json').read_text())
        del config['preprocessing'], config['weights']
        (folder / 'config.json').write_text(json.dumps(config))
    else:
        for file in (folder / 'checkpoints').glob('*/**/d/*'):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError) as error:
        checkpoint.weights(str(folder))
    assert str(folder) in one_line(error)


def test_the_fingerprint_is_that_of_the_network_and_not_of_the_file(source, tmp_path):
    first = checkpoint.weights(str(source[0]))
    assert checkpoint.weights(str(source[0])).record == first.record
    shutil.copytree(source[0], tmp_path / 'copy')
    assert checkpoint.weights(str(tmp_path / 'copy')).record['sha256'] == first.record['sha256']


def test_a_round_of_self_training_begins_with_the_weights_again(source, make_settings, data_dir, tmp_path):
    """The warm-up leaves the first step of a round without effect: two steps of one round, one of the next."""
    workdir, last = source
    settings = make_settings(
        'self_training',
        **{
            'steps': 3,
            'checkpoint_steps': 1,
            'methods.self_training.rounds': 2,
            'optimizer.warmup': 1.0,
            'optimizer.learning_rate': 0.3,
            'model.pretrained': str(workdir),
            'model.frozen_statistics': True,
        },
    )
    experiment.run(settings, tmp_path / 'run', data_dir)
    like = first_state(settings, data_dir)
    second_round = last_state(tmp_path / 'run', like)
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '3')
    first_round = last_state(tmp_path / 'run', like)
    assert (first_round.step, second_round.step) == (2, 3)
    start = {layer: last.ema_params[layer] for layer in DEPTHS}
    assert moved(start, first_round.params) == flat(start).keys()
    assert_equal(start, second_round.params)
    assert_equal(last.ema_batch_stats, second_round.batch_stats)


def test_everything_but_the_step_and_the_methods_is_that_of_the_weights_then(source, begin):
    changed = {'model.pretrained': str(source[0]), 'ema_statistics': True}
    run = begin({'supervised': {}, 'self_training': {'rounds': 2}}, **changed)
    assert run.trainer.round_steps == 6
    network = ('params', 'ema_params', 'batch_stats', 'ema_batch_stats', 'opt_state')
    used = {name: jax.tree.map(lambda x: x + 1, getattr(run.state, name)) for name in network}
    state = dataclasses.replace(run.state, step=jnp.int32(6), **used)
    new = step_lib.next_round(run.trainer, state, jnp.zeros((run.trainer.data.num_unlabeled, 10)))
    for name in network:
        assert_equal(getattr(run.state, name), getattr(new, name))
    assert new.step == 6


# The linear probe


def test_training_on_cached_features_equals_training_on_images(source, probe, data_dir):
    like = first_state(probe[0][0], data_dir)
    on_images, on_features = (last_state(workdir, like) for _, workdir, _ in probe)
    start = source[1].ema_params
    for state in (on_images, on_features):  # all of the network is in both checkpoints
        assert moved({layer: start[layer] for layer in DEPTHS}, state.params) == {'head/kernel', 'head/bias'}
        assert_equal(source[1].ema_batch_stats, state.batch_stats)
    for leaf in ('kernel', 'bias'):
        learned = on_images.params['head'][leaf] - start['head'][leaf]
        tolerance = 1e-4 * np.abs(learned).max()
        assert tolerance > 1e-6
        close(on_features.params['head'][leaf], on_images.params['head'][leaf], rtol=0, atol=tolerance)
        close(on_features.ema_params['head'][leaf], on_images.ema_params['head'][leaf], rtol=0, atol=tolerance)
    results = [result['test_accuracy']['last'] for _, _, result in probe]
    assert results[0] == pytest.approx(results[1], abs=1 / 500)
    logs = [(workdir / 'metrics.jsonl').read_text().splitlines() for _, workdir, _ in probe]
    for name in ('test_loss', 'loss'):
        values = [[row[name] for row in map(json.loads, lines) if name in row] for lines in logs]
        assert len(values[0]) > 2
        close(*values, rtol=1e-4)


def test_cached_features_stay_with_their_labels_and_indices(make_settings, data_dir):
    streams = Streams.load(make_settings(eval_steps=4, **{'data.validation': 50}), data_dir)
    counted = []

    def mean(images):
        counted.append(len(images))
        return images.reshape(len(images), -1).mean(-1, keepdims=True, dtype=np.float32)

    for names in (['labeled'], ['labeled', 'unlabeled']):
        counted.clear()
        mapped = streams.map(mean, names)
        # No image twice, and none that no stream has.
        assert sum(counted) == len({i for name in names for i in streams.indices[name].tolist()}) + 50 + 500
        for name in names:
            before, after = (s.batch(name, 0, 3, 16) for s in (streams, mapped))
            np.testing.assert_array_equal(after['images'], mean(before['images']))
            for key in ('labels', 'indices'):
                np.testing.assert_array_equal(after[key], before[key])
        for name, (images, labels) in streams.held_out.items():
            np.testing.assert_array_equal(mapped.held_out[name][0], mean(images))
            np.testing.assert_array_equal(mapped.held_out[name][1], labels)


@pytest.mark.parametrize(
    ('config', 'rules', 'named'),
    [
        ('supervised', (), ('frozen backbone', 'conv1, ', '... would')),
        ('supervised', ('norm: 0.1', 'head: 1', '.*: 0'), ('frozen backbone', 'norm would')),
        ('fixmatch', HEAD_ONLY, ('no image', 'unlabeled.strong cannot')),
        ('comatch', HEAD_ONLY, ('no image', 'unlabeled.strong, unlabeled.distorted')),
        ('vat', HEAD_ONLY, ('no image', 'unlabeled.weak cannot')),
        ('self_training', HEAD_ONLY, ('self_training would go on with another network',)),
        ('mean_teacher', HEAD_ONLY, ('no image', 'unlabeled.weak2 cannot')),  # would be the same features twice
    ],
)
def test_cached_features_need_a_frozen_backbone_and_weak_views(make_settings, data_dir, config, rules, named):
    settings = make_settings(config, **{'data.cache_features': True, 'optimizer.layer_rates': rules})
    with pytest.raises(UserError) as error:
        run_lib.prepare(settings, data_dir)
    message = one_line(error)
    assert all(part in message for part in ('data.cache_features', *named)), message


# Regularisers


def tree(seed: int, scale: float = 1.0) -> dict:
    """Returns float64 parameters of two layers below the features and two on top of them."""
    rng = np.random.default_rng(seed)
    sizes = {
        'stem': {'kernel': (3, 2)},
        'norm': {'scale': (4,), 'bias': (4,)},
        'head': {'kernel': (4, 3), 'bias': (3,)},
        'head_projection1': {'kernel': (4, 2)},
    }
    return {k: {leaf: scale * rng.standard_normal(s) for leaf, s in leaves.items()} for k, leaves in sizes.items()}


def spec(params, batch_stats=None):
    heads = frozenset(layer for layer in params if layer.startswith('head'))
    variables = {'params': params, 'batch_stats': batch_stats or {}}
    return dataclasses.replace(fakes.SPEC, variables=variables, heads=heads)


def test_l2_sp_pulls_kernels_towards_the_start_and_those_of_heads_towards_zero():
    """Written from holyseven/TransferLearningClassification, network_base.py, weight_decay_mode 1."""
    method = methods.create('l2_sp', {'alpha': 0.3, 'beta': 0.7})
    start, now = tree(0), tree(1)
    with jax.enable_x64(True):
        state = method.init_state(spec(start))
        inputs = fakes.inputs(method)

        def loss(params):
            return method.loss(dataclasses.replace(inputs, params=params), state).loss

        far = np.square(now['stem']['kernel'] - start['stem']['kernel']).sum()
        heads = sum(np.square(now[k]['kernel']).sum() for k in ('head', 'head_projection1'))
        close(loss(now), 0.15 * far + 0.35 * heads, rtol=1e-12)
        result = method.loss(dataclasses.replace(inputs, params=now), state)
        close(result.metrics['from_start'], np.sqrt(far), rtol=1e-12)
        check_grads(loss, (now,), order=1, modes=['rev'])
        gradient = jax.jit(jax.grad(loss))(now)
        for k, leaves in now.items():
            for leaf, w in leaves.items():
                expected = 0.7 * w if k.startswith('head') else 0.3 * (w - start[k][leaf])
                close(gradient[k][leaf], expected * (leaf == 'kernel'), rtol=1e-12)


def test_l2_sp_is_zero_where_training_begins():
    start = jax.tree.map(np.float32, tree(0))
    for beta in (0.0, 0.7):
        method = methods.create('l2_sp', {'alpha': 0.3, 'beta': beta})
        state = method.init_state(spec(start))
        inputs = fakes.inputs(method)

        def loss(params, method=method, state=state, inputs=inputs):
            return method.loss(dataclasses.replace(inputs, params=params), state)

        heads = sum(np.square(np.float64(start[k]['kernel'])).sum() for k in ('head', 'head_projection1'))
        assert loss(start).loss == (pytest.approx(beta / 2 * heads, rel=1e-5) if beta else 0)
        assert loss(start).metrics['from_start'] == 0
        gradient = jax.jit(jax.grad(lambda params: loss(params).loss))(start)
        assert all(np.all(gradient[k][leaf] == 0) for k in ('stem', 'norm') for leaf in gradient[k])


def maps(params, images, batch_stats=None):
    """A network of two convolutions of a pixel; in training its 'statistics' are the batch's mean."""
    mean = images.mean((0, 1, 2)) if batch_stats is None else batch_stats['norm']['mean']
    first = (images - mean) @ params['stem']['kernel'][0, 0]
    second = first[:, ::2, ::2] ** 2 @ params['conv']['kernel'][0, 0]
    features = second.mean((1, 2))
    logits = features @ params['head']['kernel'] + params['head']['bias']
    outputs = {'stem': first, 'stage1': first**2, 'conv': second, 'features': features, 'logits': logits}
    return outputs, {'norm': {'mean': mean}}


def delta_example():
    """Returns the source network's variables, another network's parameters, and images."""
    rng = np.random.default_rng(5)

    def params():
        return {
            'stem': {'kernel': rng.standard_normal((1, 1, 1, 4))},
            'conv': {'kernel': rng.standard_normal((1, 1, 4, 6))},
            'head': {'kernel': rng.standard_normal((6, 3)), 'bias': rng.standard_normal(3)},
        }

    batch_stats = {'norm': {'mean': rng.standard_normal(1)}}
    return {'params': params(), 'batch_stats': batch_stats}, params(), np.float64(fakes.images(3)[LABELED])


@pytest.mark.parametrize('attention', [True, False])
def test_delta_is_the_authors_sum_over_feature_maps_and_the_head(attention):
    """Written from lixingjian/DELTA, train.py: reg_att_fea_map or reg_fea_map, and reg_classifier."""
    method = methods.create('delta', {'alpha': 0.4, 'beta': 0.3, 'attention': attention})
    weights = {'stem': np.array([0.1, 0.2, 0.3, 0.4]), 'conv': np.array([0.3, 0.1, 0.2, 0.05, 0.15, 0.2])}
    with jax.enable_x64(True):
        variables, now, images = delta_example()
        state = method.init_state(spec(**variables)) | {'attention': weights}
        inputs = dataclasses.replace(fakes.inputs(method), images={LABELED: images}, forward=maps)

        def loss(params, batch_stats=None):
            outputs, _ = maps(params, images, batch_stats)
            changed = dataclasses.replace(inputs, params=params, outputs={LABELED: outputs})
            return method.loss(changed, state).loss

        start, running = variables['params'], variables['batch_stats']
        expected, slope = 0.0, np.zeros((1, 1, 4, 6))
        for layer in ('stem', 'conv'):
            difference = maps(now, images)[0][layer] - maps(start, images, running)[0][layer]
            _, h, w, c = difference.shape
            for image in difference:
                for j in range(c):
                    factor = c * weights[layer][j] / (h * w) if attention else 1
                    expected += 0.4 * 0.5 * factor * np.linalg.norm(image[..., j]) ** 2
        for leaf in now['head'].values():
            expected += 0.3 * 0.5 * np.linalg.norm(leaf) ** 2
        close(loss(now), expected, rtol=1e-10)
        # The same statistics and parameters: the same maps.
        close(loss(start, running), sum(0.15 * np.square(leaf).sum() for leaf in start['head'].values()), rtol=1e-10)
        check_grads(loss, (now,), order=1, modes=['rev'])
        # All of the gradient comes through the network that learns: the source is a constant.
        gradient = jax.jit(jax.grad(loss))(now)
        factor = 6 * weights['conv'] / (h * w) if attention else 1
        slope = np.einsum('nhwi,nhwj->ij', maps(now, images)[0]['stem'][:, ::2, ::2] ** 2, factor * difference)
        close(gradient['conv']['kernel'][0, 0], 0.4 * slope, rtol=1e-10)
        for leaf, value in now['head'].items():
            close(gradient['head'][leaf], 0.3 * value, rtol=1e-10)


def authors_attention(images, labels, variables):
    """lixingjian/DELTA, channel_eval.py (train_classifier, feature_weight) and train.py (channel_weights), in NumPy."""
    params, running = variables['params'], variables['batch_stats']
    size = len(images) // -(-len(images) // 32)
    batches = [slice(i, i + size) for i in range(0, len(images) - size + 1, size)]

    def cross_entropy(head, features, labels):
        logits = features @ head['kernel'] + head['bias']
        return (np.logaddexp.reduce(logits, -1) - logits[np.arange(len(labels)), labels]).mean()

    features = maps(params, images, running)[0]['features']
    head = {leaf: value.copy() for leaf, value in params['head'].items()}
    momentum = {leaf: np.zeros_like(value) for leaf, value in head.items()}
    rate = 0.01
    for _ in range(10):
        for batch in batches:
            logits = features[batch] @ head['kernel'] + head['bias']
            p = np.exp(logits - np.logaddexp.reduce(logits, -1)[:, None])
            error = (p - np.eye(3)[labels[batch]]) / size
            slopes = {'kernel': features[batch].T @ error, 'bias': error.sum(0)}
            for leaf, slope in slopes.items():
                momentum[leaf] = 0.9 * momentum[leaf] + slope + 1e-4 * head[leaf]
                head[leaf] -= rate * momentum[leaf]
        rate *= np.exp(np.log(0.1) / 6)
    attention = {}
    for layer in ('stem', 'conv'):
        increases = np.zeros(params[layer]['kernel'].shape[-1])
        for i, batch in enumerate(batches[:4]):
            before = cross_entropy(head, features[batch], labels[batch])
            for j in range(len(increases)):
                kernel = params[layer]['kernel'].copy()
                kernel[..., j] = 0
                without = maps({**params, layer: {'kernel': kernel}}, images[batch], running)[0]['features']
                increase = cross_entropy(head, without, labels[batch]) - before
                increases[j] = (i * increases[j] + increase) / (i + 1)
        z = (increases - np.mean(increases)) / np.std(increases)
        attention[layer] = np.exp(z / 5) / np.exp(z / 5).sum()
    return attention


@pytest.mark.parametrize('size', [20, 50, 155])
def test_deltas_attention_is_the_authors(size, monkeypatch):
    method = methods.create('delta', {})
    # Batches in order, so that NumPy can have the same.
    monkeypatch.setattr(jax.random, 'permutation', lambda key, n: jnp.arange(n))
    rng = np.random.default_rng(6)
    images, labels = rng.standard_normal((size, 4, 4, 1)), rng.integers(0, 3, size)
    with jax.enable_x64(True):
        variables, _, _ = delta_example()
        state = method.init_state(spec(**variables))
        start = Start(images, labels, **variables, forward=lambda *args: maps(*args)[0], key=jax.random.key(0))
        prepared = method.prepare(state, start)
        assert prepared.keys() == state.keys()
        expected = authors_attention(images, labels, variables)
        for layer, values in expected.items():
            assert np.unique(values.round(6)).size == len(values)
            close(prepared['attention'][layer], values, rtol=1e-6)
        unweighted = methods.create('delta', {'attention': False})
        assert unweighted.prepare(state, start) is state


class Notes(Method):
    """Keeps what it sees before the first step."""

    def __init__(self):
        self.starts = []

    def views(self):
        return {LABELED: JOINT}

    def prepare(self, state, start):
        self.starts.append(start)
        return jnp.float32(1)

    def init_state(self, data):
        return jnp.float32(0)

    def loss(self, inputs, state):
        return Loss(inputs.outputs[LABELED]['logits'].sum(), state)


def test_a_method_sees_the_labeled_images_and_the_network_once_before_the_first_step(begin, mesh):
    run = begin()
    trainer = dataclasses.replace(run.trainer, methods={'notes': Notes()})
    latest = [None]
    checkpoints = types.SimpleNamespace(latest=lambda like: latest[0])
    first = loop._latest_or_new(trainer, run.streams, checkpoints, mesh)
    assert first.methods == {'notes': 1}
    (start,) = trainer.methods['notes'].starts
    labeled = run.streams.indices['labeled']
    np.testing.assert_array_equal(start.images, run.streams.images[labeled])
    np.testing.assert_array_equal(start.labels, run.streams.labels[labeled])
    assert_equal(start.params, run.state.params)
    assert_equal(start.batch_stats, run.state.batch_stats)
    predicted = evaluation.create(trainer, mesh)(start.params, start.batch_stats, start.images)
    outputs = jax.jit(start.forward)(start.params, jnp.asarray(start.images), start.batch_stats)
    close(outputs['logits'], predicted, rtol=1e-4)
    # A run that goes on has seen them.
    latest[0] = first
    assert loop._latest_or_new(trainer, run.streams, checkpoints, mesh) is first
    assert len(trainer.methods['notes'].starts) == 1


def penalty(method, features):
    outputs = {LABELED: {'features': features, 'logits': features}}
    return method.loss(dataclasses.replace(fakes.inputs(method), outputs=outputs), ())


@pytest.mark.parametrize('shape', [(4, 7), (7, 4), (5, 5)])
@pytest.mark.parametrize('k', [1, 3])
def test_bss_is_the_sum_of_the_smallest_squared_singular_values(shape, k):
    method = methods.create('bss', {'eta': 0.2, 'k': k})
    with jax.enable_x64(True):
        features = np.random.default_rng(k).standard_normal(shape)
        u, s, vt = np.linalg.svd(features, full_matrices=False)
        result = penalty(method, features)
        close(result.metrics['loss'], np.square(s[-k:]).sum(), rtol=1e-10)
        close(result.loss, 0.2 * np.square(s[-k:]).sum(), rtol=1e-10)

        def loss(x):
            return penalty(method, x).loss

        # d sigma_i^2 / d F = 2 sigma_i u_i v_i^T
        close(jax.grad(loss)(features), 0.4 * (u[:, -k:] * s[-k:]) @ vt[-k:], rtol=1e-8, atol=1e-12)
        check_grads(loss, (features,), order=1, modes=['rev'])


def test_bss_has_a_finite_gradient_for_equal_images_and_for_no_features():
    method = methods.create('bss', {'eta': 1.0, 'k': 2})
    rng = np.random.default_rng(0)
    for shape in ((4, 6), (6, 4)):
        features = np.float32(rng.standard_normal(shape))
        equal = np.concatenate([features[:1], features[:1], features[1:]])[: len(features)]
        for example in (equal, np.zeros(shape, np.float32), np.eye(*shape, dtype=np.float32)):
            loss, gradient = jax.value_and_grad(lambda x: penalty(method, x).loss)(example)
            expected = np.square(np.linalg.svd(np.float64(example), compute_uv=False)[-2:]).sum()
            assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert np.all(np.isfinite(gradient))
        assert not np.any(jax.grad(lambda x: penalty(method, x).loss)(np.zeros(shape, np.float32)))


# The loss of fine-tuning


def softmax_cross_entropy(targets, logits):
    logits = np.float64(logits)
    return -(targets * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)


IMBALANCED = np.int32([0, 2, 1, 0, 0, 0, 2])


@pytest.mark.parametrize('fields', [
    {},
    {'label_smoothing': 0.1},
    {'logit_adjustment': 1.0, 'weight': 2.0},
    {'mixup': 0.3},
    {'label_smoothing': 0.2, 'logit_adjustment': 0.7, 'mixup': 0.8, 'weight': 0.5},
], ids=lambda fields: '+'.join(fields) or 'plain')  # fmt: skip
def test_finetune_equals_numpy(fields):
    method = methods.create('finetune', fields)
    labels = np.int32([2, 0])
    inputs = fakes.inputs(method, labels=jnp.asarray(labels))
    smoothing = fields.get('label_smoothing', 0)
    targets = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    images = np.float64(inputs.images[LABELED])
    alpha = fields.get('mixup')
    if alpha:
        ones, zeros = jnp.ones((2, 1)), jnp.zeros((2, 1))
        share = np.float64(terms.mixup(inputs.key, alpha, (ones,), (zeros,), per_example=False)[0])
        assert share[0] == share[1]
        assert 0.5 <= share[0] < 1
        images = share[0] * images + (1 - share[0]) * images[::-1]
        targets = share[0] * targets + (1 - share[0]) * targets[::-1]
        inputs = dataclasses.replace(inputs, outputs={})  # of images that are not mixed
    logits = images.reshape(2, -1) @ np.float64(inputs.params['logits'])
    # Menon et al. 2021, equation 10, with shares of 4, 1 and 2 of 7 labels.
    adjusted = logits + fields.get('logit_adjustment', 0) * np.log([4 / 7, 1 / 7, 2 / 7])
    expected = softmax_cross_entropy(targets, adjusted).mean()
    state = method.init_state(dataclasses.replace(fakes.SPEC, labels=IMBALANCED))
    # Mixed images are all that batch norm sees.
    assert method.views() == {LABELED: IMAGES if alpha else JOINT}
    result = fakes.loss(method, inputs, state)
    close(result.metrics['loss'], expected)
    close(result.loss, fields.get('weight', 1) * expected)
    close(result.metrics['accuracy'], (logits.argmax(-1) == labels).mean())
    if alpha:  # the running statistics are those of what the network saw
        close(result.batch_stats['mean'], images.mean(0))
    else:
        assert result.batch_stats is None


@pytest.mark.parametrize(('tau', 'best'), [(0.0, [4, 1, 2]), (1.0, [1, 1, 1])])
def test_adjusted_logits_that_fit_the_labels_favour_no_class(tau, best):
    method = methods.create('finetune', {'logit_adjustment': tau})
    state = method.init_state(dataclasses.replace(fakes.SPEC, labels=IMBALANCED))

    def loss(logits):  # of images that all look the same
        outputs = {LABELED: {'logits': jnp.tile(logits, (len(IMBALANCED), 1))}}
        inputs = fakes.inputs(method, labels=jnp.asarray(IMBALANCED), outputs=outputs)
        return method.loss(inputs, state).loss

    close(jax.grad(loss)(jnp.log(jnp.float32(best))), np.zeros(3))


# Dropout and stochastic depth


def keys(number: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), number)


def dropped(x, rate, layer=1, whole='', train=True, seed=0):
    drop = layers.Dropout(rate, whole, name=f'layer{layer}')
    return np.asarray(drop.apply({'given': {'keys': keys(len(x), seed)}}, x, train))


def test_nothing_is_dropped_at_rate_zero_or_in_evaluation():
    x = np.float32(np.random.default_rng(0).standard_normal((8, 2, 2, 3)))
    for whole in ('', 'channel', 'image'):
        np.testing.assert_array_equal(dropped(x, 0.0, whole=whole), x)
        np.testing.assert_array_equal(dropped(x, 0.5, whole=whole, train=False), x)
    # Without keys, which frozen layers are not given.
    np.testing.assert_array_equal(layers.Dropout(0.5, name='a').apply({}, x, train=True), x)


@pytest.mark.parametrize('whole', ['', 'image'])
def test_what_is_kept_is_scaled_so_that_the_mean_stays(whole):
    x = np.ones((4000, 3), np.float32)
    out = dropped(x, 0.3, whole=whole)
    kept = out != 0
    close(out[kept], 1 / 0.7)
    draws = 4000 if whole else 12_000
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.21 / draws)
    together = np.all(kept == kept[:, :1], 1)
    if whole:
        assert np.all(together)
    else:
        assert abs(together.mean() - (0.7**3 + 0.3**3)) < 0.05
    for other in ({'seed': 1}, {'layer': 2}):  # independent draws
        again = dropped(x, 0.3, whole=whole, **other) != 0
        assert abs((again & kept).mean() - 0.49) < 0.03


def test_whole_channels_of_an_image_are_dropped():
    kept = dropped(np.ones((500, 2, 3, 4), np.float32), 0.3, whole='channel') != 0
    assert np.array_equal(kept, np.broadcast_to(kept[:, :1, :1], kept.shape))
    assert abs(kept[:, 0, 0].mean() - 0.7) < 0.06
    assert 0.1 < np.all(kept[:, 0, 0], axis=1).mean() < 0.4  # 0.7^4: each by itself


def test_what_is_dropped_of_an_image_depends_on_its_key_only():
    x = np.random.default_rng(0).uniform(1, 2, (6, 5)).astype(np.float32)
    k, order = keys(6), np.array([3, 1, 5, 0, 2, 4])

    def drop(x, keys):
        return layers.Dropout(0.5, name='a').apply({'given': {'keys': keys}}, x, train=True)

    together = drop(x, k)
    np.testing.assert_array_equal(drop(x[order], k[order]), together[order])
    np.testing.assert_array_equal(np.concatenate([drop(x[:2], k[:2]), drop(x[2:], k[2:])]), together)


def test_dropout_of_features_is_for_training_only():
    features = np.float32(np.random.default_rng(0).standard_normal((4, 16)))
    plain, dropping = (
        models.create('wide_resnet', 10, {'projection': (16,)}, blocks=(1,), width=1, dropout=rate)
        for rate in (0.0, 0.5)
    )
    assert [layer for layer, about in dropping.layers.items() if about.drops] == ['head_dropout']
    assert not any(about.drops for about in plain.layers.values())
    variables = plain.init(jax.random.key(0), (8, 8, 1))
    params = {**variables['params'], 'head': {'kernel': jnp.eye(16, 10), 'bias': jnp.zeros(10)}}
    params['head_projection1'] = {'kernel': jnp.eye(16), 'bias': jnp.zeros(16)}
    variables = {**variables, 'params': params}
    expected = plain.apply(variables, features, train=True)[0]
    evaluated = dropping.apply(variables, features, train=False)[0]
    trained = dropping.apply(variables, features, train=True, keys=keys(4))[0]
    for name in ('logits', 'projection', 'features'):
        np.testing.assert_array_equal(evaluated[name], expected[name])
    seen = np.asarray(trained['projection'])
    assert 0 < np.mean(seen == 0) < 1
    close(seen[seen != 0], 2 * features[seen != 0])
    np.testing.assert_array_equal(trained['logits'], seen[:, :10])  # the same for the classifier and heads
    np.testing.assert_array_equal(trained['features'], features)


def test_later_blocks_of_efficientnet_are_left_out_more_often(monkeypatch):
    """0.2 times its number over 16 (the official code), a whole image at a time; and the features' dropout."""
    drawn = []

    def bernoulli(key, p, shape):
        drawn.append((round(1 - p, 6), shape))
        return jnp.ones(shape, bool)

    monkeypatch.setattr(jax.random, 'bernoulli', bernoulli)
    model, _ = shapes('efficientnet_lite0')
    variables = jax.eval_shape(functools.partial(model.init, image_shape=(32, 32, 3)), jax.random.key(0))
    assert sum(layer.drops for layer in model.layers.values()) == 10
    drawn.clear()
    apply = functools.partial(model.apply, train=True)
    jax.eval_shape(
        lambda variables, x, k: apply(variables, x, keys=k)[0],
        variables, jax.ShapeDtypeStruct((2, 32, 32, 3), 'float32'), keys(2),
    )  # fmt: skip
    residual = (2, 4, 6, 7, 9, 10, 12, 13, 14)  # blocks with as many channels, of the same size, as the one before
    assert drawn == [*((round(0.2 * i / 16, 6), ()) for i in residual), (0.2, (1280,))]


def meshes():
    axis_types = (jax.sharding.AxisType.Auto,)
    return [jax.make_mesh((n,), ('data',), axis_types, devices=jax.devices()[:n]) for n in (1, 2)]


def test_an_image_drops_the_same_units_on_one_device_and_on_two(make_settings, data_dir):
    settings = make_settings('fixmatch', **{'model.dropout': 0.5})
    trainer, streams = run_lib.prepare(settings, data_dir)
    state = step_lib.init(trainer, streams.batches(trainer.batch_sizes, 0, 0))
    # A classifier that shows ten of the features as they are.
    params = {**state.params, 'head': {'kernel': jnp.eye(16, 10), 'bias': jnp.zeros(10)}}
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (1, 8, 8, 1)).astype(np.float32)
    images = {view: np.repeat(image, 4 if view.stream == 'labeled' else 8, 0) for view in trainer.views}
    assert set(trainer.views.values()) == {'joint', 'no_grad'}
    forward = jax.jit(functools.partial(losses.forward, trainer))
    outputs = []
    for mesh in meshes():
        with jax.set_mesh(mesh):
            at = [mesh_lib.put_replicated(mesh, dataclasses.replace(state, step=jnp.int32(i))) for i in (0, 1)]
            parts = mesh_lib.put_batch(mesh, images)
            outputs.append([forward(mesh_lib.put_replicated(mesh, params), s, parts)[0] for s in at])
    masks = []
    for one, two in zip(*outputs, strict=True):
        for view in trainer.views:
            a, b = (np.asarray(outputs[view]['logits']) for outputs in (one, two))
            close(a, b, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(a == 0, b == 0)
            masks += list(a != 0)
    # One image, 2 * (4 + 8 + 8) times: other units each time, half of them.
    assert len({mask.tobytes() for mask in masks}) > 30
    assert abs(np.mean(masks) - 0.5) < 5 * 0.5 / np.sqrt(400)


def test_a_step_with_dropout_is_the_same_on_one_device_and_on_two(begin):
    run = begin({'finetune': {'mixup': 0.5}}, **{'model.dropout': 0.5, 'optimizer.learning_rate': 1.0})
    batch = run.streams.batches(run.trainer.batch_sizes, 0, 0)
    ends = []
    for mesh in meshes():
        with jax.set_mesh(mesh):
            state, metrics = run.step(mesh_lib.put_replicated(mesh, run.state), mesh_lib.put_batch(mesh, batch))
        ends.append((state.params, state.batch_stats, metrics.means))
    jax.tree.map(lambda x, y: close(x, y, rtol=5e-3, atol=1e-4), *ends)


# The strategies


@pytest.mark.parametrize(
    ('size', 'schedule', 'mixup'),
    [
        (20, (100, 200, 300, 400, 500), 0.0),
        (19_999, (100, 200, 300, 400, 500), 0.0),
        (20_000, (500, 3000, 6000, 9000, 10_000), 0.1),
        (499_999, (500, 3000, 6000, 9000, 10_000), 0.1),
        (500_000, (500, 6000, 12_000, 18_000, 20_000), 0.1),
    ],
)
def test_the_hyper_rule_is_bits(size, schedule, mixup):
    assert finetune.bit_steps(size) == schedule
    assert finetune.bit_mixup(size) == mixup


def test_small_images_are_brought_to_bits_small_resolution():
    assert [finetune.bit_resolution(side) for side in (28, 32, 95, 96, 224)] == [128, 128, 128, 480, 480]


@pytest.mark.parametrize(
    ('arg', 'expected'),
    [
        ('cifar10,labels=-1', (10_000, 512, 0.003, 0.1, 128, 500, (3000, 6000, 9000))),
        ('svhn,labels=-1', (10_000, 512, 0.003, 0.1, 128, 500, (3000, 6000, 9000))),
        ('cifar100,labels=1000', (500, 512, 0.003, 0.0, 128, 100, (200, 300, 400))),
        ('stl10,labels=-1', (500, 512, 0.003, 0.0, 480, 100, (200, 300, 400))),
    ],
)
def test_large_data_sets_follow_the_hyper_rule(arg, expected):
    settings = settings_lib.from_config(finetune.get_config(f'{arg},strategy=full,model=bit_r50x1'))
    steps, batch_size, rate, mixup, resolution, warmup, boundaries = expected
    chosen = settings.optimizer
    assert (settings.steps, settings.batch_size, chosen.learning_rate) == (steps, batch_size, pytest.approx(rate))
    assert (settings.methods['finetune']['mixup'], settings.model['resolution']) == (mixup, resolution)
    assert (chosen.schedule, chosen.momentum) == ('steps', 0.9)
    assert chosen.warmup * steps == pytest.approx(warmup)
    assert [b * steps for b in chosen.boundaries] == pytest.approx(boundaries)


@pytest.mark.parametrize('data', ['cifar10', 'svhn', 'stl10', 'fashion_mnist', 'mnist'])
def test_every_strategy_makes_settings_for_every_data_set(data):
    seen = {}
    for strategy in finetune.STRATEGIES:
        settings = settings_lib.from_config(finetune.get_config(f'{data},labels=40,strategy={strategy}'))
        assert settings.data.labels == 40
        assert 'finetune' in settings.methods
        for name, fields in settings.methods.items():
            methods.create(name, fields)
        seen[strategy] = settings
    assert len({repr(settings) for settings in seen.values()}) == len(seen)
    assert seen['scratch'].model['pretrained'] == ''
    assert all(settings.model['pretrained'] for name, settings in seen.items() if name != 'scratch')
    assert seen['unfreeze'].optimizer.unfreeze_step == seen['unfreeze'].steps // 4 > 0
    assert [name for name, settings in seen.items() if settings.data.cache_features] == ['probe']
    assert [name for name, settings in seen.items() if settings.model['frozen_statistics']] == ['statistics']
    assert {name for name, settings in seen.items() if len(settings.methods) > 1} == {'l2_sp', 'delta', 'bss'}
    if seen['delta'].model['resolution'] > 64:  # the authors' .01 in batches of 64, for a sum over the batch
        assert seen['delta'].methods['delta']['alpha'] * seen['delta'].batch_size == pytest.approx(0.01 * 64)
    # On a network's layers, the strategies that name some.
    model, params = shapes('efficientnet_lite0')
    depths = {layer: about.depth for layer, about in model.layers.items()}
    factors = {name: optimizer.layer_rates(settings.optimizer, params, depths) for name, settings in seen.items()}
    for name, layer_factors in factors.items():
        assert layer_factors['head'] == {'kernel': 1, 'bias': 1}
        # l2_sp and delta as lixingjian/DELTA (train.py) has them, bss as thuml/Batch-Spectral-Shrinkage (BSS.py).
        stem = {'head': 0, 'probe': 0, 'decay': 0.8**18, 'tenth': 0.1, 'bss': 0.1}
        assert layer_factors['conv_stem']['kernel'] == pytest.approx(stem.get(name, 1)), name
        assert seen[name].optimizer.weight_decay == (5e-4 if name == 'bss' else 0)


def test_an_unknown_strategy_is_named():
    with pytest.raises(UserError) as error:
        importlib.import_module('configs.finetune').get_config('digits,strategy=prob')
    assert "Unknown strategy 'prob'. Did you mean 'probe'" in one_line(error)
