"""What is wrong with a folder of pictures, and what training does about it. Nothing in the folder is changed."""

import collections
import dataclasses
import functools
import hashlib
import pathlib
import re
import shlex
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data.pictures import folder as folder_lib
from data.pictures import inspection
from data.pictures.folder import Entry
from errors import UserError

# Ends of names that mark another version of a picture, where there is one without.
_VERSION = re.compile(
    r'[ _-]*(\(\d+\)|[ _-](copy|flip(ped)?|mirror(ed)?|rot(ated|\d*)|aug\d*|crop(ped)?|edited|small|large|\d+x\d+))$'
)
CHAIN = 0.1  # of all pictures: groups of nearly equal ones that are larger are of too many that are merely alike
TEST = 0.2  # of the pictures of a class, where the folder has no test part
IMBALANCE = 10  # times that the largest class has more pictures than the smallest
LISTED = 3  # files that are named of each kind
SPLITS = ('train', 'validation', 'test')
NOTE, WRONG, STOPS = 'note', 'wrong', 'stops'

Near = Callable[[pathlib.Path, list[Entry]], np.ndarray]


class Kind(NamedTuple):
    """A kind of fault.

    Attributes:
        level: 'note'; 'wrong', training would not be what it seems; 'stops', no training is possible.
        what: What the files, or the classes, are; or what is wrong with all of them together.
        rule: What training does, '' for nothing.
        mend: What to do about it, '' for nothing. {name} is the folder, {move} a command that moves the files away.
    """

    level: str
    what: str
    rule: str
    mend: str


_LEAVES = 'leaves them out'
_USES = 'uses them'
KINDS = {
    # kind: level, what it is, what training does, what to do
    'no pictures': Kind(STOPS, 'no picture can be read', '', 'give a folder that has a folder for each class'),
    'one class': Kind(STOPS, 'fewer than two classes have labeled training pictures', '', 'label more of them'),
    'no test': Kind(STOPS, 'no picture is left for testing', '', 'add pictures, at least two of each class'),
    'two labels': Kind(WRONG, 'pictures that are under two labels', _LEAVES, 'delete those under the wrong one'),
    'leak': Kind(WRONG, 'training pictures that are held-out ones, too', _LEAVES, 'move them away: {move}'),
    'untrained class': Kind(WRONG, 'held-out pictures of a class without training pictures', _LEAVES, 'add some'),
    'two rows': Kind(WRONG, 'pictures that the table has twice, and not the same', _LEAVES, 'correct the table'),
    'odd label': Kind(WRONG, 'labels in the table with control characters', _LEAVES, 'correct the table'),
    'no split': Kind(WRONG, 'pictures in none of train, validation and test', _LEAVES, 'move them into one of these'),
    'no class': Kind(WRONG, 'held-out pictures in no class', _LEAVES, 'move them into the folders of their classes'),
    'outside': Kind(WRONG, 'paths in the table that lead out of the folder', _LEAVES, 'write paths relative to it'),
    'missing': Kind(WRONG, 'paths in the table where no picture is', _LEAVES, 'correct the table'),
    'unreadable': Kind(NOTE, 'files that are damaged, or no pictures', _LEAVES, 'move them away: {move}'),
    'foreign': Kind(NOTE, 'pictures of formats that are not read', _LEAVES, 'magick mogrify -format jpg FILES'),
    'permission': Kind(NOTE, 'files that you may not read', _LEAVES, 'chmod -R u+rX {name}'),
    'name': Kind(NOTE, 'names with control characters or bytes that are not UTF-8', _LEAVES, 'rename them'),
    'loop': Kind(NOTE, 'links to a folder that they are in', _LEAVES, ''),
    'broken link': Kind(NOTE, 'links to files that do not exist', _LEAVES, ''),
    'hidden': Kind(NOTE, 'hidden folders', _LEAVES, ''),
    'other file': Kind(NOTE, 'files that are no pictures by name and content', _LEAVES, ''),
    'empty class': Kind(NOTE, 'folders of classes without a picture', 'knows no such classes', 'add pictures'),
    'spelling': Kind(NOTE, 'names that differ from others only in case or spaces', 'takes each for one class', ''),
    'duplicate': Kind(NOTE, 'copies of other pictures', _LEAVES, ''),
    'near leak': Kind(NOTE, 'training pictures nearly the same as held-out ones', _USES, 'look at them'),
    'near duplicate': Kind(NOTE, 'pictures nearly the same as others of their part', _USES, ''),
    'few held out': Kind(NOTE, 'classes of which less than half of that, as most are nearly the same', 'tests few', ''),
    'label': Kind(NOTE, 'labels that are probably wrong', _USES, 'look at them'),
    'suffix': Kind(NOTE, 'pictures of another format than their names say', _USES, ''),
    'tiny': Kind(NOTE, f'pictures smaller than {inspection.TINY} pixels', _USES, 'move them away: {move}'),
    'flat': Kind(NOTE, 'pictures nearly of one colour', _USES, 'move them away: {move}'),
    'untested class': Kind(NOTE, 'classes without a held-out picture', 'cannot test them', 'add pictures'),
    'imbalance': Kind(NOTE, f'one class has more than {IMBALANCE} times the pictures of another', 'uses all', ''),
    'sizes': Kind(NOTE, 'sizes differ by a factor of 4 or more', 'brings all to one', ''),
    'validation as test': Kind(NOTE, 'no test part', 'tests on the validation part', ''),
    'held out': Kind(NOTE, 'no test part', f'holds {TEST:.0%} of each class out for testing', ''),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault.

    Attributes:
        kind: One of KINDS.
        files: Those that have it, relative to the folder, or names of classes; ('',) if it is of all together.
        details: More on each, such as why it cannot be read; '' for nothing.
    """

    kind: str
    files: tuple[str, ...]
    details: tuple[str, ...]

    @property
    def level(self) -> str:
        return KINDS[self.kind].level


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What training uses of a folder.

    Attributes:
        classes: Names of the classes, in the order of code points.
        entries: The pictures, in the order of their paths; labels are names of classes, or ''.
        findings: What is wrong, the worst first.
    """

    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]


def examine(name: str, near: Near | None = None) -> Pictures:
    """Looks at a folder of pictures.

    Args:
        name: Of the folder or of a table in it, see `folder.is_folder`.
        near: Returns the pairs of entries, int `[P, 2]`, that are nearly the same, beside those by perceptual hash.

    Raises:
        UserError: There is no such folder, or its table cannot be read.
    """
    folder, table = folder_lib.resolve(name)
    faults: dict[str, dict[str, str]] = collections.defaultdict(dict)

    def found(kind: str, file: str, detail: str = '') -> None:
        faults[kind][file] = detail

    entries = folder_lib.entries(folder, table, folder_lib.files(folder, found), found)
    looks = dict(zip((e.path for e in entries), inspection.look_at_all(folder, [e.path for e in entries]), strict=True))
    for path, look in looks.items():
        if look.error:
            found('permission' if look.sha256 == '' else 'unreadable', path, look.error)
        elif min(look.size) < inspection.TINY:
            found('tiny', path, '{}x{} pixels'.format(*look.size))
        elif look.flat:
            found('flat', path)
        if not look.error and not look.suffix:
            found('suffix', path)
    entries = _one_spelling([e for e in entries if not looks[e.path].error], found)
    entries = _without_copies(entries, looks, found)
    entries = _with_test_part(entries, looks, found, functools.partial(near, folder) if near else None)
    trained = {e.label for e in entries if e.split == 'train'}
    for e in entries:
        if e.split in ('validation', 'test') and e.label not in trained:
            found('untrained class', e.path, e.label)
    entries = [e for e in entries if e.path not in faults['untrained class']]
    _judge(entries, looks, found)
    findings = [Finding(kind, *_sorted(faults[kind])) for kind in KINDS if faults[kind]]
    return Pictures(tuple(sorted(trained)), tuple(sorted(entries)), tuple(findings))


def _sorted(files: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = tuple(sorted(files))
    return names, tuple(files[name] for name in names)


def _one_spelling(entries: list[Entry], found: folder_lib.Found) -> list[Entry]:
    """Returns the entries with one name for each class, that of most training pictures."""
    counts = collections.Counter(e.label for e in entries if e.label)
    trained = collections.Counter(e.label for e in entries if e.split == 'train')
    names: dict[str, str] = {}
    for label in sorted(counts, key=lambda label: (-trained[label], -counts[label], label)):
        name = names.setdefault(folder_lib.class_key(label), label)
        if name != label:
            found('spelling', label, f'is {name!r}')
    return [e._replace(label=names[folder_lib.class_key(e.label)]) if e.label else e for e in entries]


def _without_copies(entries: list[Entry], looks: dict[str, inspection.Look], found: folder_lib.Found) -> list[Entry]:
    """Returns the entries without copies, by content."""
    same = collections.defaultdict(list)
    for e in entries:
        same[looks[e.path].sha256].append(e)
    left_out = set()
    for copies in same.values():
        labels = {e.label for e in copies if e.label}
        if len(labels) > 1:
            first = {e.label: e.path for e in reversed(copies) if e.label}
            for e in copies:
                found('two labels', e.path, f'also {next(path for label, path in first.items() if label != e.label)}')
            left_out |= {e.path for e in copies}
            continue
        # Testing comes first, then validation, and a label before none.
        copies.sort(key=lambda e: (('test', 'validation', 'train', 'unlabeled').index(e.split), e.path))
        for e in copies[1:]:
            held_out = copies[0].split in ('test', 'validation')
            kind = 'leak' if held_out and e.split != copies[0].split else 'duplicate'
            found(kind, e.path, f'is {copies[0].path}')
            left_out.add(e.path)
    return [e for e in entries if e.path not in left_out]


def _with_test_part(
    entries: list[Entry],
    looks: dict[str, inspection.Look],
    found: folder_lib.Found,
    near: Callable[[list[Entry]], np.ndarray] | None,
) -> list[Entry]:
    """Returns the entries, some of them for testing, and reports near duplicates."""
    pairs = _near(entries, looks)
    held_out = ('test', 'validation')
    splits = {e.split for e in entries}
    if not splits & set(held_out) and 'train' in splits:
        groups = _groups(entries, pairs, looks)
        chosen = hold_out(entries, groups, [looks[e.path].sha256 for e in entries])
        entries = [e._replace(split='test') if i in chosen else e for i, e in enumerate(entries)]
        found('held out', '', f'{len(chosen)} pictures')
        counts = collections.Counter(e.label for e in entries if e.label)
        tested = collections.Counter(e.label for e in entries if e.split == 'test')
        for label, count in counts.items():
            if 0 < tested[label] < TEST / 2 * count:
                found('few held out', label, f'{tested[label]} of {count}')
    elif 'test' not in splits and 'validation' in splits:
        entries = [e._replace(split='test') if e.split == 'validation' else e for e in entries]
        found('validation as test', '', f'{sum(e.split == "test" for e in entries)} pictures')
    if near:
        pairs = np.concatenate([pairs, near(entries)])  # the test part does not depend on them
    for i, j in pairs.tolist():
        first, second = sorted((entries[i], entries[j]), key=lambda e: (e.split in held_out, e.path))
        apart = (first.split in held_out) != (second.split in held_out)
        found('near leak' if apart else 'near duplicate', first.path, f'like {second.path}')
    return entries


def _near(entries: list[Entry], looks: dict[str, inspection.Look]) -> np.ndarray:
    shown = np.array([i for i, e in enumerate(entries) if not looks[e.path].flat], int)  # hashes of others are noise
    hashes = np.array([looks[entries[i].path].hash for i in shown], np.uint64)
    return shown[inspection.near_pairs(hashes)]


def _groups(entries: list[Entry], pairs: np.ndarray, looks: dict[str, inspection.Look]) -> list[int]:
    """Returns the number of the group of each picture that has to be on one side of a split.

    Digits, X-rays or products are nearly the same by thousands. Where they would be one group, only versions of one
    picture are.
    """
    hashes = np.array([looks[e.path].hash for e in entries], np.uint64)
    differing = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    stems = _same_stem(entries)
    for most in (inspection.NEAR, inspection.ALIKE, -1):
        groups = inspection.groups(len(entries), np.concatenate([pairs[differing <= most], stems]))
        if np.bincount(groups).max() <= max(10, CHAIN * len(entries)):
            break
    return groups.tolist()


def _same_stem(entries: list[Entry]) -> np.ndarray:
    """Returns pairs of pictures that are named as versions of one: 'a.jpg', 'a (1).png', 'a_copy.jpg', 'a-flip.jpg'."""
    stems = [e.path.rpartition('.')[0].lower() or e.path for e in entries]
    known, first = set(stems), dict[str, int]()
    pairs = []
    for i, name in enumerate(stems):
        stem = name
        while (shorter := _VERSION.sub('', stem)) != stem and shorter in known:
            stem = shorter
        pairs.append((first.setdefault(stem, i), i))
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def hold_out(entries: list[Entry], groups: list[int], keys: list[str]) -> set[int]:
    """Returns the positions of the pictures that are held out for testing.

    Of each class it is TEST, at least one of two, in an order drawn from the pictures' contents, so that other names or
    further classes change nothing. A group is on one side.

    Args:
        entries: The pictures; only those with a label are held out.
        groups: Number of the group of each.
        keys: SHA-256 of each.
    """
    members = collections.defaultdict(list)
    for i in range(len(entries)):
        members[groups[i]].append(i)
    order = {g: min(hashlib.sha256(f'test {keys[i]}'.encode()).hexdigest() for i in m) for g, m in members.items()}
    count = collections.Counter(e.label for e in entries if e.label)
    want = {label: max(1, round(TEST * n)) if n > 1 else 0 for label, n in count.items()}
    held: set[int] = set()
    for group in sorted(members, key=order.__getitem__):
        labeled = [i for i in members[group] if entries[i].label]
        labels = collections.Counter(entries[i].label for i in labeled)
        # Too many for a class: the next group may fit.
        if labels and all(n <= want[label] for label, n in labels.items()):
            held |= set(labeled)
            for label, n in labels.items():
                want[label] -= n
    return held


def _judge(entries: list[Entry], looks: dict[str, inspection.Look], found: folder_lib.Found) -> None:
    """Reports what is wrong with all pictures together."""
    count = {split: collections.Counter(e.label for e in entries if e.split == split) for split in ('train', 'test')}
    train, test = count['train'], count['test']
    if not entries:
        found('no pictures', '')
        return
    if len(train) < 2:
        found('one class', '', ', '.join(train))
    elif not test:
        found('no test', '')
    for label in train:
        if not test[label]:
            found('untested class', label, f'{train[label]} for training')
    if len(train) > 1 and max(train.values()) > IMBALANCE * min(train.values()):
        few, many = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
        found('imbalance', '', f'{many} {train[many]}, {few} {train[few]}')
    sides = sorted(min(looks[e.path].size) for e in entries)
    if sides[-1] >= 4 * sides[0]:
        middle = sides[len(sides) // 2]
        found('sizes', '', f'shorter sides from {sides[0]} to {sides[-1]} pixels, median {middle}')


def usable(name: str) -> Pictures:
    """Returns what training uses of a folder of pictures.

    Raises:
        UserError: As for `examine`, or no training is possible.
    """
    pictures = examine(name)
    for finding in pictures.findings:
        if finding.level == STOPS:
            kind = KINDS[finding.kind]
            raise UserError(f'{name}: {kind.what}: {kind.mend}. More: python -m deploy.check {shlex.quote(name)}')
    return pictures


def summary(pictures: Pictures) -> str:
    """Returns one line on the pictures and on what is wrong, for a run to print."""
    counts = collections.Counter(entry.split for entry in pictures.entries)
    parts = [f'{counts[split]} {split}' for split in (*SPLITS, folder_lib.UNLABELED) if counts[split]]
    left_out = sum(len(f.files) for f in pictures.findings if KINDS[f.kind].rule == _LEAVES)
    wrong = [f'{len(f.files)} {KINDS[f.kind].what}' for f in pictures.findings if f.level == WRONG]
    return f'{", ".join(parts)}; {left_out} left out' + (f' ({"; ".join(wrong)})' if wrong else '')


def line(finding: Finding) -> str:
    """Returns one line on a finding, with the first files."""
    pairs = zip(finding.files, finding.details, strict=True)
    some = [shown(file) + f' ({shown(detail)})' * bool(detail) for file, detail in pairs]
    what = KINDS[finding.kind].what
    if not finding.files[0]:
        return f'{finding.level}: {what}{some[0]}'
    more = f' and {len(some) - LISTED} more' * (len(some) > LISTED)
    return f'{finding.level}: {len(some)} {what}: {", ".join(some[:LISTED])}{more}'


def shown(text: str) -> str:
    """Returns a text without what a terminal would obey."""
    return text if text.isprintable() else ascii(text)
