"""Self-supervised losses and the rotated, flipped and cropped views, against NumPy, PIL and SciPy in float64."""

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import methods
from data.augment import Rotated, Strong, Weak
from errors import UserError
from methods import terms
from methods.base import DISTORTED, DISTORTED2, IMAGES, JOINT, LABELED_ROTATED, ROTATED, View

BOTH = (DISTORTED, DISTORTED2)  # both views of the methods with two
EPSILON = 1e-5  # of the batch norm in the methods' own networks


def close(actual, expected, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def double(tree):
    return jax.tree.map(lambda x: np.array(x, np.float64), tree)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cross_entropy(classes, logits):
    return np.array([np.log(np.exp(z).sum()) - z[y] for y, z in zip(classes, logits, strict=True)])


def unit(x):
    return x / np.sqrt((x**2).sum(1, keepdims=True))


def layers(params, name, x, count=2):
    """Dense layers, with batch norm and ReLU between them."""
    for i in range(1, count):
        hidden = x @ params[f'head_{name}{i}']['kernel']
        norm = params[f'head_{name}_norm{i}']
        std = np.sqrt(((hidden - hidden.mean(0)) ** 2).mean(0) + EPSILON)
        hidden = (hidden - hidden.mean(0)) / std * norm['scale'] + norm['bias']
        x = np.where(hidden > 0, hidden, 0)
    return x @ params[f'head_{name}{count}']['kernel'] + params[f'head_{name}{count}']['bias']


def gradient(method, inputs, which='params'):
    """The gradient of a method's loss in the parameters of the student or of the teacher."""

    def loss(params):
        changed = dataclasses.replace(inputs, **{which: params})
        if which == 'params':
            outputs = {view: fakes.network(params, inputs.images[view]) for view in method.views()}
            changed = dataclasses.replace(changed, outputs=outputs)
        return method.loss(changed, ()).loss

    return jax.jit(jax.grad(loss))(getattr(inputs, which))


def assert_gradients(actual, expected):
    for name in expected:
        for a, b in zip(jax.tree.leaves(actual[name]), jax.tree.leaves(expected[name]), strict=True):
            close(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max() + 1e-6)


def check(result, loss, metrics):
    assert set(result.metrics) == set(metrics)
    for name, value in metrics.items():
        close(result.metrics[name], value)
    close(result.loss, loss)
    assert result.state == ()
    assert result.pseudo_labels is None
    assert result.batch_stats is None


# Rotation


def rotated_views(copies, seed=0):
    """{view: its images, turned by NumPy}: all 4 copies of an image after one another, or one copy of each."""
    views = fakes.images(seed)
    for stream in ('labeled', 'unlabeled'):
        images = np.repeat(views[View(stream, 'weak')], copies, axis=0)
        views[View(stream, 'rotated')] = np.stack([np.rot90(image, j % 4) for j, image in enumerate(images)])
    return views


def rotation(params, images):
    """Mean cross-entropy of the number of turns, and how often it is found. Turns are counted from the image itself."""
    logits = fakes.network(params, np.float64(images))['rotation']
    turns = np.resize([0, 1, 2, 3], len(images))
    return cross_entropy(turns, logits).mean(), (logits.argmax(1) == turns).mean()


@pytest.mark.parametrize('copies', [1, 4])
@pytest.mark.parametrize('batch_norm', [JOINT, IMAGES])
@pytest.mark.parametrize('seed', [0, 1])
def test_rotation_is_the_cross_entropy_of_the_turns(copies, batch_norm, seed):
    method = methods.create('rotation', {'weight': 0.7, 'batch_norm': batch_norm})
    assert method.views() == {ROTATED: batch_norm}
    passes = []

    def forward(params, images, draw=''):
        passes.append(len(images))
        return fakes.forward(params, images)

    inputs = fakes.inputs(method, views=rotated_views(copies, seed), forward=forward)
    assert inputs.images[ROTATED].shape == (4 * copies, *fakes.IMAGE_SHAPE)
    loss, accuracy = rotation(double(inputs.params), inputs.images[ROTATED])
    check(fakes.loss(method, inputs, ()), 0.7 * loss, {'loss': loss, 'rotation_accuracy': accuracy})
    assert passes == ([] if batch_norm == JOINT else [4 * copies])


def test_a_head_that_knows_the_turns_is_always_right():
    """Of images bright on top only, seen by a network that looks at the four sides."""
    views = fakes.images()
    bright = np.zeros((4, *fakes.IMAGE_SHAPE), np.float32)
    bright[:, 0] = 9
    views[ROTATED] = np.stack([np.rot90(bright[j // 4], j % 4) for j in range(16)])
    method = methods.create('rotation', {})
    inputs = fakes.inputs(method, views=views)
    sides = np.zeros((*fakes.IMAGE_SHAPE, 4), np.float32)
    sides[0, 1:3, 0, 0] = sides[1:3, 0, 0, 1] = sides[-1, 1:3, 0, 2] = sides[1:3, -1, 0, 3] = 1
    outputs = fakes.network({'rotation': sides.reshape(16, 4)}, inputs.images[ROTATED])
    result = fakes.loss(method, dataclasses.replace(inputs, outputs={ROTATED: outputs}), ())
    assert result.metrics['rotation_accuracy'] == 1
    assert result.loss < 1e-6


def s4l(params, views, labels, all_copies, copies):
    losses, accuracies = zip(
        *(rotation(params, views[View(s, 'rotated')]) for s in ('labeled', 'unlabeled')), strict=True
    )
    logits = fakes.network(params, np.float64(views[LABELED_ROTATED]))['logits']
    counted = [j for j in range(len(logits)) if all_copies or j % 4 == 0]
    classes = [labels[j // copies] for j in counted]
    labeled = cross_entropy(classes, logits[counted]).mean()
    accuracy = (logits[counted].argmax(1) == classes).mean()
    return labeled, np.mean(losses), {'accuracy': accuracy, 'rotation_accuracy': np.mean(accuracies)}


@pytest.mark.parametrize('copies', [1, 4])
@pytest.mark.parametrize('all_copies', [True, False])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_s4l_classifies_the_labeled_and_turns_both_streams(copies, all_copies, seed):
    method = methods.create('s4l', {'weight': 0.6, 'all_copies': all_copies})
    assert method.rotation_averaged == all_copies
    inputs = fakes.inputs(method, views=rotated_views(copies, seed), labels=jnp.int32([2, 0]))
    labeled, turned, metrics = s4l(double(inputs.params), inputs.images, [2, 0], all_copies, copies)
    check(fakes.loss(method, inputs, ()), labeled + 0.6 * turned, {'loss': turned, 'loss_labeled': labeled, **metrics})


@pytest.mark.parametrize('all_copies', [True, False])
def test_s4l_gradient(all_copies):
    method = methods.create('s4l', {'weight': 0.6, 'all_copies': all_copies})
    inputs = fakes.inputs(method, views=rotated_views(4))

    def loss(params):
        labeled, turned, _ = s4l(params, inputs.images, np.array(inputs.labels), all_copies, 4)
        return labeled + 0.6 * turned

    assert_gradients(gradient(method, inputs), fakes.numeric(loss, double(inputs.params)))


# Views


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


WEAK = [{'pad': 2}, {'pad': 0, 'flip': False}, {'pad': 1, 'vertical_flip': True}, {'min_area': 0.3}]


@functools.partial(jax.jit, static_argnums=0)
def draw_and_apply(view, key, images):
    draws = view.draw(key, images.shape)
    return draws, view.apply(draws, images)


def rotated(view, images, key=0):
    """The draws of the weak part of a rotated view, one after the other, and its images."""
    draws, turned = draw_and_apply(view, jax.random.key(key), images)
    return {name: np.reshape(x, (-1, *x.shape[2:])) for name, x in draws['weak'].items()}, np.asarray(turned)


def weakly(fields, draws, images):
    return np.asarray(jax.jit(Weak(**fields).apply)(draws, images))


@pytest.mark.parametrize('fields', WEAK)
@pytest.mark.parametrize('copies', [1, 4])
def test_the_rotation_comes_last(fields, copies):
    images, view = pixels(6, 8, 8, 3), Rotated(**fields, last=True, copies=copies)
    weak, turned = rotated(view, images)
    assert all(len(x) == 6 for x in weak.values())  # one draw for all copies
    upright = weakly(fields, weak, images)
    expected = [np.rot90(upright[j // copies], j % 4) for j in range(6 * copies)]
    close(turned, np.stack(expected), rtol=1e-6)
    assert turned.dtype == np.float32


@pytest.mark.parametrize('fields', WEAK)
@pytest.mark.parametrize('copies', [1, 4])
def test_or_the_rotation_comes_first(fields, copies):
    images, view = pixels(6, 8, 8, 1), Rotated(**fields, last=False, copies=copies)
    weak, turned = rotated(view, images)
    assert all(len(x) == 6 * copies for x in weak.values())  # every copy has a draw of its own
    before = np.stack([np.rot90(images[j // copies], j % 4) for j in range(6 * copies)])
    close(turned, weakly(fields, weak, before), rtol=1e-6)


@pytest.mark.parametrize('last', [True, False])
def test_without_other_augmentation_both_are_the_turned_image(last):
    images = pixels(5, 6, 6, 3)
    for copies in (1, 4):
        _, turned = rotated(Rotated(flip=False, pad=0, last=last, copies=copies), images)
        expected = np.stack([np.rot90(images[j // copies], j % 4) for j in range(5 * copies)])
        close(turned, expected / 255, rtol=1e-6)
    # Counterclockwise: what is on the right comes to the top.
    corner = np.zeros((2, 4, 4, 1), np.uint8)
    corner[:, 0, -1] = 255
    _, turned = rotated(Rotated(flip=False, pad=0, last=last, copies=1), corner)
    assert turned[1, 0, 0] == 1


def test_copies_are_augmented_alike_only_where_the_rotation_is_last():
    images = pixels(40, 8, 8, 1)

    def undone(last):
        _, turned = rotated(Rotated(pad=2, flip=False, last=last), images)
        return np.stack([np.rot90(image, -j % 4) for j, image in enumerate(turned)]).reshape(40, 4, 8, 8)

    assert (undone(True) == undone(True)[:, :1]).all()
    alike = (undone(False) == undone(False)[:, :1]).all(axis=(2, 3)).all(axis=1)
    assert alike.mean() < 0.2


def test_other_keys_draw_other_views_and_the_same_key_the_same():
    images, view = pixels(8, 8, 8, 1), Rotated()
    (_, a), (_, b), (_, c) = (rotated(view, images, key) for key in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)


def test_oblong_images_cannot_be_turned():
    with pytest.raises(UserError, match='Only square images can be turned by 90 degrees, not 8 x 12 pixels'):
        Rotated().draw(jax.random.key(0), (2, 8, 12, 1))


def window(image, top, left, pad):
    """The crop of a reflected image."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode='reflect')
    return padded[top : top + height, left : left + width]


@pytest.mark.parametrize('shape', [(6, 10), (8, 8)])
def test_vertical_flip_mirrors_top_and_bottom_of_half_of_the_images(shape):
    images = pixels(400, *shape, 1)
    view = Weak(pad=2, vertical_flip=True)
    draws, result = draw_and_apply(view, jax.random.key(0), images)
    draws = {name: np.asarray(x) for name, x in draws.items()}
    # Without it the same draws: a run that mirrors sees the same crops.
    usual = Weak(pad=2).draw(jax.random.key(0), images.shape)
    assert set(usual) == {'flip', 'top', 'left'}
    for name, x in usual.items():
        np.testing.assert_array_equal(draws[name], x)
    for i, image in enumerate(images):
        image = image[:, ::-1] if draws['flip'][i] else image
        image = image[::-1] if draws['vertical_flip'][i] else image
        close(result[i], np.float64(window(image, draws['top'][i], draws['left'][i], pad=2)) / 255, rtol=1e-6)
    both = np.array([draws['flip'], draws['vertical_flip']])
    assert np.abs(both.mean(1) - 0.5).max() < 0.08
    assert abs(np.corrcoef(both)[0, 1]) < 0.15


def bilinear(image, box):
    """The box (top, left, height, width) of an image brought to its size, by SciPy: pixel centres at halves."""
    height, width = image.shape[:2]
    y = box[0] + (np.arange(height) + 0.5) * box[2] / height - 0.5
    x = box[1] + (np.arange(width) + 0.5) * box[3] / width - 0.5
    planes = [
        ndimage.map_coordinates(np.float64(image[..., c]), np.meshgrid(y, x, indexing='ij'), order=1, mode='nearest')
        for c in range(image.shape[-1])
    ]
    return np.stack(planes, axis=-1)


def smooth(n, height, width):
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(y / 3 + i) * np.cos(x / 4 - i / 2) for i in range(n)]
    return np.round(waves).astype(np.uint8)[..., None]


@pytest.mark.parametrize('images', [smooth(12, 16, 16), pixels(12, 9, 14, 3), pixels(12, 8, 8, 1)])
def test_min_area_crops_are_bilinear(images):
    _, height, width, channels = images.shape
    view = Weak(flip=True, vertical_flip=True, min_area=0.2)
    draws, result = draw_and_apply(view, jax.random.key(3), images)
    moved = np.asarray(jax.jit(view.move)(draws, images))
    assert moved.dtype == np.uint8
    close(result, moved / 255)
    for i, image in enumerate(images):
        box = np.float64(draws['box'][i])
        crop = np.float64(moved[i])
        crop = crop[:, ::-1] if draws['flip'][i] else crop
        crop = crop[::-1] if draws['vertical_flip'][i] else crop
        assert np.abs(crop - bilinear(image, box)).max() <= 0.51  # rounded to the nearest
        for c in range(channels):
            corners = (box[1], box[0], min(box[1] + box[3], width), min(box[0] + box[2], height))
            pil = Image.fromarray(image[..., c]).resize((width, height), Image.Resampling.BILINEAR, corners)
            assert np.abs(crop[..., c] - np.asarray(pil)).max() <= 1
    assert np.asarray(draws['flip']).any()
    assert np.asarray(draws['vertical_flip']).any()


@pytest.mark.parametrize('min_area', [0.08, 0.25])
def test_crops_have_the_areas_and_proportions_of_the_paper(min_area):
    size, n = 32, 4000
    box = np.float64(Weak(min_area=min_area).draw(jax.random.key(0), (n, size, size, 3))['box'])
    corner, sides = box[:, :2], box[:, 2:]
    assert corner.min() >= 0
    assert (corner + sides).max() <= size + 1e-4
    area, ratio = sides.prod(1) / size**2, np.log(sides[:, 0] / sides[:, 1])
    assert area.min() >= min_area - 1e-5
    assert area.max() <= 1 + 1e-5
    assert np.abs(ratio).max() <= np.log(4 / 3) + 1e-5
    # Uniform, as far as no side is too long for it: below 3/4 of the area.
    for share in (0.3, 0.5, 0.7):
        assert (area < share).mean() == pytest.approx((share - min_area) / (1 - min_area), abs=0.03)
    small = area < 0.75
    assert (np.abs(ratio[small]) < np.log(4 / 3) / 2).mean() == pytest.approx(0.5, abs=0.04)
    assert ratio[small].mean() == pytest.approx(0, abs=0.02)
    place = corner[small] / (size - sides[small])
    assert place.mean(0) == pytest.approx([0.5, 0.5], abs=0.03)
    assert place.std(0) == pytest.approx(np.sqrt(1 / 12), abs=0.02)
    assert np.abs(np.corrcoef([area[small], ratio[small], *place.T]) - np.eye(4)).max() < 0.06


def test_the_whole_image_is_the_crop_of_all_its_area():
    images = pixels(3, 8, 8, 1)
    view = Weak(flip=False, min_area=0.5)
    draws = view.draw(jax.random.key(0), images.shape)
    draws['box'] = jnp.tile(jnp.float32([0, 0, 8, 8]), (3, 1))
    np.testing.assert_array_equal(view.move(draws, jnp.asarray(images)), images)


@pytest.mark.parametrize('fields', WEAK[2:])
def test_the_strong_view_without_operations_is_the_weak_one(fields):
    images = pixels(5, 8, 8, 3)
    view = Strong(**fields, ops=('Identity',), cutout=0)
    draws, result = draw_and_apply(view, jax.random.key(0), images)
    close(result, weakly(fields, draws['weak'], images), rtol=1e-6)


# Two views of an image


OWN = {
    'simclr': {'hidden': 7, 'width': 4},
    'simsiam': {'hidden': 7, 'width': 4, 'predictor': 6},
    'byol': {'hidden': 7, 'width': 4},
    'barlow_twins': {'hidden': 7, 'width': 4},
    'vicreg': {'hidden': 7, 'width': 4},
}


def features(params, images):
    return np.concatenate([fakes.network(params, np.float64(images[view]))['features'] for view in BOTH])


def spread(z):
    z = unit(z)
    values = np.linalg.eigvalsh(np.cov(z, rowvar=False, ddof=0))
    std = np.sqrt(((z - z.mean(0)) ** 2).mean(0))
    return {
        'embedding_std': std.mean() * np.sqrt(z.shape[1]),
        'effective_rank': values.sum() ** 2 / (values**2).sum(),
    }


def simclr(student, constant, teacher, images, temperature=0.5):
    """Equation 1: for each of the 2n projections -log of its partner's share of the sum over all but itself."""
    del constant, teacher
    projections = layers(student, 'projection', features(student, images))
    z, n = unit(projections), 4
    losses, right = [], []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = {k: np.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i}
        losses.append(-np.log(others[partner] / sum(others.values())))
        right.append(max(others, key=others.get) == partner)
    return np.mean(losses), {'pair_accuracy': np.mean(right), **spread(projections)}


def simsiam(student, constant, teacher, images):
    """Equations 1 to 4: D(p1, z2) / 2 + D(p2, z1) / 2, averaged over images; z is a constant."""
    del teacher
    z = layers(student, 'projection', features(student, images))
    p1, p2 = np.split(layers(student, 'predictor', z), 2)
    z1, z2 = np.split(layers(constant, 'projection', features(constant, images)), 2)

    def distance(p, z):
        return -np.mean([a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for a, b in zip(p, z, strict=True)])

    return distance(p1, z2) / 2 + distance(p2, z1) / 2, spread(z)


def byol(student, constant, teacher, images):
    """Equation 2 in both directions: 2 - 2 cos of the prediction and the teacher's projection of the other view."""
    del constant
    z = layers(student, 'projection', features(student, images))
    p1, p2 = np.split(layers(student, 'predictor', z), 2)
    t1, t2 = np.split(layers(teacher, 'projection', features(teacher, images)), 2)
    pairs = [*zip(p1, t2, strict=True), *zip(p2, t1, strict=True)]
    return np.mean([2 - 2 * p @ t / np.sqrt(p @ p) / np.sqrt(t @ t) for p, t in pairs]), spread(z)


def projections(student, images):
    """Each view's own pass through three layers."""
    return [layers(student, 'projection', view, 3) for view in np.split(features(student, images), 2)]


def barlow_twins(student, constant, teacher, images, off_diagonal=0.0051):
    """Equation 1, with the correlation matrix of the official code: batch norm, then a mean of products."""
    del constant, teacher
    n, (z1, z2) = 4, projections(student, images)
    loss, diagonal = 0, []
    for i in range(z1.shape[1]):
        for j in range(z2.shape[1]):
            a, b = z1[:, i] - z1[:, i].mean(), z2[:, j] - z2[:, j].mean()
            c = sum(a * b) / n / np.sqrt(sum(a**2) / n + EPSILON) / np.sqrt(sum(b**2) / n + EPSILON)
            loss += (1 - c) ** 2 if i == j else off_diagonal * c**2
            if i == j:
                diagonal.append(c)
    return loss, {'correlation': np.mean(diagonal), **spread(np.concatenate([z1, z2]))}


def vicreg(student, constant, teacher, images, weights=(25, 25, 1)):
    """Equations 1 to 6 with the means of the official code: s over images and dimensions, v over both views."""
    del constant, teacher
    n, views = 4, projections(student, images)
    width = views[0].shape[1]
    s = np.mean([(a - b) ** 2 for a, b in zip(views[0].ravel(), views[1].ravel(), strict=True)])
    v = c = 0
    for z in views:
        centred = [column - column.mean() for column in z.T]
        v += sum(max(0, 1 - np.sqrt(sum(d**2) / (n - 1) + 1e-4)) for d in centred) / width / 2
        c += sum((sum(centred[i] * centred[j]) / (n - 1)) ** 2 for i, j in np.ndindex(width, width) if i != j) / width
    loss = weights[0] * s + weights[1] * v + weights[2] * c
    return loss, {'invariance': s, 'variance': v, 'covariance': c, **spread(np.concatenate(views))}


EQUATIONS = {'simclr': simclr, 'simsiam': simsiam, 'byol': byol, 'barlow_twins': barlow_twins, 'vicreg': vicreg}


def make(name, **fields):
    method = methods.create(name, {'weight': 1.3, **OWN[name], **fields})
    assert method.views() == dict.fromkeys(BOTH, JOINT)
    return method


@pytest.mark.parametrize('name', OWN)
@pytest.mark.parametrize('seed', [0, 1])
def test_two_views_against_the_equation(name, seed):
    method = make(name)
    inputs = fakes.inputs(method, seed=seed)
    student, teacher = double(inputs.params), double(inputs.ema_params)
    loss, metrics = EQUATIONS[name](student, student, teacher, inputs.images)
    check(fakes.loss(method, inputs, ()), 1.3 * loss, {'loss': loss, **metrics})


@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_simclr_divides_similarities_by_its_temperature(temperature):
    method = make('simclr', temperature=temperature)
    inputs = fakes.inputs(method)
    loss, _ = simclr(double(inputs.params), None, None, inputs.images, temperature)
    close(fakes.loss(method, inputs, ()).metrics['loss'], loss)


def test_weights_of_the_terms():
    method = make('barlow_twins', off_diagonal=0.7)
    inputs = fakes.inputs(method)
    student = double(inputs.params)
    close(fakes.loss(method, inputs, ()).metrics['loss'], barlow_twins(student, None, None, inputs.images, 0.7)[0])
    method = make('vicreg', invariance=3.0, variance=2.0, covariance=5.0)
    close(fakes.loss(method, inputs, ()).metrics['loss'], vicreg(student, None, None, inputs.images, (3, 2, 5))[0])


@pytest.mark.parametrize('name', OWN)
def test_gradients_stop_where_the_paper_says(name):
    """Against differences of the equation with constant targets; the teacher has no gradient."""
    method = make(name)
    inputs = fakes.inputs(method)
    student, constant, teacher = (double(p) for p in (inputs.params, inputs.params, inputs.ema_params))
    slopes = fakes.numeric(lambda p: 1.3 * EQUATIONS[name](p, constant, teacher, inputs.images)[0], student)
    assert np.abs(slopes['features']).max() > 1e-3
    assert_gradients(gradient(method, inputs), slopes)
    assert all(not np.any(g) for g in jax.tree.leaves(gradient(method, inputs, 'ema_params')))


@pytest.mark.parametrize('name', OWN)
def test_without_its_stopped_gradients_the_student_would_learn_something_else(name):
    """That the test above can tell: the equation with moving targets has another gradient, but for SimCLR's."""
    method = make(name)
    inputs = fakes.inputs(method)
    constant, teacher = double(inputs.params), double(inputs.ema_params)
    stopped = fakes.numeric(lambda p: EQUATIONS[name](p, constant, teacher, inputs.images)[0], double(inputs.params))
    moving = fakes.numeric(lambda p: EQUATIONS[name](p, p, teacher, inputs.images)[0], double(inputs.params))
    difference = np.abs(stopped['features'] - moving['features']).max()
    assert (difference > 1e-3) == (name == 'simsiam')


def test_byols_teacher_sees_both_views_in_one_batch():
    method, seen = make('byol'), []

    def forward(params, images, draw=''):
        seen.append(images)
        return fakes.forward(params, images)

    inputs = fakes.inputs(method, forward=forward)
    method.loss(inputs, ())
    (images,) = seen
    np.testing.assert_array_equal(images, np.concatenate([inputs.images[view] for view in BOTH]))


def test_the_least_and_the_largest_losses():
    """Views that agree in everything, where predictor and teacher do nothing, and views that disagree."""

    def value(name, z, sign=1.0):
        method = make(name)
        inputs = fakes.inputs(method)
        parts = np.split(np.float32(z), 2)
        outputs = {view: {'features': jnp.asarray(part)} for view, part in zip(BOTH, parts, strict=True)}

        def run(params, network, x):
            return sign * x if network == 'predictor' else x

        def forward(params, images, draw=''):
            return {'features': jnp.float32(z)}, {}

        inputs = dataclasses.replace(inputs, outputs=outputs, mlp=run, forward=forward)
        return fakes.loss(method, inputs, ()).metrics['loss']

    same = np.concatenate([np.eye(4), np.eye(4)])
    assert value('simsiam', same) == pytest.approx(-1)
    assert value('simsiam', same, -1.0) == pytest.approx(1)
    assert value('byol', same) == pytest.approx(0, abs=1e-6)
    assert value('byol', same, -1.0) == pytest.approx(4)
    # Dimensions of mean 1/4, variance 3/16 and covariance -1/16; the unbiased ones are 4/3 as large.
    rest = 12 * (1 / 3) ** 2
    assert value('barlow_twins', same) == pytest.approx(0.0051 * rest, rel=1e-3)
    spread = 1 - np.sqrt(1 / 4 + 1e-4)
    assert value('vicreg', same) == pytest.approx(25 * spread + 2 * 12 / 12**2 / 4, rel=1e-5)
    # All alike: nothing correlates, nothing varies.
    assert value('barlow_twins', np.ones((8, 4))) == pytest.approx(4)
    assert value('vicreg', np.ones((8, 4))) == pytest.approx(25 * (1 - 0.01))
    # One of 7 is alike, the others are at right angles.
    assert value('simclr', same) == pytest.approx(-np.log(np.exp(2) / (np.exp(2) + 6)), rel=1e-5)
    assert value('simclr', np.ones((8, 4))) == pytest.approx(np.log(7), rel=1e-5)


@pytest.mark.parametrize('name', ['rotation', *OWN])
def test_no_label_and_no_labeled_image_is_needed(name):
    method = make(name) if name in OWN else methods.create(name, {})
    assert all(view.stream == 'unlabeled' for view in method.views())
    inputs = fakes.inputs(method)
    alone = dataclasses.replace(
        inputs,
        labels=None,
        indices={'unlabeled': inputs.indices['unlabeled']},
        images={view: inputs.images[view] for view in method.views()},
        outputs={view: inputs.outputs[view] for view in method.views()},
    )
    for a, b in zip(
        jax.tree.leaves(fakes.loss(method, alone, ())), jax.tree.leaves(fakes.loss(method, inputs, ())), strict=True
    ):
        np.testing.assert_array_equal(a, b)


# Collapse


def test_spread_of_embeddings_that_are_all_the_same_is_zero():
    metrics = terms.spread(jnp.tile(jnp.float32([[3.0, -1.0, 2.0]]), (10, 1)))
    assert metrics['embedding_std'] == pytest.approx(0, abs=1e-4)
    assert np.isfinite(metrics['effective_rank'])
    assert metrics['effective_rank'] <= 1


@pytest.mark.parametrize('width', [4, 32])
def test_spread_of_random_embeddings_is_one_in_all_directions(width):
    z = random(4000, width)
    metrics = terms.spread(jnp.asarray(z))
    assert metrics['embedding_std'] == pytest.approx(1, abs=0.02)
    assert metrics['effective_rank'] == pytest.approx(width, rel=0.03)
    for shifted in (z, z + 1):  # around any centre
        for name, value in spread(np.float64(shifted)).items():
            close(terms.spread(jnp.asarray(shifted))[name], value)
    # Lengths do not count.
    scaled = terms.spread(jnp.asarray(z * np.exp(random(4000, 1, seed=1))))
    jax.tree.map(close, scaled, metrics)


def test_spread_of_embeddings_along_a_line_has_rank_one():
    line = np.outer(np.linspace(-1, 1, 50), [1.0, 2.0, -3.0, 0.5])
    assert terms.spread(jnp.float32(line))['effective_rank'] == pytest.approx(1, abs=1e-4)
    near = np.float32([5, 5, 5, 5]) + 0.05 * line  # far from the origin, where the sphere is flat
    assert terms.spread(jnp.float32(near))['effective_rank'] == pytest.approx(1, abs=0.02)
    plane = random(2000, 2) @ random(2, 16, seed=1)
    assert 1.5 < terms.spread(jnp.asarray(plane))['effective_rank'] <= 2.001


def test_spread_gives_no_gradient():
    assert not jax.grad(lambda z: sum(terms.spread(z).values()))(random(6, 4)).any()
