"""What happens with a faulty folder of pictures: here, in torchvision's ImageFolder, and in Keras.

    python -m benchmarks.folders --python=PATH       a Python with torchvision and tensorflow

Every fault is made in a folder of two classes, in training and testing. The others get train/ and test/, read every
picture, and say how many of which classes there are, with the number of each class.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from data.pictures import rules
from errors import UserError, first_line

OTHERS = {
    'torchvision': """
import json, sys
from torchvision.datasets import ImageFolder
for part in sys.argv[1:]:
    try:
        data = ImageFolder(part)
        for image, label in data: pass
        print(json.dumps([len(data), data.class_to_idx, list(data[0][0].size)]))
    except Exception as error: print(json.dumps(f'{type(error).__name__}: {error}'))
""",
    'Keras': """
import json, sys
from keras.utils import image_dataset_from_directory
for part in sys.argv[1:]:
    try:
        data = image_dataset_from_directory(part, batch_size=1, verbose=False)
        count = sum(1 for batch in data)
        print(json.dumps([count, {name: i for i, name in enumerate(data.class_names)}, None]))
    except Exception as error: print(json.dumps(f'{type(error).__name__}: {error}'))
""",
}


def picture(seed: int) -> Image.Image:
    """Returns a picture unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


def sound(folder: pathlib.Path) -> None:
    """Writes a folder without a fault: two classes, four pictures each for training and two for testing."""
    for i, (part, count) in enumerate((('train', 4), ('test', 2))):
        for j, name in enumerate(('cat', 'dog')):
            (folder / part / name).mkdir(parents=True)
            for k in range(count):
                picture(100 * i + 10 * j + k).save(folder / part / name / f'{k}.png')


def _damaged(folder: pathlib.Path) -> None:
    path = folder / 'train/cat/0.png'
    path.write_bytes(path.read_bytes()[:500])


def _turned(folder: pathlib.Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(7).save(folder / 'train/cat/0.jpg', exif=exif)


def _hidden(folder: pathlib.Path) -> None:
    shutil.copytree(folder / 'train/cat', folder / 'train/.ipynb_checkpoints')


def _only_tested(folder: pathlib.Path) -> None:
    (folder / 'test/ant').mkdir()
    picture(300).save(folder / 'test/ant/0.png')


def _renamed(folder: pathlib.Path) -> None:
    (folder / 'test/dog').rename(folder / 'test/Dog')


def _no_test(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / 'test')


FAULTS: dict[str, Callable[[pathlib.Path], object]] = {
    'none': lambda folder: None,
    'a damaged picture': _damaged,
    'an empty file': lambda folder: (folder / 'train/cat/0.png').write_bytes(b''),
    'a text file called .jpg': lambda folder: (folder / 'train/cat/0.jpg').write_text('not found'),
    'a class without pictures': lambda folder: (folder / 'train/bird').mkdir(),
    'a hidden folder': _hidden,
    'a class that only testing has': _only_tested,
    'a class in other case': _renamed,
    'testing called validation': lambda folder: (folder / 'test').rename(folder / 'validation'),
    'no test part': _no_test,
    'a test picture in training': lambda folder: shutil.copy(folder / 'test/cat/0.png', folder / 'train/cat/9.png'),
    'a picture in two classes': lambda folder: shutil.copy(folder / 'train/cat/0.png', folder / 'train/dog/9.png'),
    'a picture turned by EXIF': _turned,
}


def ours(folder: pathlib.Path) -> str:
    """Returns what a run here would use, and what it would say."""
    try:
        found = rules.usable(f'{folder}/')
    except UserError as error:
        return f'stops: {error}'
    return '; '.join([rules.summary(found), *map(rules.line, found.findings)])


def other(name: str, python: str, folder: pathlib.Path) -> str:
    """Returns what another library makes of the parts train and test."""
    command = [python, '-c', OTHERS[name], str(folder / 'train'), str(folder / 'test')]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return first_line(Exception(done.stderr[-200:]))
    cells = []
    for part, line in zip(('train', 'test'), done.stdout.splitlines()[-2:], strict=True):
        found = json.loads(line)
        if isinstance(found, str):
            cells.append(f'{part}: {found.replace(str(folder), "")[:120]}')
        else:
            count, classes, size = found
            shape = ' x '.join(map(str, size)) if size else ''
            cells.append(f'{part}: {count} of {classes}' + f', the first {shape}' * bool(size))
    return '; '.join(cells)


def main(args: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        'python -m benchmarks.folders', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--python', default='', metavar='PATH', help='with the other libraries; without it, only ours')
    flags = parser.parse_args(args)
    names = list(OTHERS) if flags.python else []
    print(f'| fault | here | {" | ".join(names)} |\n|{"---|" * (2 + len(names))}')
    for fault, make in FAULTS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name, 'photos')
            sound(folder)
            make(folder)
            cells = [fault, ours(folder), *(other(library, flags.python, folder) for library in names)]
            print(f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |', flush=True)


if __name__ == '__main__':
    sys.exit(main())
