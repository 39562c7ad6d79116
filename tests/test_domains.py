"""Data sets of domain adaptation: how they are made from original files, resizing, and what goes wrong."""

import bz2
import hashlib
import io
import json
import os
import pathlib
import tarfile

import numpy as np
import pytest
import requests
from PIL import Image

from data import datasets, prepare
from data.builders import folders, idx, mnist_m, usps
from errors import UserError


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    # Nothing here may import it, where it is installed either.
    (tmp_path / 'fake').mkdir()
    (tmp_path / 'fake/tensorflow.py').write_text('raise SystemExit("tensorflow was imported")')
    monkeypatch.syspath_prepend(tmp_path / 'fake')
    return str(tmp_path / 'data')


@pytest.fixture
def originals(tmp_path):
    folder = tmp_path / 'originals'
    folder.mkdir()
    return folder


def refused(name, folder=None, data_dir=None) -> str:
    """Returns the one line that says why it cannot be prepared, having seen that nothing is left."""
    with pytest.raises(UserError) as error:
        prepare.prepare(name, folder and str(folder), data_dir)
    assert '\n' not in str(error.value)
    assert not list(pathlib.Path(data_dir).glob(f'{name}/*'))
    return str(error.value)


def pixels(seed, *shape) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


# --- digits_m


def reduced(photograph: np.ndarray) -> np.ndarray:
    """Returns the means of blocks of 4x4 pixels, of what is there of them at the borders."""
    rows, columns = (np.arange(0, n, 4) for n in photograph.shape[:2])
    total, counts = (
        np.add.reduceat(np.add.reduceat(x.astype(float), rows, axis=0), columns, axis=1)
        for x in (photograph, np.ones_like(photograph))
    )
    return total / counts


def crops(image: np.ndarray, side: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side, image.shape[-1]))
    return windows.reshape(-1, side, side, image.shape[-1])


@pytest.mark.parametrize('split', ['train', 'test'])
def test_digits_m_is_a_digit_on_a_crop_of_its_part_of_a_photograph(split, data_dir):
    from sklearn.datasets import load_sample_images

    ours, digits = (datasets.load(name, split, data_dir) for name in ('digits_m', 'digits'))
    assert ours.images.shape == (1297 if split == 'train' else 500, 8, 8, 3)
    assert (ours.images.dtype, ours.num_classes, ours.class_names) == (np.uint8, 10, digits.class_names)
    assert np.array_equal(ours.labels, digits.labels)
    # 160 columns: of every 30 the first 21 are for training, the others for testing.
    inside = {'train': (0, 21), 'test': (21, 30)}[split]
    stripes = [slice(30 * i + inside[0], 30 * i + inside[1]) for i in range(5)] + [slice(150, 160)] * (split == 'train')
    patches = np.concatenate([crops(reduced(p)[:, s], 8) for p in load_sample_images().images for s in stripes])
    used = set()
    for image, digit in zip(ours.images, digits.images, strict=True):
        near = patches[(np.abs(np.abs(patches[:, 0, 0] - digit[0, 0]) - image[0, 0]) <= 1).all(axis=-1)]
        match = near[(np.abs(np.abs(near - digit) - image) <= 1).all(axis=(1, 2, 3))]
        assert len(match) > 0
        used.add(match[0].tobytes())
    assert len(used) > 0.95 * len(ours.labels)  # The rest are alike: clear sky.


def test_digits_m_is_drawn_once_and_for_all(data_dir):
    first, second = (datasets.load('digits_m', 'train', f'{data_dir}/{i}') for i in range(2))
    assert np.array_equal(first.images, second.images)
    assert prepare.prepare('digits_m', None, f'{data_dir}/2') == f'digits_m is prepared in {data_dir}/2/digits_m/1.0.0'


def test_digits_m_is_another_domain_that_can_be_learned(data_dir):
    from sklearn.svm import SVC

    def part(name, split):
        arrays = datasets.load(name, split, data_dir)
        rgb = np.broadcast_to(arrays.images / 255, (len(arrays.labels), 8, 8, 3))
        return rgb.reshape(len(rgb), -1), arrays.labels

    target = part('digits_m', 'test')
    assert 0.3 < SVC(C=10).fit(*part('digits', 'train')).score(*target) < 0.75
    assert SVC(C=10).fit(*part('digits_m', 'train')).score(*target) > 0.85


# --- usps


@pytest.fixture
def postal(originals, monkeypatch):
    """Returns the images and digits of 20 + 10 lines in LIBSVM's format, whose files are in `originals`."""
    content = {}
    for split, count in (('train', 20), ('test', 10)):
        name, _ = usps.FILES[split]
        images, digits = pixels(count, count, 16, 16), np.arange(count) % 10
        lines = [
            # As in the original, without what is exactly zero: grey.
            f'{y + 1} ' + ' '.join(f'{i}:{x / 127.5 - 1:.6f}' for i, x in enumerate(image.flat, 1) if x != 128)
            for image, y in zip(images, digits, strict=True)
        ]
        raw = bz2.compress('\n'.join(lines).encode() + b'\n')
        (originals / name).write_bytes(raw)
        monkeypatch.setitem(usps.FILES, split, (name, hashlib.md5(raw).hexdigest()))
        content[split] = images, digits
    return content


def check_usps(content, data_dir):
    for split, (images, digits) in content.items():
        arrays = datasets.load('usps', split, data_dir)
        assert (arrays.images.shape, arrays.num_classes) == ((len(images), 16, 16, 1), 10)
        actual = {image.tobytes(): y for image, y in zip(arrays.images, arrays.labels, strict=True)}
        assert actual == {image.tobytes(): y for image, y in zip(images, digits, strict=True)}


def test_usps_from_local_files(postal, originals, data_dir, monkeypatch):
    monkeypatch.setattr(requests, 'get', None)
    assert prepare.main(['usps', f'--from={originals}', f'--data_dir={data_dir}']) == 0
    check_usps(postal, data_dir)


def answer(status: int, content: bytes) -> requests.Response:
    response = requests.Response()
    response.status_code, response._content = status, content
    return response


def test_usps_by_download(postal, originals, data_dir, monkeypatch):
    def get(url, timeout):
        assert url.startswith('https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/usps.')
        return answer(200, (originals / url.rpartition('/')[2]).read_bytes())

    monkeypatch.setattr(requests, 'get', get)
    prepare.prepare('usps', None, data_dir)
    check_usps(postal, data_dir)


def test_usps_errors(postal, originals, data_dir, monkeypatch):
    def offline(*_, **__):
        raise requests.ConnectionError('no route')

    monkeypatch.setattr(requests, 'get', offline)
    assert 'Cannot get usps.bz2: no route. Add --from=FOLDER' in refused('usps', None, data_dir)
    monkeypatch.setattr(requests, 'get', lambda *_, **__: answer(404, b''))
    assert 'Cannot get usps.bz2: 404' in refused('usps', None, data_dir)
    monkeypatch.setattr(requests, 'get', lambda *_, **__: answer(200, b'<html>'))
    assert 'usps.bz2 has the MD5 ' in refused('usps', None, data_dir)
    test = originals / 'usps.t.bz2'
    test.write_bytes(test.read_bytes()[:-1])
    assert f'not {usps.FILES["test"][1]}: get it again from https://www.csie' in refused('usps', originals, data_dir)
    test.unlink()
    assert 'Cannot get usps.t.bz2: ' in refused('usps', originals, data_dir)


def test_usps_is_known_by_the_checksums_of_torchvision():
    assert usps.FILES['train'] == ('usps.bz2', 'ec16c51db3855ca6c91edd34d0e9b197')
    assert usps.FILES['test'] == ('usps.t.bz2', '8ea070ee2aca1ac39742fdd1ef5ed118')


# --- mnist_m


@pytest.fixture
def photographs(originals, monkeypatch):
    """Returns {part: two photographs}, whose archive is in `originals`."""
    monkeypatch.setattr(mnist_m, 'NUM_PHOTOGRAPHS', 2)
    images_by_part = {}
    with tarfile.open(originals / 'BSR_bsds500.tgz', 'w:gz') as archive:

        def add(name, raw):
            member = tarfile.TarInfo(f'BSR/BSDS500/data/images/{name}')
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))

        for seed, part in enumerate(('train', 'val', 'test')):
            shapes = (28, 40, 3), (45, 33, 3)
            images = [encoded(Image.fromarray(pixels([seed, i], *shape)), 'jpeg') for i, shape in enumerate(shapes)]
            for i, raw in enumerate(images):
                add(f'{part}/{seed}{i}.jpg', raw)
                add(f'{part}/._{seed}{i}.jpg', b'of a Mac')
            add(f'{part}/Thumbs.db', b'of Windows')
            images_by_part[part] = [np.asarray(Image.open(io.BytesIO(raw))) for raw in images]
    return images_by_part


@pytest.fixture
def digits():
    """Returns {split: (images, labels)} like MNIST's, all different, with an empty border."""
    parts = {}
    for split, count in (('train', 30), ('test', 20)):
        images = pixels(count, count, 28, 28, 1)
        images[:, :2] = 0
        parts[split] = images, np.arange(count) % 10
    return parts


def write_idx(folder: pathlib.Path, digits) -> None:
    for split, part in (('train', 'train'), ('test', 't10k')):
        for kind, array in zip(('images', 'labels'), digits[split], strict=True):
            array = array.squeeze().astype(np.uint8)
            raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes() + array.tobytes()
            (folder / f'{part}-{kind}-idx{array.ndim}-ubyte').write_bytes(raw)


@pytest.mark.parametrize('is_prepared', [True, False])
def test_mnist_m_is_a_digit_on_a_crop_of_a_photograph(photographs, digits, originals, data_dir, is_prepared):
    if is_prepared:
        datasets.write(idx.from_arrays('mnist', digits, data_dir))
    else:
        write_idx(originals, digits)
    prepare.prepare('mnist_m', str(originals), data_dir)
    for split, (images, labels) in digits.items():
        arrays = datasets.load('mnist_m', split, data_dir)
        assert (arrays.images.shape, arrays.num_classes) == ((len(labels), 28, 28, 3), 10)
        patches = [crops(photograph, 28).astype(int) for photograph in photographs[split]]
        which = np.repeat([0, 1], [len(patch) for patch in patches])
        patches, used, places = np.concatenate(patches), [], []
        for image, label in zip(arrays.images, arrays.labels, strict=True):
            (place,) = np.flatnonzero((patches[:, 0] == image[0]).all(axis=(1, 2)))
            (digit,) = np.flatnonzero((np.abs(patches[place] - images) == image).all(axis=(1, 2, 3)))
            assert labels[digit] == label
            used.append(digit)
            places.append(place)
        assert sorted(used) == list(range(len(labels)))
        assert np.bincount(which[places]).tolist() == [len(labels) // 2] * 2
        assert len(set(places)) > len(places) / 2
    sha256 = hashlib.sha256((originals / 'BSR_bsds500.tgz').read_bytes()).hexdigest()
    assert json.loads(pathlib.Path(data_dir, 'mnist_m/1.0.0/metadata.json').read_text()) == {'sha256': sha256}
    assert datasets.find('mnist_m', data_dir).info.metadata['sha256'] == sha256


def test_mnist_m_errors(photographs, digits, originals, data_dir, monkeypatch):
    assert 'add --from=FOLDER with BSR_bsds500.tgz (from https://www2.eecs' in refused('mnist_m', None, data_dir)
    assert 'No train-images-idx3-ubyte.gz' in refused('mnist_m', originals, data_dir)
    write_idx(originals, digits)
    monkeypatch.setattr(mnist_m, 'NUM_PHOTOGRAPHS', 3)
    assert 'has 2 photographs in BSR/BSDS500/data/images/train, not 3' in refused('mnist_m', originals, data_dir)
    archive = originals / 'BSR_bsds500.tgz'
    whole = archive.read_bytes()
    for damaged in (whole[: len(whole) // 2], b'<html>', b''):
        archive.write_bytes(damaged)
        assert 'cannot be read, get it again' in refused('mnist_m', originals, data_dir)
    archive.unlink()
    assert f'No BSR_bsds500.tgz in {originals}' in refused('mnist_m', originals, data_dir)


# --- folders of classes

LAYOUTS = {  # Where the classes are, how many of them, how many images: as the papers say.
    'office31/amazon': ('amazon/images', 31, 2817),
    'office31/dslr': ('dslr/images', 31, 498),
    'office31/webcam': ('webcam/images', 31, 795),
    'office_home/art': ('Art', 65, 2427),
    'office_home/clipart': ('Clipart', 65, 4365),
    'office_home/product': ('Product', 65, 4439),
    'office_home/real_world': ('Real World', 65, 4357),
    'visda/train': ('train', 12, 152397),
    'visda/validation': ('validation', 12, 55388),
}
CLASSES = ('Zebra', 'apple pie', 'bus')  # In the order of code points.


@pytest.fixture
def make_domain(originals, monkeypatch):
    """Returns a function: (name, images a class) -> {content of a file: class} of a small one in `originals`."""

    def make(name: str, per_class: int = 5) -> dict[bytes, int]:
        place, classes, count = LAYOUTS[name]
        (builder,) = {cls for cls in folders.FromFolders.__subclasses__() if cls.name == name.partition('/')[0]}
        (domain,) = (domain for domain in builder.BUILDER_CONFIGS if domain.name == name.partition('/')[2])
        assert (builder.NUM_CLASSES, domain.count) == (classes, count)
        monkeypatch.setattr(builder, 'NUM_CLASSES', len(CLASSES))
        monkeypatch.setattr(domain, 'count', per_class * len(CLASSES))
        content = {}
        for label, title in enumerate(CLASSES):
            folder = originals / place / title
            folder.mkdir(parents=True)
            for i in range(per_class):
                raw = encoded(Image.fromarray(pixels([label, i], 9 + i, 20 - label, 3)), 'jpeg')
                (folder / f'{i}.jpg').write_bytes(raw)
                content[raw] = label
        return content

    return make


def as_pillow_has_it(content: dict[bytes, int], size: int) -> dict[bytes, int]:
    def resized(raw):
        image = Image.open(io.BytesIO(raw)).convert('RGB')
        return image.resize((size, size), Image.Resampling.BILINEAR)

    return {np.asarray(resized(raw)).tobytes(): label for raw, label in content.items()}


def by_image(arrays: datasets.Arrays) -> dict[bytes, int]:
    return {image.tobytes(): int(label) for image, label in zip(arrays.images, arrays.labels, strict=True)}


def test_the_names_are_known():
    assert set(LAYOUTS) | {'digits_m', 'usps', 'mnist_m'} <= set(datasets.NAMES)


@pytest.mark.parametrize('name', LAYOUTS)
def test_folders(name, make_domain, originals, data_dir):
    content = make_domain(name)
    place = originals / LAYOUTS[name][0]
    (place / '.ipynb_checkpoints').mkdir()
    (place / '.ipynb_checkpoints/0.jpg').touch()
    (place / 'bus/.DS_Store').touch()
    (place / 'image_list.txt').touch()
    where = f'{data_dir}/{name}/1.0.0'
    assert prepare.prepare(name, str(originals), data_dir) == f'{name} is prepared in {where}'
    assert prepare.prepare(name, str(originals), data_dir) == f'{name} is already prepared in {where}'
    arrays = datasets.load(name, 'train', data_dir, 12)
    assert (arrays.images.shape, arrays.images.dtype) == ((15, 12, 12, 3), np.uint8)
    assert (arrays.num_classes, arrays.class_names) == (3, CLASSES)
    assert by_image(arrays) == as_pillow_has_it(content, 12)
    # The files are in it as they were.
    source = datasets.find(name, data_dir).as_data_source(
        'train', decoders={'image': datasets.tfds.decode.SkipDecoding()}
    )
    assert {example['image']: int(example['label']) for example in source} == content


def test_slices_hold_all_classes_and_are_apart(make_domain, originals, data_dir):
    content = make_domain('office31/webcam', per_class=40)
    prepare.prepare('office31/webcam', str(originals), data_dir)
    train, test = (datasets.load('office31/webcam', s, data_dir, 8) for s in ('train[:80%]', 'train[80%:]'))
    assert (len(train.labels), len(test.labels)) == (96, 24)
    assert {**by_image(train), **by_image(test)} == as_pillow_has_it(content, 8)
    for part in (train, test):
        share = np.bincount(part.labels, minlength=3) / len(part.labels)
        assert share.min() > 0.15
        assert (np.diff(part.labels) != 0).mean() > 0.4
    assert np.array_equal(datasets.load('office31/webcam', 'train[:80%]', data_dir, 8).images, train.images)


def test_folders_errors(make_domain, originals, data_dir):
    def error(name='office_home/real_world', folder=originals):
        return refused(name, folder, data_dir)

    layout = "--from=FOLDER, where FOLDER has 'Real World/<class>/<image>' (from https://www.hemanthdv.org/"
    assert f'is not downloaded: add {layout}' in error(folder=None)
    assert f'No folder {originals}/Real World. Use {layout}' in error()
    make_domain('office_home/real_world', per_class=10)
    place = originals / 'Real World'
    (place / 'Cat').mkdir()
    assert f'{place} has 4 folders, not one for each of the 3 classes' in error()
    (place / 'Cat').rmdir()
    (place / 'bus/3.jpg').rename(originals / 'elsewhere')
    assert f'{place} has 29 images, not 30: unpack the original again (from https' in error()
    (place / 'bus/3.jpg').write_text('no image')
    cut = place / 'Zebra/0.jpg'
    cut.write_bytes(cut.read_bytes()[:-30])
    assert f'No images, or damaged: {cut}, {place}/bus/3.jpg. ' in error()
    for path in place.glob('*/*'):
        path.write_bytes(b'')
    message = error()
    assert message.count('.jpg') == 20
    assert ' and 10 more. Unpack' in message


def test_names_of_domains_in_errors(make_domain, originals, data_dir):
    def error(name, size=8):
        with pytest.raises(UserError) as caught:
            datasets.load(name, 'train', data_dir, size)
        assert '\n' not in str(caught.value)
        return str(caught.value)

    command = f'python -m data.prepare office31/dslr --data_dir={data_dir} --from=FOLDER'
    assert command in error('office31/dslr')
    assert "'dslr/images/<class>/<image>' (from https://faculty.cc.gatech.edu/" in error('office31/dslr')
    assert f'python -m data.prepare usps --data_dir={data_dir} (downloads it; or add --from' in error('usps')
    assert f'prepare mnist_m --data_dir={data_dir} --from=FOLDER with BSR_bsds500.tgz' in error('mnist_m')
    for name in ('office31', 'office_home', 'visda', 'office31/dlsr'):
        assert f"Unknown data set '{name}'. Did you mean '{name[:5]}" in error(name)
    assert 'office31/dslr has no equally large images: set data.image_size' in error('office31/dslr', 0)
    assert 'domainnet/real has no equally large images: set data.image_size' in error('domainnet/real', 0)
    assert 'python -m data.prepare domainnet/real' in error('domainnet/real')
    make_domain('office31/dslr')
    prepare.prepare('office31/dslr', str(originals), data_dir)
    assert 'set data.image_size' in error('office31/dslr', 0)
    info = pathlib.Path(data_dir, 'office31/dslr/1.0.0/dataset_info.json')
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    assert 'run python -m data.prepare office31/dslr.' in error('office31/dslr')


# --- sizes


def test_any_mode_of_an_image_is_read_in_colour(make_domain, originals, data_dir):
    content = make_domain('visda/validation', per_class=5)
    colour = Image.fromarray(pixels(5, 30, 40, 3))
    kinds = {
        'grey.jpg': encoded(colour.convert('L'), 'jpeg'),
        'print.jpg': encoded(colour.convert('CMYK'), 'jpeg'),
        'palette.png': encoded(colour.convert('P'), 'png'),
        'alpha.png': encoded(colour.convert('RGBA'), 'png'),
    }
    for i, (name, raw) in enumerate(kinds.items()):
        old = originals / f'validation/bus/{i}.jpg'
        del content[old.read_bytes()]
        old.unlink()
        old.with_name(name).write_bytes(raw)
        content[raw] = 2
    prepare.prepare('visda/validation', str(originals), data_dir)
    assert by_image(datasets.load('visda/validation', 'train', data_dir, 16)) == as_pillow_has_it(content, 16)


@pytest.mark.parametrize('name', ['digits', 'digits_m', 'mnist'])
@pytest.mark.parametrize('size', [5, 32])
def test_images_of_one_size_are_resized_too(name, size, data_dir):
    if name == 'mnist':
        datasets.write(idx.from_arrays('mnist', {'test': (pixels(0, 6, 28, 28, 1), np.arange(6))}, data_dir))
    small, arrays = datasets.load(name, 'test', data_dir), datasets.load(name, 'test', data_dir, size)
    assert arrays.images.shape == (len(small.labels), size, size, small.images.shape[-1])
    assert np.array_equal(arrays.labels, small.labels)
    for image, result in zip(small.images, arrays.images, strict=True):
        expected = Image.fromarray(image.squeeze()).resize((size, size), Image.Resampling.BILINEAR)
        assert np.array_equal(result.squeeze(), np.asarray(expected))


def test_each_size_has_a_decoded_copy(data_dir):
    sizes = (0, 4, 16)
    first = {size: datasets.load('digits', 'test', data_dir, size).images for size in sizes}
    copies = sorted(pathlib.Path(data_dir).glob('digits/*/decoded-*'))
    assert len(copies) == 3
    for copy in copies:
        with np.load(copy) as arrays:
            content = dict(arrays)
        np.savez(copy, **content | {'images': 255 - content['images']})
    for size in sizes:
        assert np.array_equal(datasets.load('digits', 'test', data_dir, size).images, 255 - first[size])
    os.utime(next(copies[0].parent.glob('digits-test.*')), ns=(0, 0))
    for size in sizes:
        assert np.array_equal(datasets.load('digits', 'test', data_dir, size).images, first[size])
    assert len(list(copies[0].parent.glob('decoded-*'))) == 3
