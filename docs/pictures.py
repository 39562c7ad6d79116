"""Draws the pictures of README.md from the code, from results/ and from prepared emoji.

    python -m docs.pictures

picture.png, left: the views that FixMatch learns from, of digits and of photographs. Right: the test accuracy during
the runs of the digits table, FixMatch beside supervised training.

emoji.png: the same emoji in four styles, where they are prepared (`python -m data.prepare emoji/noto`, ...).
"""

import json
import pathlib

import jax
import matplotlib
import numpy as np
import skimage.data
from matplotlib import pyplot as plt
from PIL import Image

from configs import fixmatch
from data import augment, datasets
from errors import UserError
from methods.base import STRONG, STRONG2, WEAK
from train.settings import Settings, from_config
from train.trainer import stream_key

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = ROOT / 'docs' / 'picture.png'
EMOJI = ROOT / 'docs' / 'emoji.png'
STYLES = ('noto', 'twemoji', 'openmoji', 'fluent_high_contrast')
PHOTOGRAPHS = ('chelsea', 'coffee', 'rocket')  # of scikit-image; all three are free of copyright
SIDE = 96  # pixels of a photograph, those of STL-10
LABELS = '20 labels'
CURVES = {'FixMatch': 'C0', 'Supervised': 'C1'}


def views(settings: Settings, images: np.ndarray, step: int = 0) -> dict[str, np.ndarray]:
    """Returns images and their augmented views as the step of a run makes them.

    Args:
        settings: of the run; its data.weak and data.strong are used.
        images: uint8 `[N, H, W, C]`.
        step: the step of the run, which the random draws depend on.

    Returns:
        {title: `[N, H, W, C]` in [0, 1]}: the images, one weak view and two strong ones.
    """
    weak = augment.Weak(**settings.data.weak)
    strong = augment.Strong(**{**settings.data.weak, **settings.data.strong})
    pictures = {'image': images / 255}
    for augmentation, titles in ((weak, {WEAK: 'weak'}), (strong, {STRONG: 'strong', STRONG2: 'strong again'})):
        apply = jax.jit(augmentation.apply)
        for view, title in titles.items():
            draws = augmentation.draw(stream_key(settings.seed, str(view), step), images.shape)
            pictures[title] = np.asarray(apply(draws, images))
    return pictures


def photographs() -> np.ndarray:
    """Returns the middle square of each photograph, uint8 `[N, SIDE, SIDE, 3]`."""
    squares = []
    for name in PHOTOGRAPHS:
        photograph = getattr(skimage.data, name)()
        height, width, _ = photograph.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = Image.fromarray(photograph[top : top + side, left : left + side])
        squares.append(np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX)))
    return np.stack(squares)


def show(axis: plt.Axes, image: np.ndarray) -> None:
    """Shows one image `[H, W, C]` in [0, 1] without ticks; gray ones as ink on paper."""
    axis.imshow(image if image.shape[-1] == 3 else 1 - image[..., 0], cmap='gray', vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_color('0.8')


def draw_curves(axis: plt.Axes) -> None:
    """Draws the accuracy curves of CURVES from results/digits: the mean over the seeds, and their range."""
    table = json.loads((ROOT / 'results' / 'digits' / 'table.json').read_text())
    for cell in table['cells']:
        if cell['column'] != LABELS or cell['row'] not in CURVES:
            continue
        curves = np.array([run['curves']['test_accuracy'] for run in cell['runs']])  # [seeds, evaluations, 2]
        steps, accuracy = curves[0, :, 0], 100 * curves[:, :, 1]
        color = CURVES[cell['row']]
        axis.plot(steps, accuracy.mean(0), color=color)
        axis.fill_between(steps, accuracy.min(0), accuracy.max(0), color=color, alpha=0.2, linewidth=0)
        axis.text(steps[-1], accuracy.mean(0)[-1] - 3, cell['row'], color=color, ha='right', va='top')
        seeds = len(curves)
    axis.set(title=f'digits, {LABELS}: mean and range of {seeds} seeds', xlabel='step', ylim=(40, 100))
    axis.set_ylabel('test accuracy in %')
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(axis='y', alpha=0.3)


def draw_emoji() -> Image.Image:
    """Returns an emoji of each class, each in a column, in every style, each in a row."""
    rows = []
    for style in STYLES:
        arrays = datasets.load(f'emoji/{style}', 'train')  # in the same order for all styles
        _, first = np.unique(arrays.labels, return_index=True)
        rows.append(np.concatenate(arrays.images[first], axis=1))
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    """Writes the pictures."""
    matplotlib.use('agg')
    digits = datasets.load('digits', 'train').images[10:13]
    columns = []
    for settings, images in (('digits', digits), ('stl10', photographs())):
        columns.append(views(from_config(fixmatch.get_config(settings)), images))
    plt.rcParams.update({'font.size': 9, 'axes.titlesize': 9})
    figure = plt.figure(figsize=(10, 3.4), layout='constrained')
    left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1))
    axes = left.subplots(len(columns[0]), sum(len(part['image']) for part in columns))
    for row, title in zip(axes, columns[0], strict=True):
        images = [image for part in columns for image in part[title]]
        row[0].set_ylabel(title, rotation=0, ha='right', va='center')
        for axis, image in zip(row, images, strict=True):
            show(axis, image)
    draw_curves(right.subplots())
    figure.savefig(PICTURE, dpi=100)
    pictures = [PICTURE]
    try:
        draw_emoji().save(EMOJI, optimize=True)
        pictures.append(EMOJI)
    except UserError as error:
        print(f'{EMOJI} is left as it is: {error}')
    for path in pictures:
        print(f'{path}: {path.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
