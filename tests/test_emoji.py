"""Emoji: what is chosen and drawn, and that no thing is in training and in testing."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from data import datasets, prepare
from data.builders import emoji
from errors import UserError

SUBGROUPS = {'0': 'animal-mammal', '1': 'person-role', '2': 'country-flag'}


def record(order, hexcode, label, subgroup):
    return {'order': order, 'hexcode': hexcode, 'label': label, 'subgroup': subgroup}


# In no order. A person, a flag, one without a drawing in each style, one without a subgroup, and two cats.
RECORDS = [
    record(5, '1F9D1-200D-1F373', 'cook', 1),
    record(3, '1F408-200D-2B1B', 'black cat', 0),
    record(2, '1F408', 'cat', 0),
    record(1, '1F431', 'cat face', 0),
    record(6, '1F3F3-FE0F', 'white flag', 2),
    record(4, '1F9A3', 'mammoth', 0),
    {'hexcode': '1F1E6', 'label': 'regional indicator A'},
    *(record(10 + i, f'{0x1F420 + i:X}', f'beast {i}', 0) for i in range(8)),
]
CHARACTERS = {
    '-'.join(point for point in r['hexcode'].lower().split('-') if point != 'fe0f'): r['label'].replace(' ', '-')
    for r in RECORDS
}


def left_half(name):
    """Returns it in red, in another one for each beast."""
    return f'<path fill="#ff{16 * int(name[6:] or 0) if name.startswith("beast") else 0:02x}00" d="M0 0h8v32H0z"/>'


def icons(*without):
    names = set(CHARACTERS.values()) - set(without)
    return {'width': 32, 'height': 32, 'icons': {name: {'body': left_half(name), 'width': 16} for name in names}}


STYLES = {'a': icons(), 'b': icons('mammoth')}


@pytest.fixture
def chosen():
    return emoji.shared(RECORDS, SUBGROUPS, CHARACTERS, STYLES)


def test_emoji_are_things_that_every_style_has_in_unicodes_order(chosen):
    assert [one.name for one in chosen] == ['cat-face', 'cat', 'black-cat', *(f'beast-{i}' for i in range(8))]
    assert {one.label for one in chosen} == {'animal-mammal'}


def test_a_thing_with_its_variants_is_on_one_side(chosen):
    assert {one.concept for one in chosen[:3]} == {'cat'}
    parts = emoji.split_by_concept(chosen)
    assert sorted(parts['train'] + parts['test']) == sorted(chosen)
    sides = [{one.concept for one in parts[split]} for split in ('train', 'test')]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3  # 30 % of 9


@pytest.mark.parametrize(
    ('labels', 'noun'),
    [
        (('cat', 'cat face', 'black cat'), 'cat'),
        (('sun', 'sun with face', 'sun behind rain cloud'), 'sun'),
        (('full moon', 'new moon face', 'waning crescent moon'), 'moon'),
        (('taxi', 'oncoming taxi'), 'taxi'),
        (('beer mug', 'clinking beer mugs'), 'mug'),
        (('houses', 'house with garden', 'derelict house'), 'house'),
        (('snowman', 'snowman without snow'), 'snowman'),
        (('umbrella on ground', 'umbrella with rain drops'), 'umbrella'),
        (('bus',), 'bus'),
        (('tumbler glass', 'glass of milk'), 'glass'),
    ],
)
def test_a_concept_is_the_noun_of_a_name(labels, noun):
    assert {emoji.concept(label) for label in labels} == {noun}


def test_another_emoji_of_another_class_moves_nothing(chosen):
    other = emoji.One('rose', 'plant-flower', 'rose')
    before, after = emoji.split_by_concept(chosen), emoji.split_by_concept([*chosen, other])
    assert before['test'] == [one for one in after['test'] if one != other]


def test_a_drawing_is_on_white_and_keeps_its_proportions():
    image = np.asarray(Image.open(io.BytesIO(emoji.draw(STYLES['a'], 'cat'))))
    assert image.shape == (64, 64, 3)
    # 16x32 units in the middle of 64x64 pixels, the left half red.
    assert (image[:, 16:32] == (255, 0, 0)).all()
    assert (image[:, :16] == 255).all()
    assert (image[:, 32:] == 255).all()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Returns a folder of packages that the builder takes for the original ones."""
    folder = tmp_path / 'packages'
    folder.mkdir()

    def write(package, files):
        with tarfile.open(folder / package.file, 'w:gz') as archive:
            for name, content in files.items():
                raw = json.dumps(content).encode()
                member = tarfile.TarInfo(f'package/{name}')
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
        digest = hashlib.sha256((folder / package.file).read_bytes()).hexdigest()
        return emoji.Package(package.name, package.version, digest)

    names = write(emoji.NAMES_OF_ALL, {'en/data.json': RECORDS, 'meta/groups.json': {'subgroups': SUBGROUPS}})
    monkeypatch.setattr(emoji, 'NAMES_OF_ALL', names)
    files = {'icons.json': icons(), 'chars.json': CHARACTERS}
    for style in emoji.STYLES:
        monkeypatch.setattr(style, 'packages', tuple(write(package, files) for package in style.packages))
    monkeypatch.setattr(emoji.ALL, 'packages', tuple(style.packages[0] for style in emoji.STYLES))
    return folder


def test_a_style_is_a_data_set_and_all_are_one_too(packages, tmp_path):
    for name, styles in (('emoji/noto', 1), ('emoji/all', 6)):
        prepare.prepare(name, str(packages), str(tmp_path / 'data'))
        train, test = (datasets.load(name, split, str(tmp_path / 'data')) for split in ('train', 'test'))
        assert train.images.shape[1:] == (64, 64, 3)
        assert len(train.images) + len(test.images) == styles * (
            len(emoji.shared(RECORDS, SUBGROUPS, CHARACTERS, {'a': icons()}))
        )
        assert train.class_names[train.labels[0]] == 'animal-mammal'


def test_every_style_has_the_same_order(packages, tmp_path):
    for name in ('emoji/noto', 'emoji/twemoji'):
        prepare.prepare(name, str(packages), str(tmp_path / 'data'))
    noto, twemoji = (
        datasets.load(name, 'train', str(tmp_path / 'data')).images for name in ('emoji/noto', 'emoji/twemoji')
    )
    assert np.array_equal(noto, twemoji)  # they are drawn alike here
    assert len(np.unique(noto.reshape(len(noto), -1), axis=0)) > 1


def test_a_package_that_is_missing_or_another_one_is_named_and_nothing_is_prepared(packages, tmp_path):
    path = packages / emoji.STYLES[1].packages[0].file
    raw = path.read_bytes()
    path.write_bytes(raw + b'0')
    with pytest.raises(UserError, match=r'twemoji.*has the SHA-256'):
        prepare.prepare('emoji/noto', str(packages), str(tmp_path / 'data'))
    path.unlink()
    with pytest.raises(UserError, match=r'npm pack @iconify-json/twemoji@'):
        prepare.prepare('emoji/noto', str(packages), str(tmp_path / 'data'))
    with pytest.raises(UserError, match='not prepared'):
        datasets.load('emoji/noto', 'train', str(tmp_path / 'data'))
