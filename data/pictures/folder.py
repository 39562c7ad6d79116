"""Which files of a folder are pictures, and of which class and split each is.

    photos/<class>/<any folders>/<picture>                    classes
    photos/train/<class>/<picture>, photos/test/<class>/...   with splits; 'val', 'valid' and 'validation' are one
    photos/unlabeled/<picture>, photos/<picture>              without a label
    photos/labels.csv                                         columns path, label and, if need be, split

A path in labels.csv is relative to its folder. Pictures that it does not list have no label.
"""

import concurrent.futures
import csv
import functools
import hashlib
import io
import json
import os
import pathlib
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from errors import UserError

SPLITS = {'train': 'train', 'test': 'test'} | dict.fromkeys(('val', 'valid', 'validation'), 'validation')
UNLABELED = 'unlabeled'
SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff')
FOREIGN = ('.heic', '.heif', '.avif', '.jp2', '.raw', '.cr2', '.nef', '.dng', '.arw', '.psd', '.svg')  # not decoded
TABLE = 'labels.csv'
COLUMNS = {'path': ('path', 'file', 'filename', 'image'), 'label': ('label', 'class'), 'split': ('split', 'fold')}
# What operating systems and unpackers leave in folders.
_LEFT_BEHIND = ('__macosx', 'thumbs.db', 'desktop.ini', '@eadir')
_SIGNATURES = (b'\xff\xd8\xff', b'\x89PNG', b'GIF8', b'BM', b'II*\x00', b'MM\x00*')


class Found(Protocol):
    """A function that is called with the kind of a fault, the file that has it, and more on it."""

    def __call__(self, kind: str, file: str, detail: str = '') -> None: ...


class Entry(NamedTuple):
    """A file that is taken for a picture.

    Attributes:
        path: Relative to the folder, with '/' between its parts.
        label: Its class as it is written there, '' if it has none.
        split: 'train', 'validation', 'test', or 'unlabeled'.
    """

    path: str
    label: str
    split: str


def is_folder(name: str) -> bool:
    """Returns whether a data set's name is that of a folder ('photos/', '~/photos', './photos') or of a CSV file."""
    return name.endswith(('/', '.csv')) or name.startswith(('/', './', '../', '~'))


def resolve(name: str) -> tuple[pathlib.Path, str]:
    """Returns a folder and the name of the table in it, '' for none, of a data set that `is_folder`.

    Raises:
        UserError: There is no such folder or file.
    """
    path = pathlib.Path(name).expanduser()
    if path.suffix == '.csv' and path.is_file():
        return path.parent, path.name
    if not path.is_dir():
        raise UserError(f'There is no folder {name}.')
    return path, TABLE if (path / TABLE).is_file() else ''


def files(folder: pathlib.Path, found: Found) -> list[str]:
    """Returns the files below a folder, without hidden ones, in the order of code points.

    Args:
        folder: The folder.
        found: Is called for everything that is left out but should not be.
    """
    paths: list[str] = []
    for path in _walk(folder, '', (), found):
        if re.search(r'[\x00-\x1f\udc80-\udcff]', path):  # surrogates stand for bytes that are not UTF-8
            found('name', path)
        else:
            paths.append(path)
    return sorted(paths)


def _walk(folder: pathlib.Path, below: str, above: tuple[str, ...], found: Found) -> Iterator[str]:
    """Yields the files of a folder and of those in it.

    Args:
        folder: The folder.
        below: Its path relative to the first one, '' or with a '/' at its end.
        above: The real paths of the folders that it is in.
        found: As for `files`.
    """
    real = os.path.realpath(folder)
    if real in above:
        found('loop', below)
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        found('permission', below)
        return
    for entry in entries:
        path = below + entry.name
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself, or into a folder that may not be read
            is_folder = is_file = False
        if _is_hidden(entry.name):
            if is_folder:
                found('hidden', f'{path}/')
        elif is_folder:
            yield from _walk(folder / entry.name, f'{path}/', (*above, real), found)
        elif is_file:
            yield path
        elif entry.is_symlink():
            found('broken link', path)


def entries(folder: pathlib.Path, table: str, paths: list[str], found: Found) -> list[Entry]:
    """Returns what is taken for pictures among files of a folder, with their classes and splits.

    Args:
        folder: The folder.
        table: Name of the table in it, '' for none.
        paths: What `files` returned.
        found: Is called for everything that is left out but should not be.

    Raises:
        UserError: The table cannot be read.
    """
    pictures = [path for path in paths if path != table and _is_picture(folder, path, found)]
    if table:
        return _from_table(folder, table, pictures, found)
    # Without folders of classes in it, 'train' is a class, beside 'car' and 'ship'.
    in_train = any(path.lower().startswith('train/') and path.count('/') >= 2 for path in pictures)
    splits = SPLITS if in_train else {name: split for name, split in SPLITS.items() if split != 'train'}
    result = []
    for path in pictures:
        first, *further = [*path.split('/')[:-1], ''][:2]
        split, label = splits.get(first.lower(), ''), first
        if split:
            label = further[0] if further else ''
        elif first and in_train and first.lower() != UNLABELED:
            found('no split', path)
            continue
        if label and label.lower() != UNLABELED:
            result.append(Entry(path, label, split or 'train'))
        elif split in ('validation', 'test'):
            found('no class', path)
        else:
            result.append(Entry(path, '', UNLABELED))
    for name in _empty_folders(folder, pictures, in_train, {UNLABELED} if in_train else {UNLABELED, *splits}):
        found('empty class', name)
    return result


def _empty_folders(folder: pathlib.Path, pictures: list[str], in_train: bool, taken: set[str]) -> list[str]:
    """Returns the folders where a class would be that have no picture, but for those whose names are `taken`."""
    tops = [path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name)]
    if in_train:
        tops = [below for path in tops if path.name.lower() == 'train' for below in path.iterdir() if below.is_dir()]
    filled = {'/'.join(path.split('/')[: 1 + in_train]) for path in pictures}
    names = sorted(path.relative_to(folder).as_posix() for path in tops if not _is_hidden(path.name))
    return [f'{name}/' for name in names if name not in filled and name.split('/')[-1].lower() not in taken]


def _is_hidden(name: str) -> bool:
    return name.startswith('.') or name.lower() in _LEFT_BEHIND


def _is_picture(folder: pathlib.Path, path: str, found: Found) -> bool:
    """Returns whether a file is taken for a picture, by its suffix or by its first bytes."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SUFFIXES:
        return True
    if suffix in FOREIGN:
        found('foreign', path)
        return False
    try:
        with open(folder / path, 'rb') as file:
            head = file.read(12)
    except OSError:
        found('permission', path)
        return False
    if head.startswith(_SIGNATURES) or (head[:4] == b'RIFF' and head[8:] == b'WEBP'):
        return True
    found('other file', path)
    return False


def _from_table(folder: pathlib.Path, table: str, pictures: list[str], found: Found) -> list[Entry]:
    """Returns pictures with the classes and splits of a table."""
    rows, columns = _rows(folder / table)
    result = {path: Entry(path, '', UNLABELED) for path in pictures}
    left_out = set()
    for row in rows:
        path = _normal(row.get(columns['path']))
        label = (row.get(columns['label']) or '').strip()
        split = ((row.get(columns['split']) if 'split' in columns else '') or 'train').strip().lower()
        if _leads_out(path):
            found('outside', path)
        elif path not in result:
            found('missing', path)
        elif not label.isprintable():
            found('odd label', path, label)
            left_out.add(path)
        elif split == UNLABELED or not label:
            continue
        elif split not in SPLITS:
            found('no split', path)
            left_out.add(path)
        elif result[path].label and result[path] != Entry(path, label, SPLITS[split]):
            found('two rows', path, ' '.join((*result[path][1:], 'and', label, split)))
            left_out.add(path)
        else:
            result[path] = Entry(path, label, SPLITS[split])
    return [entry for path, entry in result.items() if path not in left_out]


def _rows(
    path: pathlib.Path, needed: tuple[str, ...] = ('path', 'label')
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Returns the rows of a CSV file with commas, semicolons or tabs, and {'path': name of that column, ...}.

    Raises:
        UserError: It cannot be read or lacks a column.
    """
    try:
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path} cannot be read as UTF-8: {error}.') from error
    text = text.lstrip()
    first = text.partition('\n')[0]
    delimiter = max(',;\t', key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=''), delimiter=delimiter)
    names = {(name or '').strip().lower(): name for name in reader.fieldnames or ()}
    columns = {}
    for column, aliases in COLUMNS.items():
        if (alias := next((alias for alias in aliases if alias in names), None)) is not None:
            columns[column] = names[alias]
        elif column in needed:
            raise UserError(f'{path} has no column {column!r}: its first line must name {" and ".join(needed)}.')
    try:
        return list(reader), columns
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.line_num}: {error}.') from error


def pictures(folder: pathlib.Path) -> list[str]:
    """Returns the paths of the pictures below a folder, relative to it, in the order of code points."""
    return [path for path in files(folder, _ignore) if _is_picture(folder, path, _ignore)]


def listed(table: pathlib.Path) -> list[str]:
    """Returns the paths in a CSV file with a column path.

    Raises:
        UserError: It cannot be read, lacks the column, or has a path that leads out of its folder.
    """
    rows, columns = _rows(table, ('path',))
    paths = [_normal(row.get(columns['path'])) for row in rows]
    if outside := [path for path in paths if _leads_out(path)]:
        raise UserError(f'{table} has paths that lead out of its folder, such as {outside[0]}.')
    return paths


def _ignore(kind: str, file: str, detail: str = '') -> None:
    pass


def _normal(path: str | None) -> str:
    return posixpath.normpath((path or '').strip().replace('\\', '/'))


def _leads_out(path: str) -> bool:
    return path.startswith(('../', '/')) or path == '..'


def class_key(label: str) -> str:
    """Returns what is equal for labels that differ only in case, in spaces or in how Unicode composes letters."""
    return ' '.join(unicodedata.normalize('NFKC', label).casefold().split())


def fingerprint(name: str) -> str:
    """Returns a SHA-256 of the pictures of a folder: their contents, paths, classes and splits.

    Raises:
        UserError: As for `resolve` and `entries`.
    """
    folder, table = resolve(name)
    found = entries(folder, table, files(folder, _ignore), _ignore)
    stats = [(folder / entry.path).stat() for entry in found]
    sizes = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    return _fingerprint(folder, tuple((entry, *size) for entry, size in zip(found, sizes, strict=True)))


@functools.lru_cache(maxsize=8)  # the parts of a program ask again and again
def _fingerprint(folder: pathlib.Path, entries: tuple[tuple[Entry, int, int], ...]) -> str:
    def digest(entry: Entry) -> str:
        try:
            with open(folder / entry.path, 'rb') as file:
                return hashlib.file_digest(file, 'sha256').hexdigest()
        except OSError:
            return ''

    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing and reading need no interpreter's lock
        digests = pool.map(digest, (entry for entry, *_ in entries))
        text = json.dumps([[*entry, sha256] for (entry, *_), sha256 in zip(entries, digests, strict=True)])
    return hashlib.sha256(text.encode()).hexdigest()
