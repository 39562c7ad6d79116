"""Networks with published weights equal PyTorch's (golden/make_networks.py); what does not fit is named."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from golden import rule
from PIL import Image

import models
from errors import UserError
from models import pretrained
from models.preprocess import Preprocessing

GOLDEN = pathlib.Path(__file__).parent / 'golden'
KEYS = json.loads((GOLDEN / 'networks_keys.json').read_text())
EXPECTED = np.load(GOLDEN / 'networks.npz')

# {ours: theirs}
NETWORKS = {
    'resnet18': 'resnet18',
    'resnet50': 'resnet50',
    'resnext50_32x4d': 'resnext50_32x4d',
    'wide_resnet50_2': 'wide_resnet50_2',
    'efficientnet_lite0': 'efficientnet-lite0',
    'bit_r50x1': 'resnetv2_50x1_bit',
    'bit_r50x1.npz': 'resnetv2_50x1_bit.npz',
}
DEEPER = {
    'resnet34': 'resnet34',
    'resnet101': 'resnet101',
    'resnet152': 'resnet152',
    'bit_r101x1': 'resnetv2_101x1_bit',
    'bit_r101x1.npz': 'resnetv2_101x1_bit.npz',
}


def by_rule(theirs):
    """Returns Weights with the tensors that the rule makes for a network of PyTorch's."""
    tensors = {name: rule.tensor(name, tuple(shape)) for name, shape in KEYS[theirs].items()}
    return pretrained.Weights(tensors, 'npz' if theirs.endswith('.npz') else 'torch', {'source': theirs}, {})


def load(ours, weights, num_classes=1000, channels=3):
    """Returns a model and its variables, of which all are the weights' or zero: random ones take long to compile."""
    model = models.create(ours.removesuffix('.npz'), num_classes, weights=weights)
    init = functools.partial(dataclasses.replace(model, weights=None).init, image_shape=(64, 64, channels))
    kind = type(model.network.backbone).__name__
    return model, pretrained.fill(kind, jax.eval_shape(init, jax.random.key(0)), weights, {'head'})


def apply(model, variables, images, train=False):
    """Runs a network on preprocessed images."""
    return jax.jit(functools.partial(model.apply, train=train))(variables, images)


def close(actual, expected, tolerance):
    """Compares with an error relative to the spread of what is expected."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * expected.std())


@pytest.mark.parametrize(('ours', 'theirs'), NETWORKS.items())
def test_outputs_and_batch_statistics_equal_pytorchs(ours, theirs):
    model, variables = load(ours, by_rule(theirs))
    images = jnp.asarray(rule.images(2, 64))
    outputs, unchanged = apply(model, variables, images)
    close(outputs['logits'], EXPECTED[f'{theirs}/logits'], 1e-4)
    jax.tree.map(np.testing.assert_array_equal, unchanged, variables['batch_stats'])
    trained = [name for name in EXPECTED.files if name.startswith(f'{theirs}/train/')]
    if not trained:
        return
    outputs, stats = apply(model, variables, images, train=True)
    close(outputs['logits'], EXPECTED[f'{theirs}/train_logits'], 1e-3)
    statistics = {}
    for layer, leaves in stats.items():
        for leaf, value in leaves.items():
            statistics[
                pretrained.name_in_file('torch', type(model.network.backbone).__name__, 'batch_stats', layer, leaf)
            ] = value
    for name in trained:
        close(statistics[name.removeprefix(f'{theirs}/train/')], EXPECTED[name], 1e-4)


@pytest.mark.parametrize(('ours', 'theirs'), DEEPER.items())
def test_deeper_networks_take_every_tensor(ours, theirs):
    shapes = {name: np.broadcast_to(np.float32(0), shape) for name, shape in KEYS[theirs].items()}
    weights = pretrained.Weights(shapes, 'npz' if theirs.endswith('.npz') else 'torch', {'source': theirs}, {})
    model = models.create(ours.removesuffix('.npz'), 1000)
    variables = jax.eval_shape(lambda key: model.init(key, (64, 64, 3)), jax.random.key(0))
    kind = type(model.network.backbone).__name__
    pretrained.fill(kind, variables, weights, {'head'})  # raises where a tensor is left or missing
    size = sum(np.prod(shape) for name, shape in KEYS[theirs].items() if 'running' not in name)
    assert sum(x.size for x in jax.tree.leaves(variables['params'])) == size


def test_every_tensor_that_does_not_fit_is_named_at_once():
    weights = by_rule('resnet18')
    del weights.tensors['layer1.0.conv1.weight'], weights.tensors['bn1.running_var']
    weights.tensors['layer9.weight'] = np.zeros(3, np.float32)
    weights.tensors['layer2.0.bn1.bias'] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as error:
        load('resnet18', weights)
    message = str(error.value)
    assert '2 missing: bn1.running_var, layer1.0.conv1.weight' in message
    assert '1 unexpected: layer9.weight' in message
    assert '1 of another shape: layer2.0.bn1.bias (3,) for (128,)' in message
    assert '\n' not in message


def test_another_number_of_classes_starts_a_classifier_of_zeros():
    model, variables = load('resnet18', by_rule('resnet18'), num_classes=7)
    assert variables['params']['head']['kernel'].shape == (512, 7)
    assert not np.any(variables['params']['head']['kernel'])
    outputs, _ = apply(model, variables, jnp.asarray(rule.images(2, 64)))
    assert not np.any(outputs['logits'])
    assert np.std(outputs['features']) > 0.01


@pytest.mark.parametrize('name', ['resnet18', 'bit_r50x1'])
def test_gray_images_equal_their_colored_copies(name):
    weights = by_rule(NETWORKS[name])
    gray = jnp.asarray(rule.images(1, 64, channels=1))
    outputs = []
    for channels in (1, 3):
        model, variables = load(name, weights, channels=channels)
        preprocess = dataclasses.replace(model.preprocess, mean=(0.5,), std=(0.5,), resolution=0)
        images = preprocess(jnp.repeat(gray, channels, -1))
        outputs.append(apply(model, variables, images)[0]['logits'])
    close(outputs[0], np.asarray(outputs[1]), 1e-4)


def test_imagenet_classes_of_photographs():
    """EfficientNet-Lite0 with its real weights knows what is on scikit-image's and scikit-learn's photographs."""
    classes = {
        'chelsea': {281, 282, 285},  # tabby, tiger cat, Egyptian cat
        'coffee': {504, 967, 968},  # coffee mug, espresso, cup
        'rocket': {657, 744},  # missile, projectile
        'flower': {985, 308, 309},  # daisy
        'china': {698, 975, 442, 663, 832},  # palace, ... stupa
    }
    photographs = {name: getattr(skimage.data, name)() for name in ('chelsea', 'coffee', 'rocket')}
    photographs |= {name: sklearn.datasets.load_sample_image(f'{name}.jpg') for name in ('flower', 'china')}
    weights = pretrained.load('efficientnet_lite0')
    model = models.create('efficientnet_lite0', 1000, weights=weights)
    variables = model.init(jax.random.key(0), (224, 224, 3))
    images = [model.preprocess(jnp.asarray(x[None] / 255, jnp.float32)) for x in photographs.values()]
    images = jnp.concatenate([*images, rule.images(2, 224)])
    logits = apply(model, variables, images)[0]['logits']
    close(logits[-2:], EXPECTED['efficientnet-lite0/real_logits_224'], 1e-4)
    top5 = jax.lax.top_k(logits[:-2], 5)[1]
    predicted = {name: set(np.asarray(top).tolist()) for name, top in zip(photographs, top5, strict=True)}
    assert all(predicted[name] & classes[name] for name in classes), predicted


@pytest.mark.parametrize(('interpolation', 'pillow'), [('bilinear', 'BILINEAR'), ('bicubic', 'BICUBIC')])
@pytest.mark.parametrize(('size', 'crop'), [((28, 28), 1.0), ((200, 300), 0.875)])
def test_preprocessing_equals_pillow(interpolation, pillow, size, crop):
    image = np.random.default_rng(0).uniform(size=size).astype(np.float32)
    preprocess = Preprocessing((0.3,), (0.2,), resolution=56, interpolation=interpolation, crop=crop)
    shorter = round(56 / crop)
    scaled = [round(side * shorter / min(size)) for side in size]
    expected = np.asarray(Image.fromarray(image).resize(scaled[::-1], getattr(Image.Resampling, pillow)))
    top, left = ((side - 56) // 2 for side in scaled)
    expected = (expected[top : top + 56, left : left + 56] - 0.3) / 0.2
    actual = preprocess(jnp.asarray(image[None, ..., None]))[0, ..., 0]
    np.testing.assert_allclose(actual, expected, atol=1e-3)
