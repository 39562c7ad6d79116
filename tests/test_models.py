"""Networks: convolution and batch norm against independent computations, shapes, names, errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from jax.test_util import check_grads
from scipy import signal

import models
from errors import UserError
from models import conv, layers
from models.network import Network
from models.preprocess import Preprocessing


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compiled(model, train):
    """Returns `model.apply` in one piece: operation by operation takes longer."""
    return jax.jit(functools.partial(model.apply, train=train))


def scipy_conv(x, kernel, stride):
    pad = (kernel.shape[0] - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = [
        [
            sum(signal.correlate2d(image[..., c], kernel[..., c, f], 'valid') for c in range(kernel.shape[2]))
            for f in range(kernel.shape[3])
        ]
        for image in x
    ]
    return np.moveaxis(np.array(out), 1, -1)[:, ::stride, ::stride]


# Maps of which parts of the kernel see padding only.
SMALL = [(1, 3, 1), (1, 3, 2), (2, 5, 1), (2, 5, 2), (3, 7, 2)]


@pytest.mark.parametrize(
    ('size', 'kernel_size', 'stride'), [(8, 3, 1), (8, 3, 2), (7, 3, 2), (8, 1, 1), (8, 1, 2), *SMALL]
)
def test_convolution_equals_scipy(size, kernel_size, stride):
    x, kernel = random(2, size, size, 3), random(kernel_size, kernel_size, 3, 4, seed=1)
    np.testing.assert_allclose(conv.conv(x, kernel, stride), scipy_conv(x, kernel, stride), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('devices', [1, 2])
@pytest.mark.parametrize(('n', 'size', 'kernel_size'), [(6, 8, 3), (4, 32, 3), (4, 40, 3), (6, 7, 5), (4, 8, 1)])
def test_blocked_weight_gradient_equals_xlas(n, size, kernel_size, devices):
    x, kernel = random(n, size, size, 3), random(kernel_size, kernel_size, 3, 4, seed=1)
    pad = (kernel_size - 1) // 2
    out = conv.conv(x, kernel)
    cotangent = random(*out.shape, seed=2)
    expected = jax.vjp(lambda k: conv.xla_conv(x, k, 1, ((pad, pad),) * 2), kernel)[1](cotangent)[0]
    mesh = jax.make_mesh((devices,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        x, cotangent = jax.device_put((x, cotangent), jax.NamedSharding(mesh, jax.P('data')))
        actual = jax.jit(conv.weight_gradient, static_argnums=2)(x, cotangent, kernel_size)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(('convolution', 'channels'), [('xla_conv', 2), ('blocked_conv', 2), ('depthwise_conv', 1)])
@pytest.mark.parametrize(('stride', 'padding'), [(1, ((1, 1), (1, 1))), (2, ((1, 1), (1, 1))), (2, ((0, 1), (1, 0)))])
def test_convolution_gradients_equal_finite_differences(convolution, channels, stride, padding):
    with jax.enable_x64(True):
        x, kernel = (random(*shape).astype(np.float64) for shape in ((2, 5, 5, 2), (3, 3, channels, 2)))
        convolve = getattr(conv, convolution)
        check_grads(lambda x, k: convolve(x, k, stride, padding), (x, kernel), order=1, modes=['rev'])


@pytest.mark.parametrize(
    ('size', 'kernel_size', 'stride'), [(8, 3, 1), (8, 3, 2), (7, 3, 2), (9, 5, 2), (8, 5, 2), *SMALL]
)
def test_depthwise_convolution_with_same_padding_equals_scipy(size, kernel_size, stride):
    x, kernel = random(2, size, size, 6), random(kernel_size, kernel_size, 1, 6, seed=1)
    # TensorFlow: as few zeros as the last output needs, the odd one below and to the right.
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    padded = np.pad(x, ((0, 0), *[(total // 2, total - total // 2)] * 2, (0, 0)))
    expected = [
        [signal.correlate2d(image[..., c], kernel[..., 0, c], 'valid')[::stride, ::stride] for c in range(6)]
        for image in padded
    ]
    actual = conv.conv(x, kernel, stride, same=True)
    np.testing.assert_allclose(actual, np.moveaxis(expected, 1, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('shape', 'kernel_size', 'stride'),
    [((1, 1), 3, 1), ((2, 2), 5, 2), ((4, 1), 5, 1), ((5, 8), 3, 2), ((9, 6), 5, 2), ((8, 8), 3, 4), ((5, 5), 1, 1)],
)
@pytest.mark.parametrize(('same', 'channels'), [(True, 1), (False, 1), (True, 9), (False, 9)])
def test_gradients_equal_xlas_on_maps_of_any_size(shape, kernel_size, stride, same, channels):
    x, kernel = random(2, *shape, 9), random(kernel_size, kernel_size, channels, 9, seed=1)
    padding = tuple(conv._same(n, kernel_size, stride) if same else ((kernel_size - 1) // 2,) * 2 for n in shape)

    def both(x, kernel):  # as one program, which compiles faster
        expected, xla_vjp = jax.vjp(lambda x, k: conv.xla_conv(x, k, stride, padding), x, kernel)
        actual, vjp = jax.vjp(lambda x, k: conv.conv(x, k, stride, same), x, kernel)
        cotangent = random(*expected.shape, seed=2)
        return (actual, *vjp(cotangent)), (expected, *xla_vjp(cotangent))

    for a, b in zip(*jax.jit(both)(x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('devices', [1, 2])
def test_depthwise_gradient_equals_xlas_on_any_number_of_devices(devices, stride):
    x, kernel = random(4, 6, 6, 3), random(3, 3, 1, 3, seed=1)
    mesh = jax.make_mesh((devices,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    padding = ((1, 1), (1, 1))

    def gradients(convolve):
        return jax.jit(jax.grad(lambda x, k: jnp.sum(convolve(x, k, stride, padding) ** 3), (0, 1)))

    expected = gradients(conv.xla_conv)(x, kernel)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, jax.NamedSharding(mesh, jax.P('data')))
        actual = gradients(conv.depthwise_conv)(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), actual, expected)


def apply_norm(x, train, variables=None, given=None):
    """Returns output, running statistics and the moments of the batch."""
    norm = layers.BatchNorm(momentum=0.9, epsilon=1e-3)
    variables = variables or norm.init(jax.random.key(0), x, train=False)
    collections = {**variables, 'given': given or {}}
    out, state = norm.apply(collections, x, train, mutable=['batch_stats', 'moments'])
    return out, state['batch_stats'], state.get('moments')


def test_batch_norm_equals_numpy_and_keeps_torchs_running_statistics():
    x = random(6, 4, 4, 3) * 3 + 1
    out, stats, moments = apply_norm(x, train=True)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(var + 1e-3), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats['mean'], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)
    np.testing.assert_allclose(moments['mean'], mean, rtol=1e-5)
    np.testing.assert_allclose(moments['var'], var, rtol=1e-5)
    assert moments['count'] == 6 * 4 * 4


def test_evaluation_uses_running_statistics_and_leaves_them_alone():
    x = random(6, 4, 4, 3)
    variables = {
        'params': {'scale': np.float32([1, 2, 3]), 'bias': np.float32([0, 1, 2])},
        'batch_stats': {'mean': np.float32([1, 0, -1]), 'var': np.float32([4, 1, 0.25])},
    }
    expected = (x - [1, 0, -1]) / np.sqrt(np.array([4, 1, 0.25]) + 1e-3) * [1, 2, 3] + [0, 1, 2]
    # A frozen layer is the same in training.
    for train, given in ((False, None), (True, variables['batch_stats'])):
        out, stats, _ = apply_norm(x, train, variables, given)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
        jax.tree.map(np.testing.assert_array_equal, stats, variables['batch_stats'])


@pytest.fixture(scope='module')
def small():
    model = models.create('wide_resnet', 5, blocks=(1, 1), width=1)
    return model, model.init(jax.random.key(0), (8, 8, 1))


def test_images_beside_a_batch_use_its_statistics(small):
    model, variables = small
    a, b = random(4, 8, 8, 1), random(4, 8, 8, 1, seed=1) * 2 + 1
    alone, _ = compiled(model, train=True)(variables, a)
    apply = jax.jit(model.apply_beside)
    (batch, other, _), (same, twice, _) = (apply(variables, models.Batch(a), models.Batch(other)) for other in (b, a))
    for name in ('features', 'logits'):
        for outputs in (batch, same, twice):
            np.testing.assert_allclose(outputs[name], alone[name], rtol=1e-5, atol=1e-5)
        assert np.abs(other[name] - alone[name]).max() > 0.1


def test_running_statistics_are_over_both_batches():
    a, b = random(4, 5, 5, 3), random(6, 5, 5, 3, seed=1) * 2 + 1
    _, _, moments = apply_norm(a, train=True)
    out, stats, _ = apply_norm(b, train=True, given=moments)
    mean, std = a.mean((0, 1, 2)), np.sqrt(a.var((0, 1, 2)) + 1e-3)
    np.testing.assert_allclose(out, (b - mean) / std, rtol=1e-4, atol=1e-4)
    both = np.concatenate([a, b])
    np.testing.assert_allclose(stats['mean'], 0.1 * both.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * both.var((0, 1, 2), ddof=1), rtol=1e-4)


def test_images_beside_a_batch_give_no_gradient_to_anything(small):
    model, variables = small
    a, b = random(4, 8, 8, 1), random(6, 8, 8, 1, seed=1)

    def loss(params, b, part):
        outputs = model.apply_beside({**variables, 'params': params}, models.Batch(a), models.Batch(b))
        return jnp.sum(outputs[part]['logits'] ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    to_params, to_images = gradients(variables['params'], b, 1)
    assert all(not np.any(g) for g in jax.tree.leaves((to_params, to_images)))
    to_params, to_images = gradients(variables['params'], b, 0)
    assert not np.any(to_images)  # not even through the statistics
    assert all(np.any(g) for g in jax.tree.leaves(to_params))


class Nested(nn.Module):
    """A network as somebody else would write it: blocks of layers, named by Flax, and our batch norm."""

    @nn.compact
    def __call__(self, x, train):
        for _ in range(2):
            x = Block()(x, train)
        return {'map': x, 'features': x.mean((1, 2))}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3))(x)
        return nn.relu(layers.BatchNorm(0.9, 1e-5)(x, train))


def test_a_network_of_somebody_else_needs_our_batch_norm_and_names_of_its_outputs():
    model = models.Model(Network(Nested(), 3, {'rotation': (4,)}), Preprocessing((0.5,), (0.5,)))
    variables = model.init(jax.random.key(0), (8, 8, 3))
    names = ['Block_0/Conv_0', 'Block_0/BatchNorm_0', 'Block_1/Conv_0', 'Block_1/BatchNorm_0', 'head', 'head_rotation1']
    assert set(variables['params']) == set(names)
    assert [model.layers[name].depth for name in names] == [0, 1, 2, 3, 4, 4]
    a, b = random(4, 8, 8, 3), random(4, 8, 8, 3, seed=1) + 2
    outputs, beside, stats = model.apply_beside(variables, models.Batch(a), models.Batch(b))
    alone, stats_alone = model.apply(variables, a, train=True)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), outputs, alone)
    assert np.abs(beside['logits'] - outputs['logits']).max() > 1e-3
    assert set(stats) == {'Block_0/BatchNorm_0', 'Block_1/BatchNorm_0'}
    assert all(np.any(stats[layer]['mean'] != stats_alone[layer]['mean']) for layer in stats)
    # A frozen layer keeps its running statistics and uses them.
    frozen, kept = model.apply(variables, a, train=True, frozen=frozenset(variables['params']))
    jax.tree.map(np.testing.assert_array_equal, kept, variables['batch_stats'])
    evaluated, _ = model.apply(variables, a)
    jax.tree.map(np.testing.assert_array_equal, frozen, evaluated)


@pytest.mark.parametrize(('width', 'classes', 'millions'), [(2, 10, 1.47), (8, 100, 23.40)])
def test_wide_resnets_have_the_published_number_of_parameters(width, classes, millions):
    model = models.create('wide_resnet', classes, blocks=(4, 4, 4), width=width)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), (32, 32, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes['params'])) / 1e6 == pytest.approx(millions, abs=0.005)


def test_wide_resnet_has_the_stated_outputs_and_initial_variance():
    model = models.create('wide_resnet', 10, blocks=(1, 1, 1), width=2)
    variables = model.init(jax.random.key(0), (16, 16, 3))
    outputs, _ = jax.eval_shape(compiled(model, train=False), variables, random(2, 16, 16, 3))
    assert outputs['features'].shape == (2, 128)
    assert outputs['logits'].shape == (2, 10)
    kernel = variables['params']['stage3_block1_conv2']['kernel']
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)


def test_unknown_names_say_what_is_valid():
    with pytest.raises(UserError, match=r"Unknown model 'wide_resnt'.*Did you mean 'wide_resnet'"):
        models.create('wide_resnt', 10)
    with pytest.raises(UserError, match=r"Unknown setting of model wide_resnet 'widht'.*'width'"):
        models.create('wide_resnet', 10, widht=2)
    with pytest.raises(UserError, match=r"Unknown model.batch_norm 'adabm'. Did you mean 'adabn'"):
        models.create('wide_resnet', 10, batch_norm='adabm')
    with pytest.raises(UserError, match='leaves nothing to'):
        models.create('wide_resnet', 10, batch_norm='adabn', frozen_statistics=True)


# Those of ResNet-50 are the ones that DELTA's authors compare (lixingjian/DELTA, train.py).
LAST_CONVOLUTIONS = {
    'wide_resnet': {f'stage{i}_block4_conv2' for i in (1, 2, 3)},
    'resnet18': {f'layer{i}_1_conv2' for i in (1, 2, 3, 4)},
    'resnet50': {'layer1_2_conv3', 'layer2_3_conv3', 'layer3_5_conv3', 'layer4_2_conv3'},
    'bit_r50x1': {'stage1_block3_conv3', 'stage2_block4_conv3', 'stage3_block6_conv3', 'stage4_block3_conv3'},
    'efficientnet_lite0': {f'blocks_{i}_project_conv' for i in (0, 2, 4, 7, 10, 14, 15)},
    'dtn': {'conv1', 'conv2', 'conv3'},
}


@pytest.mark.parametrize(
    ('name', 'channels'),
    # Gray for one of each kind.
    [(name, 3) for name in models.MODELS]
    + [(name, 1) for name in ('wide_resnet', 'resnet18', 'bit_r50x1', 'efficientnet_lite0', 'lenet', 'dtn')],
)
def test_every_network_takes_gray_and_color_and_names_what_it_computes(name, channels):
    # Deeper ones are the same code.
    small = {'blocks': (1, 1, 1, 1)} if 'blocks' in models.settings(name) and name not in LAST_CONVOLUTIONS else {}
    model = models.create(name, 7, heads={'rotation': (16, 4)}, **small)
    variables = jax.eval_shape(lambda key: model.init(key, (64, 64, channels)), jax.random.key(0))

    def outputs(x):
        return jax.eval_shape(lambda v, x: model.apply(v, x)[0], variables, x)

    shapes = outputs(jax.ShapeDtypeStruct((2, 64, 64, channels), 'float32'))
    assert shapes['logits'].shape == (2, 7)
    assert shapes['rotation'].shape == (2, 4)
    assert len(shapes['features'].shape) == 2
    # Feature maps at the end of every stage, and of its last convolution.
    maps = {output for output, x in shapes.items() if len(x.shape) == 4} - {'map'}
    convolutions = maps & variables['params'].keys()
    assert len(maps) == 2 * len(convolutions) > 0
    if 'map' in shapes:  # whose average the features are
        assert shapes['map'].shape[-1] == shapes['features'].shape[-1]
    assert convolutions == LAST_CONVOLUTIONS.get(name, convolutions)
    for layer in convolutions:
        assert shapes[layer].shape[-1] == variables['params'][layer]['kernel'].shape[-1]
    # The features again, without the backbone.
    again = outputs(shapes['features'])
    assert set(again) == {'features', 'logits', 'rotation'}
    assert again['logits'] == shapes['logits']
    assert {layer for layer, about in model.layers.items() if not about.drops} == set(variables['params'])
    assert {layer for layer, about in model.layers.items() if about.norm} == set(variables['batch_stats'])
    depths = {about.depth for about in model.layers.values()}
    assert depths == set(range(max(depths) + 1))
    heads = {layer for layer, about in model.layers.items() if about.head}
    assert {'head', 'head_rotation1', 'head_rotation2'} <= heads
    assert all(about.head == (about.depth == max(depths)) for about in model.layers.values())


class Foreign(nn.Module):
    """A network as others write it: names of Flax's own making and some that look like ours, Flax's own dropout."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (3, 3), name='header_conv')(images)
        for _ in range(11):
            x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.Dropout(0.5, deterministic=not train)(layers.BatchNorm(0.9, 1e-5, name='bottleneck1')(x, train))
        return {'map': x, 'features': x.mean((1, 2))}


class Ordered(Foreign):
    def order(self):
        return [('header_conv', 'bottleneck1')]


@pytest.fixture
def foreign(monkeypatch):
    monkeypatch.setitem(models.MODELS, 'foreign', (Foreign, {}))
    monkeypatch.setitem(models.MODELS, 'ordered', (Ordered, {}))


@pytest.mark.usefixtures('foreign')
def test_layers_of_someone_elses_network_are_told_by_their_whole_names():
    model = models.create('foreign', 3, heads={'projection': (4, 2)}, bottleneck_width=5)
    backbone = ['header_conv', *(f'Conv_{i}' for i in range(11)), 'bottleneck1']
    depths = {name: i for i, name in enumerate(backbone)} | {'bottleneck': 13, 'bottleneck_norm': 13}
    heads = {'head', 'head_projection1', 'head_projection2'}
    layers = model.layers
    assert {name for name, layer in layers.items() if layer.head and not layer.drops} == heads
    assert {name: layers[name].depth for name in depths} == depths
    assert {layers[name].depth for name in heads} == {14}
    with pytest.raises(UserError, match=r'Ordered.order\(\) leaves out the layer Conv_0'):
        _ = models.create('ordered', 3).layers


@pytest.mark.usefixtures('foreign')
def test_someone_elses_network_trains_with_batch_norm_and_flaxs_own_dropout():
    model = models.create('foreign', 3)
    variables = model.init(jax.random.key(0), (8, 8, 3))
    images, beside = random(4, 8, 8, 3), random(6, 8, 8, 3)
    keys = [jax.random.split(jax.random.key(seed), 6) for seed in range(3)]
    outputs, beside_outputs, batch_stats = jax.jit(model.apply_beside)(
        variables, models.Batch(images, keys[0][:4]), models.Batch(beside, keys[1])
    )
    assert 0.3 < np.mean(np.asarray(outputs['map']) == 0) < 0.7
    assert beside_outputs['logits'].shape == (6, 3)
    assert np.any(batch_stats['bottleneck1']['mean'] != variables['batch_stats']['bottleneck1']['mean'])


@pytest.mark.parametrize('settings', [{}, {'bottleneck_width': 5}])
def test_a_head_of_width_0_is_as_wide_as_the_features(settings):
    model = models.create('wide_resnet', 7, {'projection': (0, 6)}, blocks=(1,), width=2, **settings)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), (8, 8, 3)))['params']
    width = settings.get('bottleneck_width', params['head']['kernel'].shape[0])
    assert params['head_projection1']['kernel'].shape == (width, width)
    assert params['head_projection2']['kernel'].shape == (width, 6)


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('wide_resnet', {'blocks': (1, 1), 'width': 1}),
        ('resnet18_small', {'blocks': (1, 1)}),
        ('bit_r50x1', {'blocks': (1, 1)}),
        ('efficientnet_lite0', {}),
        ('lenet', {}),
        ('dtn', {}),
    ],
)
def test_the_output_of_a_convolution_is_zero_without_its_filters(name, settings):
    model = models.create(name, 3, **settings)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), (16, 16, 1)))
    # Not those of `init`, which take as long to compile as the network.
    variables = jax.tree.map(lambda x: 0.1 + np.abs(random(*x.shape)) / np.sqrt(x.size), shapes)
    outputs = jax.eval_shape(lambda: model.apply(variables, jnp.zeros((1, 16, 16, 1)))[0])
    convolutions = outputs.keys() & variables['params'].keys()
    for layer in convolutions:
        for leaf in variables['params'][layer].values():  # the kernel and, in LeNet, a bias
            leaf[..., 1] = 0
    outputs, _ = compiled(model, train=False)(variables, np.abs(random(2, 16, 16, 1)))
    for layer in convolutions:
        assert not np.any(outputs[layer][..., 1])
        assert np.all(np.any(outputs[layer], axis=(0, 1, 2)) == (np.arange(outputs[layer].shape[-1]) != 1))


def test_lenet_equals_scipy():
    model = models.create('lenet', 10)
    variables = model.init(jax.random.key(0), (28, 28, 1))
    rng = np.random.default_rng(0)
    params = {
        layer: {leaf: rng.normal(scale=0.1, size=x.shape) for leaf, x in leaves.items()}
        for layer, leaves in variables['params'].items()
    }
    assert params['dense']['kernel'].shape == (4 * 4 * 50, 500)
    images = random(2, 28, 28, 1)
    x = np.float64(images)
    for layer in ('conv1', 'conv2'):
        kernel, bias = params[layer]['kernel'], params[layer]['bias']
        x = np.stack(
            [
                sum(scipy.signal.correlate(x[n, :, :, c], kernel[:, :, c, f], mode='valid') for c in range(x.shape[-1]))
                for n in range(2)
                for f in range(kernel.shape[-1])
            ]
        )
        x = np.moveaxis(x.reshape(2, -1, *x.shape[1:]), 1, -1) + bias
        x = np.maximum(x.reshape(2, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4)), 0)
    x = np.maximum(x.reshape(2, -1) @ params['dense']['kernel'] + params['dense']['bias'], 0)
    params32 = jax.tree.map(np.float32, params)
    outputs, _ = compiled(model, train=False)({'params': params32, 'batch_stats': {}}, images)
    np.testing.assert_allclose(outputs['features'], x, rtol=1e-4, atol=1e-4)


def test_networks_for_digits_drop_channels_in_training_by_the_key_of_each_image():
    # TLlib's (tllib/vision/models/digits.py): its last layer is the dropout of the features.
    for name, size, convolutions in (('lenet', 28, (2,)), ('dtn', 32, (1, 2, 3))):
        model = models.create(name, 10)
        dropped = {layer for layer, about in model.layers.items() if about.drops}
        assert dropped == {'dense_drop', *(f'conv{i}_drop' for i in convolutions)}
        variables = model.init(jax.random.key(0), (size, size, 1))
        images = random(4, size, size, 1)
        apply = compiled(model, train=True)
        (maps, _), (again, _), (other, _) = (
            apply(variables, images, keys=jax.random.split(jax.random.key(seed), 4)) for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(maps['features'], again['features'])
        assert np.any(maps['features'] != other['features'])
        empty = np.all(maps['stage2'] == 0, axis=(1, 2))
        assert 0.1 < empty.mean() < 0.8


@pytest.mark.parametrize(
    ('name', 'small', 'blocks'),
    [
        ('wide_resnet', {'blocks': (1, 2)}, 3),
        ('resnet18', {'blocks': (1, 2)}, 3),
        ('bit_r50x1', {'blocks': (1, 2)}, 3),
        ('efficientnet_lite0', {}, 16),
    ],
)
def test_every_block_can_be_rematerialised(name, small, blocks):
    plain, remat = (models.create(name, 3, remat=remat, dropout=0.5, **small) for remat in (False, True))
    assert list(plain.layers.items()) == list(remat.layers.items())
    variables = jax.eval_shape(lambda key: remat.init(key, (32, 32, 1)), jax.random.key(0))
    outputs = functools.partial(remat.apply, images=random(2, 32, 32, 1), train=True)
    traced = jax.make_jaxpr(lambda variables: outputs(variables))(variables)
    assert sum(equation.primitive.name == 'remat2' for equation in traced.eqns) == blocks


def test_rematerialised_blocks_give_the_same_gradient_and_running_statistics():
    images, keys = random(2, 8, 8, 1), jax.random.split(jax.random.key(1), 2)

    def gradient(remat):
        model = models.create('wide_resnet', 3, remat=remat, blocks=(1, 1), width=1, dropout=0.5)
        variables = model.init(jax.random.key(0), (8, 8, 1))

        def loss(params):
            variables['params'] = params
            outputs, batch_stats = model.apply(variables, images, True, keys=keys)
            return jnp.square(outputs['logits']).sum(), batch_stats

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradient(False), gradient(True))
