"""Reading data sets, label splits and their manifests, and the index sampler."""

import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import datasets, sampler, splits
from data.builders import idx
from errors import UserError


@pytest.fixture
def data_dir(tmp_path):
    return str(tmp_path / 'data')


def prepare(data_dir: str, labels=(3, 1, -1, 2)) -> np.ndarray:
    """Prepares a `mnist` with the splits train, test and unlabelled, returns its images."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28, 1), np.uint8)
    content = {split: (images, np.array(labels)) for split in ('train', 'test', 'unlabelled')}
    datasets.write(idx.from_arrays('mnist', content, data_dir))
    return images


def decoded(data_dir: str) -> list[pathlib.Path]:
    return sorted(pathlib.Path(data_dir).glob('mnist/*/decoded-*'))


# --- data sets


@pytest.mark.parametrize(
    ('name', 'split', 'shape'),
    [
        ('cifar10', 'train', (32, 32, 3)),
        ('cifar100', 'test', (32, 32, 3)),
        ('svhn_cropped', 'train+extra', (32, 32, 3)),
        ('stl10', 'unlabelled', (96, 96, 3)),
        ('kmnist', 'test', (28, 28, 1)),
    ],
)
def test_tfds_data_sets(name, split, shape, data_dir):
    with tfds.testing.mock_data(num_examples=6):
        arrays = datasets.load(name, split, data_dir)
    assert arrays.images.shape == (6, *shape)
    assert (arrays.images.dtype, arrays.labels.dtype) == (np.uint8, np.int32)
    assert len(arrays.class_names) == arrays.num_classes == (100 if name == 'cifar100' else 10)
    assert len(np.unique(arrays.images.reshape(6, -1), axis=0)) == 6


def test_images_stay_with_their_labels_also_without_one(data_dir):
    images = prepare(data_dir)
    for split, copies in (('train', 1), ('unlabelled', 1), ('train+unlabelled', 2)):
        arrays = datasets.load('mnist', split, data_dir)
        assert len(arrays.labels) == 4 * copies
        actual = {(x.tobytes(), int(y)) for x, y in zip(arrays.images, arrays.labels, strict=True)}
        assert actual == {(x.tobytes(), y) for x, y in zip(images, (3, 1, -1, 2), strict=True)}


def test_decoded_copy_is_used_and_renewed(data_dir):
    prepare(data_dir)
    first = datasets.load('mnist', 'train', data_dir)
    (copy,) = decoded(data_dir)
    np.savez(copy, images=first.images, labels=first.labels + 1, files=[''])
    assert np.array_equal(datasets.load('mnist', 'train', data_dir).labels, first.labels + 1)
    copy.write_bytes(copy.read_bytes()[:100])
    assert np.array_equal(datasets.load('mnist', 'train', data_dir).labels, first.labels)
    datasets.load('mnist', 'test', data_dir)
    records = next(copy.parent.glob('mnist-train.*'))
    os.utime(records, ns=(0, 0))
    assert np.array_equal(datasets.load('mnist', 'train', data_dir).images, first.images)
    names = [path.name.split('-')[1] for path in decoded(data_dir)]
    assert names == ['test', 'train']
    assert copy not in decoded(data_dir)


def test_data_folder_may_be_read_only(data_dir, monkeypatch):
    images = prepare(data_dir)

    def refused(*_, **__):
        raise PermissionError

    monkeypatch.setattr(np, 'savez', refused)
    assert len(datasets.load('mnist', 'train', data_dir).images) == len(images)
    assert not decoded(data_dir)


def test_default_data_dir(data_dir, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', data_dir)
    assert datasets.find('mnist').data_dir.startswith(data_dir)
    monkeypatch.delenv('TFDS_DATA_DIR')
    assert datasets.find('mnist').data_dir.startswith(os.path.expanduser('~/tensorflow_datasets'))


def test_loading_errors_say_what_to_do(data_dir):
    def error(name, split='train'):
        with pytest.raises(UserError) as caught:
            datasets.load(name, split, data_dir)
        assert '\n' not in str(caught.value)
        return str(caught.value)

    assert f'python -m data.prepare cifar10 --data_dir={data_dir}' in error('cifar10')
    assert '--from=' in error('cifar10')
    assert 'TensorFlow' in error('cifar10')
    assert "Unknown data set 'cifar'. Did you mean 'cifar10'? Valid: cifar10, cifar100" in error('cifar')
    assert 'Unknown data set' in error('no such/thing:at all')
    assert 'equally large' in error('imagenet2012')
    prepare(data_dir)
    assert "Unknown split 'tset'. Should be one of ['train'" in error('mnist', 'train+tset')
    folder = pathlib.Path(data_dir, 'mnist/3.0.1')
    for file in folder.glob('mnist-train.*'):
        file.write_bytes(file.read_bytes()[:1000])
    assert f"Cannot read 'train' of {folder}" in error('mnist')
    info = folder / 'dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    assert 'not in the array_record format' in error('mnist')
    info.unlink()
    assert 'dataset_info.json' in error('mnist')


# --- label splits

LABELS = np.repeat([0, 1, 2, 3, -1], [60, 30, 20, 10, 15])[np.arange(135) * 37 % 135]


def draw(num_labeled=8, protocol='balanced', seed=0, validation=0, labels=LABELS):
    return splits.draw(labels, num_labeled, 4, protocol, seed, validation)


def test_balanced():
    split = draw(8)
    assert np.bincount(LABELS[split.labeled]).tolist() == [2, 2, 2, 2]
    assert np.array_equal(split.unlabeled, np.arange(135))
    assert len(split.validation) == 0
    assert split.labeled.dtype == split.unlabeled.dtype == split.validation.dtype == np.int64


@pytest.mark.parametrize('total', [0, 1, 7, 12, 40, 119, 120])
def test_proportional_follows_the_greedy_rule_of_fixmatch(total):
    have, taken = [60, 30, 20, 10], [0, 0, 0, 0]
    for _ in range(total):
        most = max(*taken, 1)
        lack = [h / 60 - t / most if t < h else -9 for h, t in zip(have, taken, strict=True)]
        taken[lack.index(max(lack))] += 1
    split = draw(total, 'proportional')
    assert np.bincount(LABELS[split.labeled], minlength=4).tolist() == taken
    if total >= 40:
        assert max(abs(t - h * total / 120) for t, h in zip(taken, have, strict=True)) <= 1


def test_validation_changes_no_label_and_is_apart():
    split = draw(8, validation=24)
    assert np.array_equal(split.labeled, draw(8).labeled)
    assert len(split.validation) == 24
    assert np.array_equal(np.sort(np.r_[split.unlabeled, split.validation]), np.arange(135))
    assert set(split.labeled) <= set(split.unlabeled)
    have = np.bincount(LABELS[split.validation], minlength=4)
    assert np.abs(have - 24 * np.array([58, 28, 18, 8]) / 112).max() <= 1
    # A larger set of labels contains a smaller one.
    assert set(split.labeled) < set(draw(16).labeled)


def test_all_or_no_labels():
    split = draw(splits.ALL, validation=12)
    assert len(split.labeled) == 108
    assert not set(split.labeled) & set(split.validation)
    assert (LABELS[split.labeled] >= 0).all()
    assert len(draw(0, validation=12).labeled) == 0
    assert np.array_equal(draw(0, validation=12).validation, split.validation)


def test_splits_depend_on_the_seed_only():
    assert np.array_equal(draw(8, seed=5).labeled, draw(8, seed=5).labeled)
    assert not np.array_equal(draw(8, seed=5).labeled, draw(8, seed=6).labeled)
    # Golden: if this fails, numpy or our code draws other labels than in published runs. Find out why, do not
    # update it.
    assert draw(8, validation=4).labeled.tolist() == [3, 5, 35, 94, 97, 98, 107, 112]
    assert draw(8, validation=4).validation.tolist() == [39, 65, 70, 133]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ((6,), '6 labels cannot be shared equally by 4 classes: use a multiple'),
        ((48,), '48 balanced labels need 12 of class 3, which has 10'),
        ((121, 'proportional'), '121 labels were asked for, but only 120'),
        ((8, 'balanced', 0, 113), '113 validation examples were asked for, but only 112'),
        ((-2,), '-1 for all'),
        ((8, 'balanced', 0, -1), '-1 for validation'),
        ((8, 'ballanced'), "Did you mean 'balanced'?"),
    ],
)
def test_impossible_splits(args, message):
    with pytest.raises(UserError, match=message):
        draw(*args)


# --- manifests

IMAGES = np.random.default_rng(1).integers(0, 256, (135, 4, 4, 1), np.uint8)


def save(path, **changes) -> str:
    manifest = splits.to_manifest(draw(8, validation=4), 'toy', LABELS, IMAGES, 'balanced', 0)
    path.write_text(json.dumps({**manifest, **changes}))
    return str(path)


def test_manifest_round_trip(tmp_path):
    path = save(tmp_path / 'labels.json')
    read, drawn = splits.from_manifest(path, 'toy', LABELS, IMAGES), draw(8, validation=4)
    for part in ('labeled', 'unlabeled', 'validation'):
        assert np.array_equal(getattr(read, part), getattr(drawn, part))
        assert getattr(read, part).dtype == np.int64
    content = json.loads(pathlib.Path(path).read_text())
    assert (content['protocol'], content['seed']) == ('balanced', 0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data_set': 'other'}, "is for 'other', not for 'toy'"),
        ({'num_examples': 9}, 'is for 9 examples, not for 135'),
        ({'labeled': [0, 1, 2, 3, 4, 5, 6, 135]}, "'labeled' must be a list of integers from 0 to 134"),
        ({'labeled': [-1]}, "'labeled' must be a list"),
        ({'labeled': 'all'}, "'labeled' must be a list"),
        ({'validation': [1.5]}, "'validation' must be a list"),
        ({'validation': [7, 7]}, 'listed twice'),
        ({'classes': [0] * 8}, 'classes'),
        ({'classes': None}, 'classes'),
        ({'validation': [0, 1, 2, 3]}, 'listed twice'),
        ({'validation': [0, 1, 2, 4]}, 'its images'),
        ({'sha256': '00'}, 'its images'),
    ],
)
def test_manifest_tampered_with(tmp_path, changes, message):
    path = save(tmp_path / 'labels.json', **changes)
    with pytest.raises(UserError, match=message) as error:
        splits.from_manifest(path, 'toy', LABELS, IMAGES)
    assert path in str(error.value)


def test_manifest_on_other_data(tmp_path):
    path = save(tmp_path / 'labels.json')
    order = np.argsort(LABELS, kind='stable')
    with pytest.raises(UserError, match='not those of the data'):
        splits.from_manifest(path, 'toy', LABELS[order], IMAGES[order])
    with pytest.raises(UserError, match='its images'):
        splits.from_manifest(path, 'toy', LABELS, 255 - IMAGES)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'No such file'),
        ('{', 'not valid JSON'),
        ('[]', 'lacks data_set'),
        ('{"seed": 1}', 'lacks data_set'),
    ],
)
def test_no_manifest(tmp_path, content, message):
    path = tmp_path / 'labels.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        splits.from_manifest(path, 'toy', LABELS, IMAGES)


# --- sampler


@pytest.mark.parametrize(('batch_size', 'size'), [(4, 12), (5, 12), (12, 12), (30, 12), (3, 1), (1, 7)])
def test_each_epoch_uses_every_example_once(batch_size, size):
    steps = [sampler.batch_indices(3, 'labeled', t, batch_size, size) for t in range(60)]
    assert all(indices.shape == (batch_size,) and indices.dtype == np.int64 for indices in steps)
    positions = np.concatenate(steps)
    epochs = positions[: len(positions) // size * size].reshape(-1, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    assert size == 1 or len(np.unique(epochs, axis=0)) > 1


def test_sampler_is_a_pure_function():
    first = [sampler.batch_indices(0, 'labeled', t, 5, 40) for t in range(20)]
    first[3][:] = -1  # What a caller does to its batch is its own business.
    sampler.permutation.cache_clear()
    again = [sampler.batch_indices(0, 'labeled', t, 5, 40) for t in reversed(range(20))][::-1]
    del first[3], again[3]
    assert np.array_equal(first, again)
    # Golden: see test_splits_depend_on_the_seed_only.
    assert sampler.batch_indices(0, 'labeled', 1000, 8, 50000).tolist() == [
        35815,
        24237,
        43693,
        26274,
        2656,
        4330,
        21044,
        3366,
    ]


def test_streams_seeds_and_epochs_are_independent():
    base = sampler.permutation(2000, 1, 'labeled', 0)
    others = [
        (1, 'unlabeled', 0),
        (2, 'labeled', 0),
        (1, 'labeled', 1),
        (0, 'labeled', 1),
        (-1, 'labeled', 0),
    ]
    for other in others:
        order = sampler.permutation(2000, *other)
        assert (order == base).mean() < 0.01
        assert abs(np.corrcoef(order, base)[0, 1]) < 0.1


@pytest.mark.parametrize(('step', 'batch_size', 'size'), [(-1, 4, 10), (0, 0, 10), (0, 4, 0)])
def test_sampler_refuses_nonsense(step, batch_size, size):
    with pytest.raises(ValueError, match='Cannot draw'):
        sampler.batch_indices(0, 'labeled', step, batch_size, size)
