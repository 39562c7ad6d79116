"""The distorted view against PIL itself, as torchvision's transforms use it, and its draws' statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from test_augment import (
    COLOUR,
    GREY,
    OBLONG,
    assert_frequencies,
    assert_uniform,
    draw,
    jit,
    of_image,
    photographs,
    to_pil,
)

from data.augment import Distorted, pil, pixels
from errors import UserError

MANY = 20_000
FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
ENHANCE = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
EVERYTHING = {'jitter': 0.9, 'saturation': 0.5, 'hue': 0.5, 'blur': (0.5, 0.0), 'solarize': (0.5, 0.0)}


def planes(images):
    return jnp.moveaxis(jnp.asarray(images, jnp.int32), -1, 1)


def images_of(planes):
    return np.moveaxis(np.asarray(planes), 1, -1)


def pil_crop(image, box, interpolation):
    """The box (top, left, height, width) of an image, at the image's size."""
    top, left, height, width = map(int, box)
    return image.crop((left, top, left + width, top + height)).resize(image.size, FILTERS[interpolation])


def pil_hue(image, shift):
    """torchvision's: adds to the hue of 8 bits, which wraps around. Gray images stay as they are."""
    if image.mode == 'L':
        return image
    hue, saturation, value = image.convert('HSV').split()
    hue = Image.fromarray((np.asarray(hue, int) + int(shift)).astype(np.uint8))
    return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def pil_distorted(view, image, draws):
    """One image, uint8 [H, W, C], made by PIL with its draws."""
    shape = image.shape
    image = pil_crop(to_pil(image), draws['box'], view.interpolation)
    vertical, horizontal = draws['flip']
    image = ImageOps.mirror(image) if horizontal else image
    image = ImageOps.flip(image) if vertical else image
    if draws['jitter']:
        order = list(draws['order'])
        order.insert(int(draws['before']), 3)
        for which in order:
            if which == 3:
                image = pil_hue(image, draws['hue'])
            else:
                image = ENHANCE[which](image).enhance(float(draws['factors'][which]))
    image = image.convert('L').convert(image.mode) if draws['gray'] else image
    if draws['sigma'] > 0:
        image = image.filter(ImageFilter.GaussianBlur(float(draws['sigma'])))
    image = ImageOps.solarize(image, 128) if draws['solarize'] else image
    return np.asarray(image).reshape(shape)


# Operations.


@pytest.mark.parametrize('shape', [COLOUR, OBLONG, GREY, (8, 8, 1)], ids=['colour', 'oblong', 'grey', 'small'])
@pytest.mark.parametrize('interpolation', FILTERS)
def test_resized_crops_equal_pil(interpolation, shape):
    height, width, channels = shape
    images = photographs(shape, 200)
    rng = np.random.default_rng(0)
    sides = np.stack([rng.integers(1, height + 1, 200), rng.integers(1, width + 1, 200)], axis=1)
    sides[0] = height, width
    box = np.concatenate([rng.integers(0, np.array([height, width]) - sides + 1), sides], axis=1).astype(np.int32)
    words = pixels.pack(jnp.asarray(images))
    ours = jit(pil.resized_crop, static_argnums=(3, 4))(words, box, np.zeros((200, 2), bool), channels, interpolation)
    pils = [np.asarray(pil_crop(to_pil(x), b, interpolation)) for x, b in zip(images, box, strict=True)]
    np.testing.assert_array_equal(images_of(ours), np.reshape(pils, images.shape))


def test_hue_shifts_of_all_colours_equal_pil():
    """Of a fifth of all levels of each channel, and of those whose hue is an exact integer in theory."""
    levels = np.arange(0, 256, 5)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    exact = np.stack(np.meshgrid([0], np.arange(86), [85]), axis=-1).reshape(-1, 3)
    exact = np.concatenate([np.roll(exact[:, ::step], k, axis=1) for k in range(3) for step in (1, -1)])
    colours = np.concatenate([colours, exact, 3 * exact]).astype(np.uint8)
    colours = np.tile(colours, (2, 1))[: len(colours) // 64 * 64 + 64].reshape(1, 64, -1, 3)
    shift = jit(pil.shift_hue)
    for amount in (0, 3, -25, 127, -127):
        ours = images_of(shift(planes(colours), jnp.int32([amount])))[0]
        np.testing.assert_array_equal(ours, np.asarray(pil_hue(to_pil(colours[0]), amount)))


@pytest.mark.parametrize('shape', [COLOUR, OBLONG, (8, 8, 1)], ids=['colour', 'oblong', 'small'])
def test_gaussian_blurs_equal_pil(shape):
    images = photographs(shape, 200)
    sigma = np.random.default_rng(0).uniform(0.1, 2, 200).astype(np.float32)
    sigma[:3] = 0, 0.1, 2
    ours = images_of(jit(pil.gaussian_blur)(planes(images), sigma))
    pils = [
        np.asarray(to_pil(x).filter(ImageFilter.GaussianBlur(float(s)))) for x, s in zip(images, sigma, strict=True)
    ]
    difference = np.abs(ours - np.reshape(pils, images.shape).astype(int))
    assert difference.max() <= 1  # PIL's weights are float32, and the last bit of one depends on the compiler.
    assert np.mean(difference > 0) < 1e-4


# Whole views.


@functools.cache
def distorted(shape, interpolation):
    """Returns a view, images, their draws and the result."""
    view = Distorted(interpolation=interpolation, scale=(0.1, 1.0), vertical_flip=True, **EVERYTHING)
    images = photographs(shape, 256)
    draws = jax.device_get(draw(view, jax.random.key(1), images.shape))
    return view, images, draws, np.asarray(jit(view.apply)(draws, images))


@pytest.mark.parametrize('case', [(COLOUR, 'bilinear'), (COLOUR, 'bicubic'), (GREY, 'bilinear')], ids=str)
def test_the_distorted_view_equals_pil(case):
    view, images, draws, ours = distorted(*case)
    assert ours.dtype == np.float32
    for name in ('jitter', 'gray', 'solarize'):
        assert 0 < draws[name].mean() < 1
    pils = np.stack([pil_distorted(view, image, of_image(draws, i)) for i, image in enumerate(images)])
    different = np.abs(255 * ours - pils).max(axis=(1, 2, 3)) > 0.01
    assert different.mean() < 0.02  # the last bit of the blur
    assert np.abs(255 * ours - pils)[~different].max() < 1e-4


def test_without_any_distortion_it_is_the_image():
    nothing = {'flip': False, 'scale': (1.0, 1.0), 'jitter': 0.0, 'gray': 0.0}
    for shape in (GREY, COLOUR):
        view, images = Distorted(**nothing), photographs(shape, 16)
        draws = draw(view, jax.random.key(0), images.shape)
        full = (draws['box'][:, 2:] == jnp.asarray(shape[:2])).all(axis=1)
        draws['box'] = jnp.where(full[:, None], draws['box'], jnp.int32([0, 0, *shape[:2]]))
        np.testing.assert_allclose(jit(view.apply)(draws, images), images / 255, atol=1e-6)


# Draws.


@functools.cache
def many(number=1):
    view = Distorted(scale=(0.2, 0.5), blur=(0.6, 0.0), solarize=(0.0, 0.3), saturation=1.5)
    return jax.device_get(view.draw(jax.random.key(3), (MANY, *COLOUR), number))


def test_crops_have_areas_ratios_and_places_as_in_torchvision():
    box = many()['box'].astype(float)
    corner, sides = box[:, :2], box[:, 2:]
    assert corner.min() >= 0
    assert (corner + sides).max() <= 32
    area, ratio = sides.prod(1) / 32**2, np.log(sides[:, 1] / sides[:, 0]) / np.log(4 / 3)
    for part in (0.25, 0.5, 0.75):  # uniform, up to the rounding to whole pixels
        assert (area < 0.2 + 0.3 * part).mean() == pytest.approx(part, abs=0.02)
        assert (ratio < 2 * part - 1).mean() == pytest.approx(part, abs=0.06)
    assert ratio.mean() == pytest.approx(0, abs=0.02)
    room = 32 - sides
    place = (corner + 0.5) / (room + 1)
    assert place.mean(0) == pytest.approx([0.5, 0.5], abs=0.01)
    assert place.std(0) == pytest.approx(np.sqrt(1 / 12), abs=0.01)
    assert (corner == room).any()
    assert np.abs(np.corrcoef([area, ratio, *place.T]) - np.eye(4)).max() < 0.03


def test_a_crop_that_fits_nowhere_is_the_largest_part_of_the_image():
    def boxes(shape):
        return draw(Distorted(scale=(1.0, 1.0)), jax.random.key(0), (4, *shape, 1))['box']

    box = boxes((9, 30))
    assert (box[:, 2:] == jnp.int32([9, 12])).all()
    assert (boxes((30, 9))[:, 2:] == jnp.int32([12, 9])).all()
    assert len(set(box[:, 1].tolist())) > 1


def test_crops_that_do_not_fit_are_drawn_again():
    box = np.asarray(draw(Distorted(scale=(0.7, 1.0)), jax.random.key(0), (2000, *COLOUR))['box'])
    assert (box[:, :2] + box[:, 2:]).max() <= 32
    area = box[:, 2:].prod(1) / 32**2
    # A large crop fits only if its ratio is near 1. Ten attempts nearly always find one.
    assert 0.7 < area.mean() < 0.83
    assert 0 < (area == 1).mean() < 0.05


def test_jitter_has_the_factors_and_orders_of_torchvision():
    draws = many()
    on = draws['jitter']
    assert_frequencies(on, {True: 0.8, False: 0.2})
    assert (draws['factors'][~on] == 1).all()
    for i, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.0, 2.5)]):
        assert_uniform(draws['factors'][on, i], np.float32(low) - 1e-6, np.float32(high) + 1e-6)
    orders = np.concatenate([draws['order'], draws['before'][:, None]], axis=1) @ np.array([1000, 100, 10, 1])
    permutations = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    codes = [1000 * a + 100 * b + 10 * c + k for a, b, c in permutations for k in range(4)]
    assert_frequencies(orders, dict.fromkeys(codes, 1 / 24))
    # The integer part of 255 times a number from -0.1 to 0.1.
    hues = {k: 1 / 51 for k in range(-24, 25) if k} | {0: 2 / 51, -25: 0.5 / 51, 25: 0.5 / 51}
    assert_frequencies(draws['hue'], hues)


def test_the_views_of_an_image_have_their_own_probabilities():
    first, second, third = many(), many(2), many(3)
    assert_frequencies(first['sigma'] > 0, {True: 0.6, False: 0.4})
    assert_uniform(first['sigma'][first['sigma'] > 0], np.float32(0.1), np.float32(2) + 1e-6)
    assert not first['solarize'].any()
    for further in (second, third):
        assert not further['sigma'].any()
        assert_frequencies(further['solarize'], {True: 0.3, False: 0.7})
    for draws in (first, second):
        assert_frequencies(draws['gray'], {True: 0.2, False: 0.8})
        assert_frequencies(draws['flip'][:, 1], {True: 0.5, False: 0.5})
        assert not draws['flip'][:, 0].any()


def test_draws_are_independent():
    draws = jax.tree.map(lambda x: x[many()['jitter']], many())
    columns = [draws[k] for k in ('before', 'hue', 'gray', 'sigma')]
    columns += [draws['flip'][:, 1], *draws['factors'].T, draws['box'][:, 0]]
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 0.04


def test_draws_depend_on_the_key_and_the_own_slot_only():
    def rows(draws):
        return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(draws)], axis=1)

    def few(seed, count):
        return rows(draw(Distorted(blur=(1.0, 1.0)), jax.random.key(seed), (count, *COLOUR)))

    np.testing.assert_array_equal(few(3, 6), few(3, 500)[:6])
    assert (few(3, 6) != few(4, 6)).any(axis=1).all()
    assert len(np.unique(few(3, 500), axis=0)) == 500


# Mistakes.


@pytest.mark.parametrize(
    ('fields', 'text'),
    [
        ({'scale': (0.0, 1.0)}, 'scale must rise from above 0 to at most 1'),
        ({'scale': (0.5, 0.2)}, 'scale must rise'),
        ({'scale': (0.5,)}, 'scale needs two numbers'),
        ({'blur': (0.5,)}, 'blur needs two numbers'),
        ({'solarize': (0.0, 1.5)}, 'solarize must be from 0 to 1'),
        ({'hue': 0.6}, 'hue must be from 0 to 0.5'),
        ({'contrast': -1.0}, 'contrast must be at least 0'),
        ({'interpolation': 'bicubc'}, "Did you mean 'bicubic'"),
    ],
)
def test_mistakes_are_user_errors(fields, text):
    with pytest.raises(UserError, match=text):
        Distorted(**fields)
