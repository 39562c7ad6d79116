"""Reads prepared tfds data sets into memory. `python -m data.prepare` prepares one."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import re
import zipfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data.builders import emoji, folders, pictures
from data.builders.digits import Digits
from data.builders.digits_m import DigitsM
from data.builders.mnist_m import MnistM
from data.builders.usps import Usps
from data.pictures import decoding, folder
from errors import UserError, first_line, unknown

EMBEDDED = (Digits.name, DigitsM.name)  # Need no download, so they are prepared on first use.
OWN = (Usps.name, MnistM.name, *folders.NAMES, *emoji.NAMES)  # Prepared by own builders, which need no TensorFlow.
NAMES = (*EMBEDDED, *OWN, 'cifar10', 'cifar100', 'fashion_mnist', 'kmnist', 'mnist', 'stl10', 'svhn_cropped')
MODES = {1: 'L', 3: 'RGB'}  # Of PIL, by the number of channels.


@dataclasses.dataclass(frozen=True)
class Arrays:
    """One split of a data set in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N], the class, or -1 where the data set has none (stl10 'unlabelled').
        num_classes: Number of classes.
        class_names: One per class.
        files: Of a folder of pictures, the path of each, relative to it; otherwise ().
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Description:
    """What a prepared data set says about itself, without reading its images.

    Attributes:
        shape: (H, W, C) of an image; H and W are None if images differ in size.
        num_classes: Number of classes.
        splits: {split: number of images}.
        summary: Of a folder of pictures, one line on what is used and what is wrong.
    """

    shape: tuple[int | None, int | None, int]
    num_classes: int
    splits: dict[str, int]
    summary: str = ''


def describe(name: str, data_dir: str | None = None) -> Description:
    """Returns the description of a prepared data set.

    Args:
        name: As for `load`.
        data_dir: As for `load`.

    Raises:
        UserError: There is no such data set, it is not prepared, or it is not of images with one label each.
    """
    builder = find(name, data_dir)
    _check_features(builder, name)
    check_prepared(builder)
    features = builder.info.features
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    summary = (builder.info.metadata or {}).get('summary', '') if folder.is_folder(name) else ''
    return Description(tuple(features['image'].shape), features['label'].num_classes, splits, summary)


def load(name: str, split: str, data_dir: str | None = None, size: int = 0) -> Arrays:
    """Reads one split, in the order of the prepared files.

    Args:
        name: One of NAMES, any other image classification set of tfds that is prepared in data_dir, or a folder of
            pictures, with a '/' at its end.
        split: A tfds split, such as 'train', 'test', 'train+unlabelled' or 'train[:80%]'.
        data_dir: Folder of prepared data sets, by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
        size: Height and width that the whole image is resized to, bilinearly; 0 does not resize.

    Returns:
        The images and labels.

    Raises:
        UserError: There is no such data set or split, it is not prepared, it is not of images with one label each, or
            its images differ in size and `size` is 0.
    """
    builder = find(name, data_dir)
    _check_features(builder, name)
    features = builder.info.features
    if None in features['image'].shape and not size:
        raise UserError(f'{name} has no equally large images: set data.image_size to the size that all are to have.')
    if name in EMBEDDED and not builder.data_path.exists():
        # Without a message: it takes a fraction of a second.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            write(builder)
        builder = find(name, data_dir)
    try:
        images, labels, files = _read(builder, split, size)
    except Exception as error:  # tfds and array_record raise many types for mistakes of the user
        check_prepared(builder)
        raise UserError(f"Cannot read '{split}' of {builder.data_dir}: {first_line(error)}") from error
    return Arrays(images, labels, features['label'].num_classes, tuple(features['label'].names), files)


def _check_features(builder: tfds.core.DatasetBuilder, name: str) -> None:
    """Checks that a data set is of images with one label each.

    Raises:
        UserError: It is not.
    """
    features = builder.info.features
    if not {'image', 'label'} <= set(features or ()) or not isinstance(features['label'], tfds.features.ClassLabel):
        raise UserError(f"{name} is not a data set of images with one 'label' each.")
    if len(features['image'].shape) != 3 or features['image'].shape[-1] not in MODES:
        raise UserError(f'Images of {name} have the shape {features["image"].shape}, not [H, W, 1 or 3].')


def find(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Returns the tfds builder of a data set, prepared or not.

    Raises:
        UserError: There is no such data set.
    """
    if name in {own.split('/')[0] for own in OWN if '/' in own}:  # tfds would take the first domain
        raise unknown('data set', name, NAMES)
    data_dir = os.path.expanduser(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')
    if folder.is_folder(name):
        try:
            return pictures.prepared(name, data_dir)
        except (OSError, ImportError) as error:
            with contextlib.suppress(OSError):  # another process was faster
                return pictures.prepared(name, data_dir)
            raise UserError(f'Cannot prepare {name} in {data_dir}: {first_line(error)}') from error
    try:
        # Asking for any version makes tfds look for prepared files before it looks at the data set's code, so
        # that older versions can be read, and sets whose code imports TensorFlow.
        return tfds.builder(name, version='*.*.*', data_dir=data_dir)
    except ValueError as error:  # Includes DatasetNotFoundError.
        if os.path.isdir(name):
            raise UserError(f"Unknown data set '{name}'. If you mean the folder, write '{name}/'.") from error
        # Its text lists a thousand names.
        raise unknown('data set', name, NAMES, tfds.list_builders(with_community_datasets=False)) from error
    except Exception as error:  # a damaged folder, or code that imports TensorFlow: tfds raises many types
        raise UserError(f'{name}: {first_line(error)}') from error


def check_prepared(builder: tfds.core.DatasetBuilder) -> None:
    """Checks that `load` can read a data set.

    Raises:
        UserError: It cannot. The message has the command that prepares the data set.
    """
    name = builder.info.full_name.rpartition('/')[0]  # Of name/config/version.
    if not builder.data_path.exists():
        how = '(downloads it and needs TensorFlow; or add --from=FOLDER with the original files)'
        raise UserError(
            f'{name} is not prepared in {builder.data_dir}. Run once: python -m data.prepare {name} '
            f'--data_dir={builder.data_dir_root} {getattr(builder, "HOW", how)}.'
        )
    if 'array_record' not in [file_format.value for file_format in builder.info.available_file_formats()]:
        raise UserError(
            f'{builder.data_dir} is damaged or not in the array_record format. Move it away or give another '
            f'--data_dir, and run python -m data.prepare {name}.'
        )


def write(builder: tfds.core.DatasetBuilder, **kwargs: Any) -> None:
    """Prepares a data set, all or nothing.

    Args:
        builder: A builder whose data set is not prepared.
        **kwargs: For tfds's download_and_prepare.

    Raises:
        UserError: The folder cannot be written, the disk is full, or a package is missing.
    """
    try:
        builder.download_and_prepare(file_format='array_record', **kwargs)
    except (OSError, ImportError) as error:
        # tfds writes to a temporary folder and renames it, which fails if another process was faster.
        if not builder.data_path.exists():
            raise UserError(f'Cannot prepare {builder.data_dir}: {first_line(error)}') from error


def _read(builder: tfds.core.DatasetBuilder, split: str, size: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns images, labels and files, from a decoded copy beside the prepared files if it is up to date.

    Decoding 60,000 small PNGs takes seconds at every start of a run, reading the copy a tenth of a second.
    """
    feature = builder.info.features['image']
    # tfds's decoding does not convert CMYK and palettes.
    skip = {'image': tfds.decode.SkipDecoding()} if size and isinstance(feature, tfds.features.Image) else None
    source = builder.as_data_source(split, decoders=skip)
    folder, stem = pathlib.Path(builder.data_dir), re.sub(r'\W', '_', split) + f'_{size}' * (size > 0)
    prepared = [(f.name, f.stat()) for f in sorted(folder.glob('*')) if not f.name.startswith('decoded-')]
    state = repr([split, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in prepared)])
    cache = folder / f'decoded-{stem}-{hashlib.sha256(state.encode()).hexdigest()[:16]}.npz'
    # Opened here, since np.load leaves a damaged file open.
    damages = (OSError, ValueError, KeyError, zipfile.BadZipFile)
    with contextlib.suppress(*damages), open(cache, 'rb') as copy, np.load(copy) as arrays:
        return arrays['images'], arrays['labels'], tuple(filter(None, map(str, arrays['files'])))

    shape = (size, size, feature.shape[-1]) if size else feature.shape
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    files = [''] * len(source)

    def read(i: int) -> None:
        example = source[i]
        files[i] = example.get('file', b'').decode()
        images[i] = _resize(example['image'], shape) if size else example['image']
        labels[i] = example['label']

    with concurrent.futures.ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        for _ in pool.map(read, range(len(source))):
            pass

    temporary = cache.with_suffix(f'.{os.getpid()}.tmp')
    with contextlib.suppress(OSError):  # A read-only folder or a full disk: the next run decodes again.
        try:
            with open(temporary, 'wb') as file:
                np.savez(file, images=images, labels=labels, files=np.array(files))
            for stale in folder.glob(f'decoded-{stem}-*.npz'):
                stale.unlink(missing_ok=True)
            temporary.replace(cache)
        finally:
            temporary.unlink(missing_ok=True)
    return images, labels, tuple(filter(None, files))


def _resize(image: bytes | np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns an encoded or a uint8 [H, W, C] image as uint8 of `shape`."""
    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image.squeeze(-1) if shape[-1] == 1 else image)
        picture = picture.resize(shape[1::-1], Image.Resampling.BILINEAR)
    else:
        picture = decoding.decode(image, MODES[shape[-1]], shape[1::-1])
    return np.asarray(picture).reshape(shape)
