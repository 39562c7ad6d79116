"""An exported network is the same in its own runtime, for one network of each family."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from drawn import pixels
from PIL import Image

import models
from deploy import export, finished
from models import conv

PACKAGES = {
    'stablehlo': ('flatbuffers',),
    'onnx': ('onnx', 'onnxruntime'),
    'tflite': ('litert_converter', 'ai_edge_litert'),
    'savedmodel': ('tensorflow',),
}

NETWORKS = {
    'wide_resnet': ({'blocks': (1, 1), 'width': 1}, (9, 9, 3)),
    'resnet18': ({'blocks': (1, 1)}, (33, 33, 3)),
    'bit_r50x1': ({'blocks': (1, 1)}, (32, 32, 3)),
    'efficientnet_lite0': ({'resolution': 32, 'crop': 0.875}, (20, 24, 3)),
    'lenet': ({}, (28, 28, 1)),
    'dtn': ({}, (32, 32, 3)),
}


@functools.cache
def network(name):
    """Returns a finished run's stand-in, with random parameters and statistics that are not their first values."""
    values, shape = NETWORKS[name]
    model = models.create(name, 5, **values)
    variables = model.init(jax.random.key(0), shape)
    leaves, tree = jax.tree.flatten(variables['batch_stats'])
    rng = np.random.default_rng(0)
    leaves = [np.float32(leaf + rng.uniform(-0.2, 0.2, leaf.shape)) for leaf in leaves]
    variables = {'params': variables['params'], 'batch_stats': jax.tree.unflatten(tree, leaves)}
    head = variables['params']['head']
    head['kernel'] = np.float32(rng.normal(size=head['kernel'].shape))
    result = {'class_names': list('abcde'), 'image_shape': list(shape)}
    return finished.Finished(pathlib.Path('run'), None, result, model, variables, 1)


@pytest.mark.parametrize(
    ('name', 'kind'),
    # Two formats have a writer of their own here. What JAX writes is compared for each kind of convolution, and once in
    # TensorFlow, which starts slowly and reads the same StableHLO.
    [(name, kind) for name in NETWORKS for kind in ('onnx', 'tflite')]
    + [('wide_resnet', 'stablehlo'), ('efficientnet_lite0', 'stablehlo'), ('lenet', 'savedmodel')],
)
def test_an_exported_network_is_the_same_in_its_own_runtime(name, kind, tmp_path):
    for package in PACKAGES[kind]:
        pytest.importorskip(package)
    made = network(name)
    shape = made.image_shape
    images = np.random.default_rng(1).integers(0, 256, (5, *shape), np.uint8)
    expected, _ = made.predict(images)
    path = tmp_path / f'model.{kind}'
    export.write(made, kind, None, images, path)
    parity = export.compare(kind, path, images, expected.argmax(-1), expected)
    assert parity['same_labels'] == parity['accuracy'] == 1
    assert parity['difference'] <= 1e-4


def test_a_model_in_another_size_resizes_as_for_training(tmp_path):
    made = network('wide_resnet')
    large = np.stack([pixels(i, 36)[:30] for i in range(3)])
    small = np.stack([np.asarray(Image.fromarray(image).resize((9, 9), Image.Resampling.BILINEAR)) for image in large])
    logits, _ = export.function(made, (30, 36))(large)
    assert np.abs(np.asarray(logits) - made.predict(small)[0]).max() < 0.05 * np.ptp(logits)
    for package in PACKAGES['onnx']:
        pytest.importorskip(package)
    export.write(made, 'onnx', (30, 36), np.zeros(0), tmp_path / 'model')
    parity = export.compare('onnx', tmp_path / 'model', large, np.argmax(logits, -1), logits)
    assert parity['difference'] <= 1e-4


def test_other_compilers_get_xlas_own_convolutions(tmp_path):
    made = network('efficientnet_lite0')
    images = jax.ShapeDtypeStruct((1, *made.image_shape), np.uint8)
    with conv.traced_as('plain'):
        text = str(jax.make_jaxpr(export.function(made))(images))
    assert text.count('conv_general_dilated[') == 49
    pytest.importorskip('litert_converter')
    litert = pytest.importorskip('ai_edge_litert.interpreter')
    export.write(made, 'tflite', None, np.zeros(0), tmp_path / 'model')
    names = [op['op_name'] for op in litert.Interpreter(str(tmp_path / 'model'))._get_ops_details()]
    assert (names.count('CONV_2D'), names.count('DEPTHWISE_CONV_2D')) == (33, 16)
