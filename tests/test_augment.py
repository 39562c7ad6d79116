"""Augmentation against PIL itself, operation by operation and draw by draw, and the draws' statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw, ImageEnhance, ImageOps
from sklearn import datasets

from data.augment import Strong, Weak, ops, pixels
from errors import UserError

ENHANCEMENTS = ('Brightness', 'Color', 'Contrast', 'Sharpness')
COLOUR = (32, 32, 3)
OBLONG = (8, 96, 3)  # The smallest and the largest size.
GREY = (32, 32, 1)
# As users compile, unlike the other tests (conftest.py): only then would products and sums be fused that PIL rounds.
jit = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 3, 'xla_cpu_use_fusion_emitters': True}
)


# What PIL makes of it, written from the published protocols.


def pil_operation(image, name, magnitude):
    """Returns an image of mode L, LA, RGB or RGBA after one operation."""

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    def flat(function, *args):
        # The official code leaves RGBA for the operations that cannot take it.
        return function(image.convert(image.mode.removesuffix('A')), *args).convert(image.mode)

    match name:
        case 'Identity':
            return image
        case 'Rotate':
            return image.rotate(magnitude)
        case 'ShearX':
            return affine(1, magnitude, 0, 0, 1, 0)
        case 'ShearY':
            return affine(1, 0, 0, magnitude, 1, 0)
        case 'TranslateX':
            return affine(1, 0, magnitude, 0, 1, 0)
        case 'TranslateY':
            return affine(1, 0, 0, 0, 1, magnitude)
        case 'AutoContrast':
            return flat(ImageOps.autocontrast)
        case 'Equalize':
            return flat(ImageOps.equalize)
        case 'Posterize':
            return flat(ImageOps.posterize, int(magnitude))
        case 'Solarize':
            return flat(ImageOps.solarize, magnitude)
    return getattr(ImageEnhance, name)(image).enhance(magnitude)


def numpy_weak(image, draws, pad):
    image = image[:, ::-1] if draws['flip'] else image
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode='reflect')
    top, left = draws['top'], draws['left']
    return padded[top : top + image.shape[0], left : left + image.shape[1]]


def pil_strong(view, image, draws):
    """Returns one image, float32 [H, W, C] in [0, 1], made by PIL with the draws of that image."""
    height, width, channels = image.shape
    image = to_pil(numpy_weak(image, draws['weak'], view.pad))
    if view.protocol == 'google':
        image = image.convert(image.mode + 'A')
    for op, magnitude in zip(draws['op'], draws['magnitude'], strict=True):
        image = pil_operation(image, ops.OPS[op], float(magnitude))
    y, x = map(float, draws['centre'])
    side = float(draws['side'])
    if view.protocol == 'google':
        array = np.asarray(image)
        result = np.where(array[..., -1:] == 0, np.float32(0.5), array[..., :-1] / np.float32(255))
        y, x, half = int(y), int(x), int(side) // 2
        result[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0.5
        return result
    left, top = int(max(0, x - side / 2)), int(max(0, y - side / 2))
    box = (left, top, min(width, left + side), min(height, top + side))
    colour = (125, 123, 114) if channels == 3 else ImageColor.getcolor('rgb(125, 123, 114)', 'L')
    ImageDraw.Draw(image).rectangle(box, colour)
    return np.asarray(image).reshape(height, width, channels) / np.float32(255)


@functools.partial(jax.jit, static_argnums=(0, 2))
def draw(view, key, shape):
    return view.draw(key, shape)


def of_image(draws, i):
    return jax.tree.map(lambda draw: draw[i], draws)


def to_pil(image):
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))


def photographs(shape, count):
    """Returns pieces of two photographs, uint8 [count, *shape], the first two made flat and two-coloured."""
    height, width, channels = shape
    sheets = []
    for photograph in datasets.load_sample_images().images:
        sheet = Image.fromarray(photograph).convert('L' if channels == 1 else 'RGB')
        sheet = sheet.resize((width * 12, height * 12))
        sheet = np.asarray(sheet).reshape(12, height, 12, width, channels)
        sheets.append(sheet.swapaxes(1, 2).reshape(-1, *shape))
    images = np.random.default_rng(0).permutation(np.concatenate(sheets))[:count].copy()
    images[0] = 77
    images[1] = np.where(images[1] > 100, 200, 30)
    return images


# Operations.


@functools.cache
def compare(shape):
    """Applies every operation at many magnitudes. Returns {operation: (ours, PIL's)}, [N, H, W, C] each."""
    height, width, channels = shape
    images = photographs(shape, 8)
    rng = np.random.default_rng(0)
    signed = np.concatenate([np.linspace(0.1, 0.9, 9), -np.linspace(0.1, 0.9, 9), rng.uniform(-1, 1, 12)])
    unsigned = np.abs(signed)
    factors = np.concatenate([1.8 * unsigned[:18] + 0.1, 0.9 * unsigned[18:] + 0.05])
    magnitudes = {
        'Rotate': 30 * signed,
        'ShearX': 0.3 * signed,
        'ShearY': 0.3 * signed,
        'TranslateX': np.concatenate([np.rint(10 * signed[:18]), 0.3 * width * signed[18:]]),
        'TranslateY': np.concatenate([np.rint(10 * signed[:18]), 0.3 * height * signed[18:]]),
        'Posterize': np.concatenate([np.arange(1, 9)] * 4)[:30],
        'Solarize': np.concatenate([256 - np.trunc(256 * unsigned[:18]), 256 * unsigned[18:]]),
        **dict.fromkeys(ENHANCEMENTS, factors),
    }
    jobs = [
        (name, np.float32(magnitude), image)
        for name in ops.OPS
        for magnitude in magnitudes.get(name, [0])
        for image in images
    ]
    names, values, images = map(list, zip(*[jobs[i] for i in rng.permutation(len(jobs))], strict=True))
    op = np.int32([ops.OPS.index(name) for name in names])
    apply = jit(ops.apply, static_argnums=(3, 4))
    words = apply(pixels.pack(np.stack(images)), op, np.float32(values), channels, pixels.OPAQUE)
    ours = np.rint(255 * np.asarray(pixels.unpack(words, channels)))
    pils = [
        np.asarray(pil_operation(to_pil(image), name, float(value))).reshape(shape)
        for name, value, image in zip(names, values, images, strict=True)
    ]
    chosen = {name: np.array(names) == name for name in ops.OPS}
    return {name: (ours[mask], np.float32(pils)[mask]) for name, mask in chosen.items()}


@pytest.mark.parametrize('shape', [COLOUR, OBLONG, GREY], ids=['colour', 'oblong', 'grey'])
@pytest.mark.parametrize('name', ops.OPS)
def test_an_operation_equals_pil(name, shape):
    ours, pils = compare(shape)[name]
    different = np.abs(ours - pils)
    if name == 'AutoContrast':
        # Where the stretched level is an integer, PIL's float64 sometimes falls just short of it.
        assert different.max() <= 1
        assert np.mean(different > 0) < 0.02
    else:
        assert not different.any()


# Whole views.


@functools.cache
def strong(protocol, shape):
    """Returns a view, images, their draws and the result."""
    view = Strong(flip=True, pad=4, protocol=protocol)
    images = photographs(shape, 256)
    draws = jax.device_get(draw(view, jax.random.key(1), images.shape))
    return view, images, draws, np.asarray(jit(view.apply)(draws, images))


@pytest.mark.parametrize('shape', [COLOUR, GREY], ids=['colour', 'grey'])
@pytest.mark.parametrize('protocol', ['google', 'torchssl'])
def test_the_strong_view_equals_pil(protocol, shape):
    view, images, draws, ours = strong(protocol, shape)
    assert ours.dtype == np.float32
    pils = np.stack([pil_strong(view, image, of_image(draws, i)) for i, image in enumerate(images)])
    inexact = (draws['op'] == ops.OPS.index('AutoContrast')).any(axis=1)
    assert 0 < inexact.mean() < 0.3
    np.testing.assert_allclose(ours[~inexact], pils[~inexact], rtol=0, atol=1e-6)
    different = np.abs(ours[inexact] - pils[inexact]) * 255
    assert np.mean(different > 0.01) < 0.02
    # An operation after AutoContrast may enlarge its one level.
    assert np.mean(different > 1.01) < 0.002


def test_few_images_without_jit_equal_many_with_it():
    view, images, draws, ours = strong('google', GREY)
    some = np.array([5, 200, 3, 77, 76, 13, 14, 15])
    alone = view.apply(jax.tree.map(jnp.asarray, of_image(draws, some)), images[some])
    np.testing.assert_array_equal(alone, ours[some])


@pytest.mark.skipif(jax.device_count() < 2, reason='needs two devices')
def test_two_devices_equal_one():
    view, images, draws, ours = strong('google', COLOUR)
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ('data',), axis_types=axis_types, devices=jax.devices()[:2])
    split = jit(jax.shard_map(view.apply, mesh=mesh, in_specs=jax.P('data'), out_specs=jax.P('data')))
    np.testing.assert_array_equal(split(draws, images), ours)


def test_weak_crops_are_windows_of_the_reflected_image():
    view, images = Weak(flip=True, pad=3), photographs(OBLONG, 256)
    draws = jax.device_get(draw(view, jax.random.key(0), images.shape))
    ours = np.asarray(jax.jit(view.apply)(draws, images))
    assert ours.dtype == np.float32
    for i, image in enumerate(images):
        expected = numpy_weak(image, of_image(draws, i), pad=3)
        np.testing.assert_allclose(ours[i], expected / 255, atol=1e-6)
    for offset in draws['top'], draws['left']:
        assert sorted(set(offset.tolist())) == list(range(7))
    assert abs(draws['flip'].mean() - 0.5) < 0.12
    assert len({(int(top), int(left)) for top, left in zip(draws['top'], draws['left'], strict=True)}) > 45


def test_weak_without_flip_and_padding_is_the_image():
    view, images = Weak(flip=False, pad=0), photographs(GREY, 64)
    ours = jax.jit(view.apply)(draw(view, jax.random.key(0), images.shape), images)
    np.testing.assert_allclose(ours, images / 255, atol=1e-6)


# Draws.

MANY = 20_000


@functools.cache
def many(protocol):
    return jax.device_get(draw(Strong(protocol=protocol), jax.random.key(3), (MANY, *COLOUR)))


def assert_frequencies(values, expected):
    """Asserts that the values are those of {value: probability}, as frequent as that to five deviations."""
    values, counts = np.unique(values, return_counts=True)
    total = counts.sum()
    assert set(values.tolist()) == set(expected)
    for value, count in zip(values.tolist(), counts, strict=True):
        p = expected[value]
        assert abs(count / total - p) < 5 * (p * (1 - p) / total) ** 0.5, value


def assert_uniform(values, low, high):
    """Asserts that the values are uniform in [low, high), by the largest gap of the distribution function."""
    assert low <= values.min()
    assert values.max() < high
    expected = (np.sort(values) - low) / (high - low)
    gap = np.abs(expected - (np.arange(len(values)) + 0.5) / len(values)).max()
    assert gap < 2.2 / len(values) ** 0.5


def test_google_draws():
    draws = many('google')
    assert draws['op'].shape == (MANY, 2)
    one = 1 / 28
    probabilities = {i: one for i in range(14)} | {ops.OPS.index('Identity'): 0.5 + one}
    for slot in range(2):
        assert_frequencies(draws['op'][:, slot], probabilities)
    first, second = draws['op'].T
    none, one, both = 15 / 28 * 15 / 28, 15 / 28 * 13 / 28, 13 / 28 * 13 / 28
    assert_frequencies((first > 0) * 2 + (second > 0), {0: none, 1: one, 2: one, 3: both})
    assert_frequencies(draws['centre'], {float(i): 1 / 32 for i in range(32)})
    assert (draws['side'] == 16).all()


def google_magnitude(name, level):
    """Returns the magnitude in the official code's own words, for the positive sign."""
    scaled = {'Rotate': 30, 'TranslateX': 10, 'TranslateY': 10, 'Posterize': 4, 'Solarize': 256}
    if name in scaled:
        value = int(level * scaled[name] / 10)
        return {'Posterize': 4 - value, 'Solarize': 256 - value}.get(name, value)
    return level * 0.3 / 10 if name in ('ShearX', 'ShearY') else level * 1.8 / 10 + 0.1


@pytest.mark.parametrize('name', [n for n in ops.OPS if n not in ('Identity', 'AutoContrast', 'Equalize')])
def test_google_magnitudes(name):
    draws = many('google')
    expected: dict[float, float] = {}
    for level in range(1, 10):
        for sign in (-1, 1) if name in ops.GEOMETRY else (1,) * 2:
            magnitude = float(np.float32(sign * google_magnitude(name, level)))
            expected[magnitude] = expected.get(magnitude, 0) + 1 / 18
    assert_frequencies(draws['magnitude'][draws['op'] == ops.OPS.index(name)], expected)


def test_torchssl_draws():
    draws = many('torchssl')
    assert draws['op'].shape == (MANY, 3)
    for slot in range(3):
        assert_frequencies(draws['op'][:, slot], {i: 1 / 14 for i in range(14)})
    assert_uniform(draws['side'], 0, 16)
    for axis in range(2):
        assert_uniform(draws['centre'][:, axis], 0, 32)
    bounds = {
        'Rotate': (-30, 30),
        'ShearX': (-0.3, 0.3),
        'ShearY': (-0.3, 0.3),
        'TranslateX': (-9.6, 9.6),
        'TranslateY': (-9.6, 9.6),
        'Solarize': (0, 256),
        **dict.fromkeys(ENHANCEMENTS, (0.05, 0.95)),
    }
    for name, (low, high) in bounds.items():
        values = draws['magnitude'][draws['op'] == ops.OPS.index(name)]
        assert_uniform(values, np.float32(low), np.nextafter(np.float32(high), np.inf))
    bits = draws['magnitude'][draws['op'] == ops.OPS.index('Posterize')]
    assert_frequencies(bits, {4.0: 0.25, 5.0: 0.25, 6.0: 0.25, 7.0: 0.25})


@pytest.mark.parametrize('protocol', ['google', 'torchssl'])
def test_draws_depend_on_the_key_and_the_own_slot_only(protocol):
    def rows(draws):
        return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(draws)], axis=1)

    def few(seed):
        return rows(draw(Strong(protocol=protocol), jax.random.key(seed), (6, *COLOUR)))

    np.testing.assert_array_equal(few(3), rows(many(protocol))[:6])
    np.testing.assert_array_equal(few(3), few(3))
    assert (few(3) != few(4)).any(axis=1).all()
    assert len(np.unique(rows(many(protocol))[:500], axis=0)) == 500


def test_cutout_of_google_is_clipped_at_the_border():
    view = Strong(flip=False, pad=0, cutout=6, ops=('Identity',))
    images = np.full((64, 8, 10, 1), 255, np.uint8)
    draws = jax.device_get(draw(view, jax.random.key(0), images.shape))
    ours = np.asarray(jax.jit(view.apply)(draws, images))
    for result, (y, x) in zip(ours[..., 0], draws['centre'].astype(int), strict=True):
        expected = np.ones((8, 10), np.float32)
        expected[max(y - 3, 0) : y + 3, max(x - 3, 0) : x + 3] = 0.5
        np.testing.assert_array_equal(result, expected)


def test_small_images_restrict_the_pool_and_the_translation():
    view = Strong(pad=1, translate=2, cutout=4, ops=('TranslateX', 'Rotate'))
    draws = draw(view, jax.random.key(0), (500, 8, 8, 1))
    names = np.array(ops.OPS)[draws['op']]
    assert set(names.ravel()) == {'Identity', 'TranslateX', 'Rotate'}
    assert set(np.abs(draws['magnitude'])[names == 'TranslateX'].tolist()) == {0, 1}


# Mistakes.


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match="Did you mean 'torchssl'"):
        Strong(protocol='torchsl')
    with pytest.raises(UserError, match="Did you mean 'Equalize'"):
        Strong(ops=('Rotate', 'Equalise'))


def test_padding_must_be_smaller_than_the_image():
    key = jax.random.key(0)
    jax.eval_shape(lambda: Weak(pad=7).draw(key, (2, 8, 40, 3)))
    for view in Weak(pad=8), Strong(pad=8):
        with pytest.raises(UserError, match='pad=8'):
            view.draw(key, (2, 40, 8, 3))


def test_four_channels_are_an_error():
    view, images = Strong(), jnp.zeros((2, 16, 16, 4), jnp.uint8)
    with pytest.raises(ValueError, match='1 or 3 channels'):
        jax.eval_shape(lambda key: view.apply(view.draw(key, images.shape), images), jax.random.key(0))
