"""Products in another precision, and everything else in float32."""

import concurrent.futures
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import precision
from models.precision import PRECISIONS
from train import run as run_lib
from train import settings as settings_lib
from train import step as step_lib

PRODUCTS = ('conv_general_dilated', 'dot_general')
SUMS = ('add', 'reduce_sum', 'reduce_max', 'reduce_window_sum', 'cumsum', 'cumlogsumexp', 'argmax')


def equations(jaxpr):
    """Yields the equations of a jaxpr, with those of the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from equations(inner)


@pytest.fixture(scope='module')
def traced(make_settings, data_dir):
    """Returns a function: (config, precision) -> ([(name, types of the inputs, precision)] of a step, new state)."""

    @functools.cache
    def trace(config, precision):
        if config == 'finetune':  # EfficientNet-Lite0, which has no `blocks`
            chosen = importlib.import_module('configs.finetune').get_config('digits,strategy=scratch')
            chosen.model.update(precision=precision, resolution=0)
            chosen.data.image_size, chosen.data.weak.pad = 0, 1
            settings = settings_lib.from_config(chosen)
        else:
            settings = make_settings(config, **{'model.precision': precision, 'checkpoint_steps': 3})
        trainer, streams = run_lib.prepare(settings, data_dir)
        batch = streams.batches(trainer.batch_sizes, 0, 0)
        state = jax.eval_shape(functools.partial(step_lib.init, trainer), batch)
        jaxpr, (state, _) = jax.make_jaxpr(functools.partial(step_lib.step, trainer), return_shape=True)(state, batch)
        found = [
            (e.primitive.name, {getattr(v.aval, 'dtype', None) for v in e.invars}, e.params.get('precision'))
            for e in equations(jaxpr.jaxpr)
        ]
        return found, state

    return trace


# FixMatch, a network of a method's own, features of one, and depthwise convolutions.
@pytest.mark.parametrize('config', ['fixmatch', 'dann', 'rotation', 'finetune'])
def test_a_step_in_bfloat16_multiplies_in_it_and_sums_in_float32(config, traced):
    found, state = traced(config, 'bfloat16')
    products = [types for name, types, _ in found if name in PRODUCTS]
    assert len(products) > 10
    assert all(types == {jnp.dtype('bfloat16')} for types in products)
    assert not [name for name, types, _ in found if name in SUMS and jnp.dtype('bfloat16') in types]
    assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(state))
    assert not any(jnp.dtype('bfloat16') in types for _, types, _ in traced(config, 'float32')[0])


@pytest.mark.parametrize(('precision', 'expected'), [('float32', 'HIGHEST'), ('tensorfloat32', 'HIGH')])
def test_a_gpu_is_told_how_to_multiply_float32(precision, expected, traced):
    convolutions = [chosen for name, _, chosen in traced('fixmatch', precision)[0] if name == 'conv_general_dilated']
    assert convolutions
    for chosen in convolutions:
        assert [level.name for level in chosen] == [expected] * 2


@pytest.mark.parametrize('name', ['wide_resnet', 'bit_r50x1', 'lenet'])
def test_a_network_in_bfloat16_is_nearly_the_same(name):
    small = {'wide_resnet': {'blocks': (1,), 'width': 1}, 'bit_r50x1': {'blocks': (1, 1)}}.get(name, {})
    networks = [models.create(name, 3, precision=precision, **small) for precision in PRECISIONS]
    variables = networks[0].init(jax.random.key(0), (32, 32, 3))
    rng = np.random.default_rng(0)
    variables['params']['head']['kernel'] = rng.normal(size=variables['params']['head']['kernel'].shape) / 10
    images = jnp.float32(rng.normal(size=(4, 32, 32, 3)))
    outputs = [jax.jit(network.apply)(variables, images)[0] for network in networks]
    expected, tensorfloat, half = (output['logits'] for output in outputs)
    assert {value.dtype for output in outputs for value in output.values()} == {jnp.dtype('float32')}
    np.testing.assert_array_equal(tensorfloat, expected)  # on a CPU
    difference = np.abs(half - expected).max() / np.ptp(expected)
    assert 1e-5 < difference < 0.05


def test_a_thread_has_a_precision_of_its_own():
    """The loop traces in two threads at once."""
    x = jnp.ones((1, 1))
    with concurrent.futures.ThreadPoolExecutor(1) as pool, precision.used('bfloat16'):
        assert precision.factors(x, x)[0].dtype == jnp.bfloat16
        assert pool.submit(precision.factors, x, x).result()[0].dtype == jnp.float32
