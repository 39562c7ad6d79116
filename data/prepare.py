"""Downloads a data set and writes it where training reads it, once.

  python -m data.prepare cifar10                                    download; needs TensorFlow and a network
  python -m data.prepare cifar10 --from=FOLDER                      from cifar-10-binary.tar.gz in FOLDER
  python -m data.prepare fashion_mnist --from=FOLDER                from the four idx files; no TensorFlow
  python -m data.prepare usps                                       download; no TensorFlow
  python -m data.prepare emoji/noto                                 download with npm; no TensorFlow
  python -m data.prepare office31/amazon --from=FOLDER              from amazon/images/<class>/ in FOLDER

FOLDER holds the original files under their original names, or is a download folder of tfds; then nothing is
downloaded. The data set appears in the data folder when it is complete and not before.
"""

import argparse
import functools
import importlib.util
import os
import pathlib
import sys

import numpy as np
import requests
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import resource

from data import datasets
from data.aliases import ALIASES
from data.builders import idx
from data.builders.mnist_m import MnistM
from errors import UserError, first_line


def prepare(name: str, folder: str | None = None, data_dir: str | None = None) -> str:
    """Prepares a data set.

    Args:
        name: A data set of `datasets.NAMES`, another name of it in ALIASES, or any other of tfds.
        folder: Folder of the original files; None to download them.
        data_dir: Folder of prepared data sets, by default $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
        A message that says what was done and where.

    Raises:
        UserError: The data set cannot be prepared. No incomplete data set is left.
    """
    name = ALIASES.get(name, name)
    builder = datasets.find(name, data_dir)
    if builder.data_path.exists():
        datasets.check_prepared(builder)
        return f'{name} is already prepared in {builder.data_dir}'
    if folder and not os.path.isdir(folder):
        raise UserError(f'--from={folder} is not a folder.')
    if name in datasets.EMBEDDED:
        datasets.write(builder)
    elif name in datasets.OWN:
        if not folder and not getattr(builder, 'DOWNLOADS', False):
            raise UserError(f'{name} is not downloaded: add {builder.HOW}.')
        builder.folder = pathlib.Path(folder) if folder else None
        if name == MnistM.name:
            builder.digits = functools.partial(_mnist, builder)
        datasets.write(builder)
    elif folder and name in idx.NAMES:
        datasets.write(idx.builder(name, pathlib.Path(folder), os.fspath(builder.data_dir_root)))
    else:
        _through_tfds(builder, folder)
    return f'{name} is prepared in {builder.data_dir}'


def _mnist(builder: tfds.core.DatasetBuilder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of the `mnist` beside a data set, which is prepared from its idx files if need be."""
    data_dir = os.fspath(builder.data_dir_root)
    if not datasets.find('mnist', data_dir).data_path.exists():
        datasets.write(idx.builder('mnist', builder.folder, data_dir))
    arrays = datasets.load('mnist', split, data_dir)
    return arrays.images, arrays.labels


def _through_tfds(builder: tfds.core.DatasetBuilder, folder: str | None) -> None:
    """Prepares a data set with tfds, which downloads the original files or takes all of them from `folder`."""
    # tfds 4.9.10 needs importlib_resources but does not require it (tensorflow/datasets issue 11212).
    missing = [m for m in ('tensorflow', 'importlib_resources') if importlib.util.find_spec(m) is None]
    if missing:
        other_way = ' (--from=FOLDER with its four idx files does not)' if builder.name in idx.NAMES else ''
        raise UserError(f'Preparing {builder.name} needs a package{other_way}: pip install {" ".join(missing)}')
    # tfds does not look for local files whose names it does not know.
    originals = {url: info for url, info in (builder.url_infos or {}).items() if info.filename}
    downloads = folder or os.fspath(builder.data_dir_root / 'downloads')
    absent = [url for url, info in originals.items() if not _is_in(downloads, builder.name, url, info)]
    files = ', '.join(f'{originals[url].filename} (from {url})' for url in absent)
    if folder and absent:  # tfds would download them.
        raise UserError(f'Not in {folder}: {files}.')
    try:
        for url in absent[:1]:  # tfds tries for minutes before it raises
            requests.head(url, timeout=20)
    except requests.RequestException as error:
        raise UserError(f'No connection for {builder.name}. Add --from=FOLDER with {files}.') from error
    config = tfds.download.DownloadConfig(
        manual_dir=folder,
        # Not into the user's folder.
        extract_dir=builder.data_dir_root / 'downloads' / 'extracted',
        try_download_gcs=False,
    )
    try:
        datasets.write(builder, download_dir=folder, download_config=config)
    except Exception as error:  # any type: of requests, tfds, TensorFlow or the code of a data set
        raise UserError(f'{builder.name}: {first_line(error)}') from error


def _is_in(folder: str, name: str, url: str, info: tfds.core.download.checksums.UrlInfo) -> bool:
    """Returns whether tfds finds a file in a folder: by its original name, or in its cache of downloads."""
    cached = resource.get_dl_fname(url, info.checksum)
    return os.path.exists(os.path.join(folder, info.filename)) or any(
        resource.is_locally_cached(epath.Path(folder) / place / cached) for place in ('', name)
    )


def main(args: list[str] | None = None) -> int:
    """Runs the command line, returns the exit status."""
    parser = argparse.ArgumentParser(
        'python -m data.prepare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', help=f'{", ".join(datasets.NAMES)}, or any other of tfds')
    parser.add_argument('--from', dest='folder', metavar='FOLDER', help='take the original files from here')
    parser.add_argument(
        '--data_dir', metavar='DIR', help='write here (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)'
    )
    flags = parser.parse_args(args)
    try:
        print(prepare(flags.name, flags.folder, flags.data_dir))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('Interrupted, nothing was prepared.', file=sys.stderr)
        os._exit(130)  # A normal exit would wait for the download threads of tfds to finish.
    return 0


if __name__ == '__main__':
    sys.exit(main())
