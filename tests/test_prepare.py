"""Preparing data sets: the embedded digits, idx files, the command line, and what goes wrong."""

import gzip
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from data import datasets, prepare
from data.builders.digits import Digits
from errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
DEBIAN = pathlib.Path('/usr/share/datasets/fashion-mnist')  # Of the Debian package dataset-fashion-mnist.


@pytest.fixture
def data_dir(tmp_path):
    return str(tmp_path / 'data')


def write_idx(path: pathlib.Path, array: np.ndarray) -> None:
    raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == '.gz' else raw)


@pytest.fixture
def originals(tmp_path):
    """Returns a function: (part of the file names) -> a folder of 30 + 20 random images, and those images."""

    def make(middle: str = '-idx{}-ubyte.gz'):
        folder = tmp_path / 'originals'
        folder.mkdir(exist_ok=True)
        rng, images = np.random.default_rng(0), {}
        for part, n in (('train', 30), ('t10k', 20)):
            images[part] = rng.integers(0, 256, (n, 28, 28), np.uint8)
            write_idx(folder / (f'{part}-images' + middle.format(3)), images[part])
            write_idx(folder / (f'{part}-labels' + middle.format(1)), images[part][:, 0, 0] % 10)
        return folder, images

    return make


def rows(images: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() for image in images)


def test_digits_are_those_of_scikit_learn_each_used_once(data_dir):
    from sklearn.datasets import load_digits

    train, test = (datasets.load('digits', split, data_dir) for split in ('train', 'test'))
    assert (len(train.labels), len(test.labels)) == (1297, 500)
    assert train.images.shape == (1297, 8, 8, 1)
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)
    assert (train.num_classes, train.class_names) == (10, tuple('0123456789'))
    real, labels = load_digits(return_X_y=True)
    images = np.concatenate([train.images, test.images])
    # Back in 0..16: nothing was lost by scaling. All 1,797 differ, so disjointness follows.
    assert rows(np.rint(images.reshape(-1, 64) / 255 * 16).astype(np.uint8)) == rows(real.astype(np.uint8))
    label_of = {image.tobytes(): label for image, label in zip(real.astype(np.uint8), labels, strict=True)}
    small = np.rint(test.images.reshape(-1, 64) / 255 * 16).astype(np.uint8)
    assert [label_of[image.tobytes()] for image in small] == test.labels.tolist()
    share = np.bincount(test.labels) / np.bincount(labels)
    assert np.abs(share - 500 / 1797).max() < 0.01


def test_another_process_may_be_faster(data_dir, monkeypatch):
    make_splits, depth = Digits._split_generators, []

    def overtaken(self, dl_manager):
        depth.append(None)
        if len(depth) == 1:
            datasets.write(datasets.find('digits', data_dir))
        return make_splits(self, dl_manager)

    monkeypatch.setattr(Digits, '_split_generators', overtaken)
    assert len(datasets.load('digits', 'train', data_dir).labels) == 1297
    assert len(depth) == 2
    assert os.listdir(f'{data_dir}/digits') == ['1.0.0']


@pytest.mark.parametrize('stop', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_interrupted_preparation_leaves_nothing(data_dir, monkeypatch, stop):
    def examples(self, images, labels, indices):
        yield 0, {'image': images[0], 'label': 0}
        raise stop

    monkeypatch.setattr(Digits, '_generate_examples', examples)
    with pytest.raises((KeyboardInterrupt, UserError)):
        datasets.load('digits', 'train', data_dir)
    monkeypatch.undo()
    assert os.listdir(f'{data_dir}/digits') == []
    assert len(datasets.load('digits', 'train', data_dir).labels) == 1297


@pytest.mark.parametrize('middle', ['-idx{}-ubyte.gz', '-idx{}-ubyte', '.idx{}-ubyte.gz', '.idx{}-ubyte'])
def test_idx_files(data_dir, originals, middle, capsys):
    folder, images = originals(middle)
    command = ['fashion_mnist', f'--from={folder}', f'--data_dir={data_dir}']
    assert prepare.main(command) == 0
    for split, part in (('train', 'train'), ('test', 't10k')):
        arrays = datasets.load('fashion_mnist', split, data_dir)
        assert rows(arrays.images) == rows(images[part])
        assert arrays.labels.tolist() == (arrays.images[:, 0, 0, 0] % 10).tolist()
        assert arrays.class_names[9] == 'Ankle boot'
    capsys.readouterr()
    assert prepare.main(command) == 0
    assert capsys.readouterr().out == f'fashion_mnist is already prepared in {data_dir}/fashion_mnist/3.0.1\n'


def test_both_names_of_svhn_are_one_data_set(data_dir, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(prepare, '_through_tfds', lambda builder, folder: written.append(builder.name))
    for name in ('svhn', 'svhn_cropped'):
        assert prepare.main([name, f'--data_dir={data_dir}']) == 0
        assert capsys.readouterr().out.startswith('svhn_cropped is prepared in')
    assert written == ['svhn_cropped'] * 2


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def cut_content(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


@pytest.mark.parametrize(
    ('file', 'damage', 'message'),
    [
        ('train-images-idx3-ubyte.gz', pathlib.Path.unlink, r'No train-images-idx3-ubyte\.gz \(or '),
        ('train-images-idx3-ubyte.gz', truncate, 'cannot be read'),
        ('train-images-idx3-ubyte.gz', lambda p: p.write_bytes(b'<html>'), 'cannot be read'),
        ('t10k-labels-idx1-ubyte.gz', cut_content, '19 bytes after its header, not 20'),
        ('t10k-labels-idx1-ubyte.gz', lambda p: p.write_bytes(gzip.compress(b'\0\0')), 'not an idx file'),
        ('t10k-labels-idx1-ubyte.gz', lambda p: write_idx(p, np.zeros((20, 1), np.uint8)), '1 dimension'),
        (
            't10k-labels-idx1-ubyte.gz',
            lambda p: write_idx(p, np.zeros(19, np.uint8)),
            '20 images, .* 19 labels',
        ),
        ('t10k-labels-idx1-ubyte.gz', lambda p: write_idx(p, np.full(20, 10, np.uint8)), 'from 0 to 9'),
        (
            't10k-images-idx3-ubyte.gz',
            lambda p: write_idx(p, np.zeros((20, 8, 8), np.uint8)),
            r'\(8, 8\) pixels',
        ),
    ],
)
def test_damaged_idx_files(data_dir, originals, file, damage, message):
    folder, _ = originals()
    damage(folder / file)
    with pytest.raises(UserError, match=message) as error:
        prepare.prepare('mnist', str(folder), data_dir)
    assert '\n' not in str(error.value)
    assert not os.path.exists(f'{data_dir}/mnist')


@pytest.mark.skipif(not DEBIAN.exists(), reason='needs the Debian package dataset-fashion-mnist')
def test_real_fashion_mnist(data_dir, tmp_path):
    folder = tmp_path / 'originals'
    folder.mkdir()
    for part in ('t10k', 'train'):  # The small part twice, to be quick.
        for kind in ('images-idx3', 'labels-idx1'):
            (folder / f'{part}-{kind}-ubyte.gz').symlink_to(DEBIAN / f't10k-{kind}-ubyte.gz')
    prepare.prepare('fashion_mnist', str(folder), data_dir)
    test = datasets.load('fashion_mnist', 'test', data_dir)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    raw = gzip.decompress((DEBIAN / 't10k-images-idx3-ubyte.gz').read_bytes())[16:]
    assert rows(test.images) == rows(np.frombuffer(raw, np.uint8).reshape(-1, 784))


def one_error_line(args, capsys) -> str:
    assert prepare.main(args) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_command_line_errors(data_dir, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(prepare.importlib.util, 'find_spec', lambda name: None)
    here = f'--data_dir={data_dir}'
    assert 'pip install tensorflow' in one_error_line(['cifar10', here], capsys)
    assert "Did you mean 'cifar10'?" in one_error_line(['cifar', here], capsys)
    assert 'four idx files' in one_error_line(['mnist', here], capsys)
    assert 'is not a folder' in one_error_line(['mnist', here, f'--from={tmp_path}/absent'], capsys)
    (tmp_path / 'file').touch()
    assert 'Cannot prepare' in one_error_line(['digits', f'--data_dir={tmp_path}/file'], capsys)
    assert not os.path.exists(data_dir)


def test_original_files_that_tfds_would_download(data_dir, monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise requests.ConnectionError

    monkeypatch.setattr(prepare.importlib.util, 'find_spec', lambda name: True)
    monkeypatch.setattr(requests, 'head', no_network)
    info = types.SimpleNamespace(filename='cifar.tar.gz', checksum='00' * 32)
    builder = types.SimpleNamespace(
        name='cifar10', url_infos={'http://a.b/c': info}, data_dir_root=pathlib.Path(data_dir)
    )
    with pytest.raises(UserError, match=r'--from=FOLDER with cifar.tar.gz \(from http://a.b/c\)'):
        prepare._through_tfds(builder, None)
    with pytest.raises(UserError, match=rf'Not in {tmp_path}: cifar.tar.gz'):
        prepare._through_tfds(builder, str(tmp_path))
    written = []
    monkeypatch.setattr(datasets, 'write', lambda _, **kwargs: written.append(kwargs))
    (tmp_path / 'cifar.tar.gz').touch()
    prepare._through_tfds(builder, str(tmp_path))
    assert written[0]['download_config'].manual_dir == str(tmp_path)


def test_ctrl_c(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    exits = []
    monkeypatch.setattr(prepare, 'prepare', interrupted)
    monkeypatch.setattr(os, '_exit', exits.append)
    prepare.main(['digits'])
    assert exits == [130]
    assert capsys.readouterr().err == 'Interrupted, nothing was prepared.\n'


def test_module_can_be_run(data_dir):
    command = [sys.executable, '-m', 'data.prepare']
    done = subprocess.run([*command, '--help'], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'from the four idx files; no TensorFlow' in done.stdout
    done = subprocess.run([*command, 'cifarr10'], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count('\n')) == (1, 1)


def test_tensorflow_is_never_imported(data_dir, originals, tmp_path):
    """Also not where it is installed, as after preparing cifar10."""
    (tmp_path / 'tensorflow.py').write_text('raise SystemExit("tensorflow was imported")')
    folder, _ = originals()
    code = f"""
import sys
from data import datasets, prepare, sampler, splits
prepare.prepare('mnist', {str(folder)!r}, {data_dir!r})
images, labels = (lambda a: (a.images, a.labels))(datasets.load('mnist', 'train', {data_dir!r}))
datasets.load('digits', 'test', {data_dir!r})
assert 'tensorflow' not in sys.modules
"""
    path = {**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'}
    subprocess.run([sys.executable, '-c', code], env=path, check=True)


def test_idx_sets_are_written_as_tfds_writes_them(data_dir, originals):
    folder, _ = originals()
    for name in ('mnist', 'fashion_mnist', 'kmnist'):
        prepare.prepare(name, str(folder), data_dir)
        own, theirs = datasets.find(name, data_dir), tfds.builder_cls(name)
        assert str(own.version) == str(theirs.VERSION)
        assert own.info.features.to_json() == theirs(data_dir=data_dir).info.features.to_json()
