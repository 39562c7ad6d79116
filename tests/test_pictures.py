"""A folder of a user's own pictures: what is taken from it, what is found to be wrong, and that runs apply the same."""

import csv
import io
import json
import os
import unicodedata

import numpy as np
import pytest
from drawn import pixels, write
from PIL import Image

from configs import data_sets
from data import datasets
from data.pictures import decoding, inspection, rules
from data.pictures.folder import Entry
from deploy import check
from errors import UserError
from train import run, run_folder


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of three classes with five pictures each."""
    for c, name in enumerate(('cat', 'dog', 'owl')):
        for i in range(5):
            write(tmp_path / 'photos' / name / f'{i}.png', 10 * c + i)
    return tmp_path / 'photos'


def examine(folder):
    return rules.examine(f'{folder}/')


def found(folder):
    """Returns {kind: files} of what is found, without what follows from the lack of a test part."""
    return {f.kind: f.files for f in examine(folder).findings if f.kind != 'held out'}


def parts(folder):
    """Returns {split: [(path, label)]}."""
    result = {}
    for entry in examine(folder).entries:
        result.setdefault(entry.split, []).append((entry.path, entry.label))
    return result


# --- Layouts


def test_folders_are_classes_and_a_fifth_of_each_is_held_out(folder):
    pictures = examine(folder)
    assert pictures.classes == ('cat', 'dog', 'owl')
    for name in pictures.classes:
        splits = [entry.split for entry in pictures.entries if entry.label == name]
        assert sorted(splits) == ['test'] + 4 * ['train']
    assert found(folder) == {}


def test_what_is_held_out_depends_on_contents_and_not_on_names_or_other_classes(folder):
    def test_pictures():
        return {(folder / path).read_bytes() for path, label in parts(folder)['test'] if label != 'newt'}

    before = test_pictures()
    for i in range(5):
        write(folder / 'newt' / f'{i}.png', 50 + i)
    for i in range(5):
        (folder / 'cat' / f'{i}.png').rename(folder / 'cat' / f'renamed {9 - i}.png')
    assert test_pictures() == before


@pytest.mark.parametrize(
    ('validation', 'train'), [('val', 'train'), ('valid', 'Train'), ('validation', 'TRAIN'), ('Val', 'train')]
)
def test_splits_are_taken_as_they_are_and_share_classes_by_name(tmp_path, validation, train):
    for i, path in enumerate((f'{train}/a', f'{train}/b', f'{train}/c', 'test/c', 'test/a', f'{validation}/b')):
        write(tmp_path / path / 'x.png', i)
    pictures = examine(tmp_path)
    assert pictures.classes == ('a', 'b', 'c')
    assert parts(tmp_path) == {
        'test': [('test/a/x.png', 'a'), ('test/c/x.png', 'c')],
        'train': [(f'{train}/{c}/x.png', c) for c in 'abc'],
        'validation': [(f'{validation}/b/x.png', 'b')],
    }


def test_without_a_test_part_the_validation_part_is_it(tmp_path):
    for i, path in enumerate(('train/a', 'train/b', 'val/a', 'val/b')):
        write(tmp_path / path / 'x.png', i)
    assert [path for path, _ in parts(tmp_path)['test']] == ['val/a/x.png', 'val/b/x.png']
    assert 'validation as test' in found(tmp_path)


def test_unlabeled_and_loose_pictures_have_no_class(folder):
    for i, path in enumerate(('unlabeled/deep/1.png', 'loose.png', 'Unlabeled2/x.png')):
        write(folder / path, 100 + i)
    assert parts(folder)['unlabeled'] == [('loose.png', ''), ('unlabeled/deep/1.png', '')]
    assert 'Unlabeled2' in examine(folder).classes  # only that very name


@pytest.mark.parametrize('delimiter', ',;\t')
def test_a_table_names_classes_and_splits(tmp_path, delimiter):
    rows = [('file', 'Label', 'split')]
    for i, (label, split) in enumerate([('a, b', 'train'), ('c', ''), ('c', 'test'), ('', ''), ('a, b', 'VAL')]):
        write(tmp_path / 'p' / f'{i}.png', i)
        rows.append((f'./p/{i}.png', label, split))
    write(tmp_path / 'p' / 'other.png', 9)
    with open(tmp_path / 'labels.csv', 'w', newline='', encoding='utf-8-sig') as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    expected = {
        'train': [('p/0.png', 'a, b'), ('p/1.png', 'c')],
        'test': [('p/2.png', 'c')],
        'unlabeled': [('p/3.png', ''), ('p/other.png', '')],
        'validation': [('p/4.png', 'a, b')],
    }
    assert parts(tmp_path) == expected
    (tmp_path / 'labels.csv').rename(tmp_path / 'mine.csv')
    assert [entry.label for entry in rules.examine(str(tmp_path / 'mine.csv')).entries] == [
        'a, b',
        'c',
        'c',
        '',
        'a, b',
        '',
    ]


def test_faults_of_a_table_are_found(folder):
    rows = 'path,label,split\ncat/0.png,a,train\ndog/0.png,b,\ncat/0.png,b,\n../secret.png,a,\n/etc/x.png,a,\n'
    (folder / 'labels.csv').write_text(rows + 'cat/none.png,a,\ncat/1.png,a,exam\ncat/2.png,a,\ncat/3.png,b,test\n')
    assert found(folder) == {
        'two rows': ('cat/0.png',),
        'outside': ('../secret.png', '/etc/x.png'),
        'missing': ('cat/none.png',),
        'no split': ('cat/1.png',),
        'untested class': ('a',),
    }
    used = {path for entries in parts(folder).values() for path, _ in entries}
    assert not used & {'cat/0.png', 'cat/1.png'}
    (folder / 'labels.csv').write_text('picture,label\n')
    with pytest.raises(UserError, match=r"labels.csv has no column 'path'"):
        examine(folder)


def test_a_table_of_pandas_or_windows_is_read(folder):
    (folder / 'labels.csv').write_text('\n,path,label\n0,cat\\0.png,a\n1,"dog/0.png",b\n')
    assert parts(folder)['train'] == [('cat/0.png', 'a'), ('dog/0.png', 'b')]
    (folder / 'labels.csv').write_text('path,label\ncat/0.png,"a\nb"\ndog/0.png,b\nowl/0.png,c\n')
    assert found(folder)['odd label'] == ('cat/0.png',)
    assert examine(folder).classes == ('b', 'c')


def test_a_folder_that_is_called_as_a_known_data_set_is_a_folder(folder, prepared):
    folder.rename(folder.with_name('mnist'))
    record = data_sets.get(f'{folder.with_name("mnist")}/')
    assert (record.classes, record.channels, record.known_labels) == (3, 3, -1)


# --- Faults, each alone in an otherwise sound folder


def damaged(folder):
    raw = (folder / 'cat/0.png').read_bytes()
    (folder / 'cat/0.png').write_bytes(raw[: len(raw) // 2])
    (folder / 'cat/1.png').write_bytes(b'')
    (folder / 'cat/2.png').write_text('<html>not found</html>')
    return {'unreadable': ('cat/0.png', 'cat/1.png', 'cat/2.png')}


def enormous(folder):
    Image.new('1', (10_001, 10_000)).save(folder / 'cat/0.png')
    return {'unreadable': ('cat/0.png',)}


def tiny(folder):
    write(folder / 'cat/0.png', 77, side=15)
    return {'tiny': ('cat/0.png',)}


def flat(folder):
    Image.new('RGB', (32, 32), 'gray').save(folder / 'cat/0.png')
    Image.new('RGB', (32, 32), 'white').save(folder / 'dog/0.png')  # not nearly the same as the other
    return {'flat': ('cat/0.png', 'dog/0.png')}


def wrong_suffix(folder):
    Image.fromarray(pixels(77)).save(folder / 'cat/0.png', 'JPEG')
    Image.fromarray(pixels(78)).save(folder / 'cat/picture', 'WEBP')
    return {'suffix': ('cat/0.png', 'cat/picture')}


def other_files(folder):
    (folder / 'cat/notes.txt').write_text('a cat')
    (folder / 'dog/IMG_1.HEIC').write_bytes(b'....ftypheic')
    (folder / '.ipynb_checkpoints').mkdir()
    write(folder / '.git/x.png', 80)
    write(folder / '__MACOSX/cat/x.png', 80)
    (folder / '.DS_Store').write_bytes(b'x')
    return {
        'other file': ('cat/notes.txt',),
        'foreign': ('dog/IMG_1.HEIC',),
        'hidden': ('.git/', '.ipynb_checkpoints/', '__MACOSX/'),
    }


def empty_class(folder):
    (folder / 'newt').mkdir()
    return {'empty class': ('newt/',)}


def spelling(folder):
    (folder / 'CAT ').mkdir()
    (folder / 'cat/0.png').rename(folder / 'CAT /0.png')
    composed, decomposed = (unicodedata.normalize(form, 'käfer') for form in ('NFC', 'NFD'))
    for i in range(9):
        write(folder / (composed if i < 5 else decomposed) / f'{i}.png', 60 + i)
    return {'spelling': ('CAT ', decomposed)}


def copies(folder):
    (folder / 'cat/copy of 0.png').write_bytes((folder / 'cat/0.png').read_bytes())
    return {'duplicate': ('cat/copy of 0.png',)}


def two_labels(folder):
    (folder / 'dog/x.png').write_bytes((folder / 'cat/0.png').read_bytes())
    return {'two labels': ('cat/0.png', 'dog/x.png')}


def near_copies(folder):
    image = Image.fromarray(pixels(0, 64))
    image.resize((40, 40)).save(folder / 'cat/again.jpg', quality=60)
    return {'near duplicate': ('cat/0.png',)}


def imbalance(folder):
    for i in range(60):
        write(folder / 'cat' / f'more {i}.png', 1000 + i)
    return {'imbalance': ('',)}


def single(folder):
    write(folder / 'newt/0.png', 77)
    return {'untested class': ('newt',)}


def sizes(folder):
    write(folder / 'cat/0.png', 77, side=128)
    return {'sizes': ('',)}


def links(folder):
    os.symlink(folder, folder / 'cat/all')
    os.symlink(folder / 'nothing.png', folder / 'cat/gone.png')
    os.symlink(folder / 'cat/itself.png', folder / 'cat/itself.png')
    return {'loop': ('cat/all/',), 'broken link': ('cat/gone.png', 'cat/itself.png')}


def names(folder):
    write(folder / 'cat/a\nb.png', 77)
    os.rename(folder / 'cat/0.png', os.path.join(os.fsencode(folder), b'cat/\xff.png'))
    return {'name': ('cat/a\nb.png', 'cat/\udcff.png')}


FAULTS = (damaged, enormous, tiny, flat, wrong_suffix, other_files, empty_class, spelling, copies, two_labels)
FAULTS += (near_copies, imbalance, single, sizes, links, names)


def state(folder):
    """Returns what is in a folder, without when it was read."""
    stats = {os.fsencode(path): path.stat(follow_symlinks=False) for path in folder.rglob('*')}
    return {path: (stat.st_mode, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_alone_reported_and_left_as_it_is(folder, fault, capsysbinary):
    expected = fault(folder)
    before = state(folder)
    assert found(folder) == expected
    status = check.main([f'{folder}/', '--fast'])
    text = capsysbinary.readouterr().out.decode()
    for kind, files in expected.items():
        assert rules.KINDS[kind].what in text
        check.main([f'{folder}/', '--fast', f'--files={kind}'])
        listed = capsysbinary.readouterr().out
        assert listed == b''.join(os.fsencode(file) + b'\n' for file in files)
    assert status == (fault in (two_labels,))
    check.main([f'{folder}/', '--fast', '--json'])
    report = json.loads(capsysbinary.readouterr().out)
    assert {f['kind']: tuple(f['files']) for f in report['findings'] if f['kind'] != 'held out'} == expected
    assert before == state(folder)


def test_splits_that_share_pictures_or_lack_classes_are_found(tmp_path, capsys):
    for i, path in enumerate(('train/a/1', 'train/a/2', 'train/b/1', 'test/a/1', 'test/c/1', 'valid/b/1', 'other/a/1')):
        write(tmp_path / f'{path}.png', i)
    write(tmp_path / 'test/loose.png', 20)
    (tmp_path / 'train/a/leak.png').write_bytes((tmp_path / 'test/a/1.png').read_bytes())
    (tmp_path / 'unlabeled').mkdir()
    (tmp_path / 'unlabeled/leak.png').write_bytes((tmp_path / 'valid/b/1.png').read_bytes())
    Image.fromarray(pixels(3)).resize((40, 40)).save(tmp_path / 'train/a/near.jpg')
    assert found(tmp_path) == {
        'leak': ('train/a/leak.png', 'unlabeled/leak.png'),
        'untrained class': ('test/c/1.png',),
        'no split': ('other/a/1.png',),
        'no class': ('test/loose.png',),
        'near leak': ('train/a/near.jpg',),
        'untested class': ('b',),
    }
    assert check.main([f'{tmp_path}/', '--fast']) == 1
    assert [path for path, _ in parts(tmp_path)['train']] == [
        f'train/{p}' for p in ('a/1.png', 'a/2.png', 'a/near.jpg', 'b/1.png')
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_what_may_not_be_read_is_found(folder):
    (folder / 'cat/0.png').chmod(0)
    assert found(folder)['unreadable'] == ('cat/0.png',)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda folder: None, 'no picture can be read'),
        (lambda folder: [write(folder / 'cat' / f'{i}.png', i) for i in range(5)], 'fewer than two classes'),
        (lambda folder: [write(folder / c / '0.png', i) for i, c in enumerate('ab')], 'no picture is left for testing'),
    ],
)
def test_where_no_training_is_possible_a_run_says_why_and_prepares_nothing(tmp_path, make, message, capsys):
    (tmp_path / 'photos').mkdir()
    make(tmp_path / 'photos')
    with pytest.raises(UserError, match=message):
        datasets.load(f'{tmp_path}/photos/', 'train', str(tmp_path / 'prepared'), 8)
    assert not (tmp_path / 'prepared').exists()
    assert check.main([f'{tmp_path}/photos/', '--fast']) == 1
    assert message in capsys.readouterr().out


def test_a_folder_that_does_not_exist_is_an_error(tmp_path, capsys):
    with pytest.raises(UserError, match='There is no folder'):
        datasets.load(f'{tmp_path}/photos/', 'train', str(tmp_path))
    assert check.main([f'{tmp_path}/photos/', '--fast']) == 2
    assert 'There is no folder' in capsys.readouterr().err


# --- Runs


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Returns the folder where data sets are prepared."""
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'prepared'))
    return tmp_path / 'prepared'


def test_a_prepared_folder_has_its_pictures_and_labels(folder, prepared):
    write(folder / 'unlabeled' / 'x.png', 99)
    entries = parts(folder)
    for split in ('train', 'test', 'unlabeled'):
        arrays = datasets.load(f'{folder}/', split, size=16)
        assert arrays.class_names == ('cat', 'dog', 'owl')
        expected = {
            decoding.decode((folder / path).read_bytes(), 'RGB', (16, 16)).tobytes(): label
            for path, label in entries[split]
        }
        names = [arrays.class_names[label] if label >= 0 else '' for label in arrays.labels]
        assert {image.tobytes(): name for image, name in zip(arrays.images, names, strict=True)} == expected
    assert len(list((prepared / 'pictures').iterdir())) == 1


def test_a_run_uses_every_part_and_does_not_go_on_with_other_pictures(
    folder, prepared, make_settings, tmp_path, capsys
):
    for i in range(3):
        write(folder / 'unlabeled' / f'{i}.png', 90 + i)
        write(folder / 'val' / 'cat' / f'{i}.png', 95 + i)
        write(folder / 'test' / 'dog' / f'{i}.png', 100 + i)
    (folder / 'cat' / 'broken.png').write_bytes(b'')
    settings = make_settings('fixmatch', f'{folder}/', steps=4, eval_steps=4, **{'data.image_size': 16})
    result = run.run(settings, tmp_path / 'run')
    assert 'fixmatch + supervised on' in (text := capsys.readouterr().out)
    assert '15 labeled, 18 unlabeled, 3 test images' in text
    assert result['test_accuracy']['selected'] is not None  # by the validation part
    assert data_sets.assumed(settings).startswith(
        f'{folder}/ (3 classes, RGB; 15 train, 3 validation, 3 test, 3 unlabeled; 1 left out)'
    )
    assert run.run(settings, tmp_path / 'run') == result
    write(folder / 'cat' / '0.png', 200)
    with pytest.raises(UserError, match=f'Pictures of {folder}/ have changed since'):
        run.run(settings, tmp_path / 'run')
    assert run_folder.default(settings).name.startswith('fixmatch+supervised-photos--1-')


def test_a_folder_without_its_slash_is_suggested(folder, prepared, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match=r"If you mean the folder, write 'photos/'"):
        datasets.load('photos', 'train')


# --- Which pictures stay together


def test_versions_of_a_picture_are_on_one_side(tmp_path):
    for c in range(2):
        for i in range(12):
            write(tmp_path / f'{c}' / f'{i}.png', 40 * c + i)
            write(tmp_path / f'{c}' / f'{i} (1).png', 1000 + 40 * c + i)  # by its name
            Image.fromarray(pixels(40 * c + i)).save(
                tmp_path / f'{c}' / f'unnamed {i}x.jpg', quality=50
            )  # by its looks
    sides = {}
    for split, entries in parts(tmp_path).items():
        for path, label in entries:
            number = path.split('/')[1].removeprefix('unnamed ').split('.')[0].removesuffix('x').split(' ')[0]
            sides.setdefault((label, number), set()).add(split)
    assert len(sides) == 24
    assert all(len(splits) == 1 for splits in sides.values())
    tests = [path for path, _ in parts(tmp_path)['test']]
    assert 10 <= len(tests) <= 14  # a fifth of 72


def test_numbered_files_of_a_class_are_not_versions_of_one_picture(folder):
    for name in ('cat', 'dog', 'owl'):
        for i in range(5):
            (folder / name / f'{i}.png').rename(folder / name / f'{name} ({i + 1}).png')
    assert len(parts(folder)['test']) == 3


def test_where_many_are_alike_a_fifth_is_held_out_all_the_same(tmp_path):
    # As digits or X-rays: a chain of pictures, each nearly the same as the one before.
    for c in range(2):
        first, last = pixels(2 * c).astype(float), pixels(2 * c + 1).astype(float)
        for i in range(40):
            (tmp_path / str(c)).mkdir(exist_ok=True)
            mixed = np.uint8(first + i / 39 * (last - first))
            Image.fromarray(mixed).save(tmp_path / str(c) / f'{i}.png')
    pictures = examine(tmp_path)
    tested = [entry.label for entry in pictures.entries if entry.split == 'test']
    assert 4 <= tested.count('0') <= 8
    assert 4 <= tested.count('1') <= 8


def test_a_group_over_classes_takes_no_more_of_each_than_a_fifth():
    entries = [Entry(f'{c}{i}', c, 'train') for c in 'ab' for i in range(10)]
    groups = [0, 0, *range(2, 10), *[0] * 9, 19]
    held = rules.hold_out(entries, groups, [f'{i}' for i in range(20)])
    assert sum(entries[i].label == 'a' for i in held) == 2
    assert sum(entries[i].label == 'b' for i in held) <= 2


def test_near_pairs_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 700, np.uint64)
    hashes[::7] = hashes[1::7] ^ np.uint64(0b1011)
    expected = [
        (i, j)
        for i in range(700)
        for j in range(i + 1, 700)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= inspection.NEAR
    ]
    assert inspection.near_pairs(hashes).tolist() == [list(pair) for pair in expected]
    assert len(expected) >= 100


# --- Decoding


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


RGB = Image.fromarray(pixels(5))


@pytest.mark.parametrize('form', ['PNG', 'BMP', 'TIFF', 'WEBP', 'GIF', 'JPEG'])
def test_formats_are_decoded(form):
    exact = form in ('PNG', 'BMP', 'TIFF', 'WEBP')
    image = decoding.decode(encoded(RGB, form, **({'lossless': True} if form == 'WEBP' else {})))
    assert image.mode == 'RGB'
    difference = np.abs(np.asarray(image, float) - pixels(5)).mean()
    assert difference == 0 if exact else difference < 12


def test_a_phones_picture_is_turned_as_its_exif_data_say():
    exif = Image.Exif()
    exif[0x0112] = 6  # the right side of what was photographed is at the top
    image = decoding.decode(encoded(Image.fromarray(pixels(5)[:20]), 'PNG', exif=exif))
    assert np.array_equal(np.asarray(image), np.rot90(pixels(5)[:20], -1))


def test_of_frames_the_first_is_taken():
    raw = encoded(Image.new('L', (20, 20), 50), 'GIF', save_all=True, append_images=[Image.new('L', (20, 20), 250)])
    assert np.asarray(decoding.decode(raw)).max() == 50


def test_what_is_transparent_is_white():
    alpha = np.full((32, 32, 1), 255, np.uint8)
    alpha[:10] = 0
    image = np.asarray(decoding.decode(encoded(Image.fromarray(np.concatenate([pixels(5), alpha], -1)), 'PNG')))
    assert (image[:10] == 255).all()
    assert np.array_equal(image[10:], pixels(5)[10:])
    palette = Image.new('P', (20, 20), 1)
    palette.putpalette([0, 0, 0, 200, 100, 0])
    assert np.asarray(decoding.decode(encoded(palette, 'PNG')))[0, 0].tolist() == [200, 100, 0]
    assert np.asarray(decoding.decode(encoded(palette, 'PNG', transparency=1)))[0, 0].tolist() == [255, 255, 255]


def test_gray_cmyk_and_deep_pictures_are_eight_bits_rgb():
    gray = pixels(5)[..., 0]
    assert np.array_equal(np.asarray(decoding.decode(encoded(Image.fromarray(gray), 'PNG'))), np.stack([gray] * 3, -1))
    deep = gray.astype(np.uint16) * 256 + 17
    assert np.array_equal(np.asarray(decoding.decode(encoded(Image.fromarray(deep), 'PNG'), 'L')), gray)
    dark = Image.fromarray(np.full((20, 20), 200, np.uint16))
    assert np.asarray(decoding.decode(encoded(dark, 'PNG'))).max() == 0
    unit = gray.astype(np.float32) / 255
    assert np.abs(np.asarray(decoding.decode(encoded(Image.fromarray(unit), 'TIFF'), 'L'), int) - gray).max() <= 1
    cmyk = np.asarray(decoding.decode(encoded(RGB.convert('CMYK'), 'TIFF')), int)
    assert np.abs(cmyk - pixels(5)).max() <= 2


def test_a_large_jpeg_is_decoded_at_less_than_its_size_and_looks_the_same():
    raw = encoded(Image.fromarray(pixels(5, 512)), 'JPEG', quality=95)
    whole = decoding.decode(raw).resize((32, 32), Image.Resampling.BILINEAR)
    small = decoding.decode(raw, 'RGB', (32, 32))
    assert np.abs(np.asarray(whole, int) - np.asarray(small, int)).mean() < 2
