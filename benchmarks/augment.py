"""Times the augmentation of 32x32x3 images: ours, compiled and on all devices, and PIL's, on one core.

    python -m benchmarks.augment [--batch_size=448] [--rounds=15]

A pair is one weak and one strong or distorted view of an image, random draws included. Ours runs as in a training step:
the batch is split over all devices, of which a CPU has one per core. PIL runs the google policy, or torchvision's steps
for a distorted view, as a loader's worker would. In each round the contestants run in random order; figures are medians
over the rounds, each beside PIL's of the same view (for torchssl: google's).
"""

import argparse
import functools
import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from benchmarks import rounds
from data import augment
from train import mesh as mesh_lib

SIZE = 32
PIL_IMAGES = 256  # in a call
REPEATS = 10  # of our batch in a call


def ours(view: augment.Strong | augment.Distorted, batch_size: int) -> tuple[Callable[[], object], int]:
    """Compiles our code.

    Args:
        view: Beside the weak one.
        batch_size: Images in a batch.

    Returns:
        A function that makes pairs, and how many it makes in one call.
    """
    views = [augment.Weak(flip=True, pad=4), view]
    mesh = mesh_lib.create(batch_size)
    images = mesh_lib.put_batch(mesh, pictures(batch_size))

    @jax.jit
    def augmented(step, images):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), len(views))
        return [
            jax.shard_map(view.apply, mesh=mesh, in_specs=jax.P('data'), out_specs=jax.P('data'))(
                view.draw(key, images.shape), images
            )
            for view, key in zip(views, keys, strict=True)
        ]

    steps = itertools.count()

    def run():
        for _ in range(REPEATS):
            pairs = augmented(next(steps), images)
        jax.block_until_ready(pairs)

    return run, REPEATS * batch_size


def pil(view: Callable[[Image.Image], np.ndarray], count: int) -> tuple[Callable[[], object], int]:
    """Returns a function that makes `count` pairs of the weak and another view with PIL, and that count."""
    images = pictures(count)

    def run():
        for image in images:
            np.asarray(pil_weak(Image.fromarray(image)), np.float32) / 255
            view(Image.fromarray(image))

    return run, count


def pil_weak(image: Image.Image) -> Image.Image:
    """Returns an image mirrored with probability 1/2, reflect-padded by 4 pixels and cropped back."""
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode='reflect')
    top, left = random.randint(0, 8), random.randint(0, 8)
    return Image.fromarray(padded[top : top + SIZE, left : left + SIZE])


def pil_strong(image: Image.Image) -> np.ndarray:
    """Returns the google policy's view of an image, float32 [H, W, C] in [0, 1]."""
    image = pil_weak(image).convert('RGBA')
    for operation in random.choices(PIL_OPERATIONS, k=2):
        if random.random() < 0.5:
            image = operation(image, random.randint(1, 9))
    pixels = np.asarray(image)
    result = np.where(pixels[..., 3:] > 0, pixels[..., :3] / np.float32(255), np.float32(0.5))
    y, x = random.randrange(SIZE), random.randrange(SIZE)
    result[max(y - 8, 0) : y + 8, max(x - 8, 0) : x + 8] = 0.5
    return result


def pil_distorted(image: Image.Image) -> np.ndarray:
    """Returns the view of an image with the defaults of `data.augment.Distorted`, float32 [H, W, C] in [0, 1]."""
    for _ in range(10):
        area, ratio = random.uniform(0.2, 1) * SIZE**2, (4 / 3) ** random.uniform(-1, 1)
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if max(width, height) <= SIZE:
            break
    else:
        width = height = SIZE
    left, top = random.randint(0, SIZE - width), random.randint(0, SIZE - height)
    image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
    if random.random() < 0.8:
        for change in random.sample(PIL_JITTER, k=4):
            image = change(image)
    if random.random() < 0.2:
        image = image.convert('L').convert('RGB')
    return np.asarray(image, np.float32) / 255


def _shift_hue(image):
    hue, saturation, value = image.convert('HSV').split()
    shift = np.array(255 * random.uniform(-0.1, 0.1)).astype(int).astype(np.uint8)
    return Image.merge('HSV', (Image.fromarray(np.asarray(hue) + shift), saturation, value)).convert('RGB')


def _jitter(enhancement):
    return lambda image: enhancement(image).enhance(random.uniform(0.6, 1.4))


PIL_JITTER = (
    *map(_jitter, (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)),
    _shift_hue,
)


def _signed(value):
    return random.choice((-value, value))


def _affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _enhance(enhancement):
    return lambda image, level: enhancement(image).enhance(0.18 * level + 0.1)


def _flat(function):
    return lambda image, level: function(image.convert('RGB'), level).convert('RGBA')


PIL_OPERATIONS = (
    lambda image, level: image,
    lambda image, level: image.rotate(_signed(3 * level)),
    lambda image, level: _affine(image, 1, _signed(0.03 * level), 0, 0, 1, 0),
    lambda image, level: _affine(image, 1, 0, 0, _signed(0.03 * level), 1, 0),
    lambda image, level: _affine(image, 1, 0, _signed(level), 0, 1, 0),
    lambda image, level: _affine(image, 1, 0, 0, 0, 1, _signed(level)),
    _flat(lambda image, level: ImageOps.autocontrast(image)),
    _flat(lambda image, level: ImageOps.equalize(image)),
    _flat(lambda image, level: ImageOps.posterize(image, 4 - level * 4 // 10)),
    _flat(lambda image, level: ImageOps.solarize(image, 256 - level * 256 // 10)),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Sharpness),
)


def pictures(count: int) -> np.ndarray:
    """Returns smooth random pictures, uint8 [count, H, W, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 5, 5, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(picture).resize((SIZE, SIZE))) for picture in coarse])


def rate(run: Callable[[], object], pairs: int) -> float:
    """Returns how many pairs a second `run` makes, which makes `pairs` in one call."""
    start = time.perf_counter()
    run()
    return pairs / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch_size', type=int, default=448, help='images in a call (default: 448)')
    parser.add_argument('--rounds', type=int, default=15, help='measured rounds (default: 15)')
    args = parser.parse_args(arguments)
    mesh_lib.configure()
    google, distorted = 'PIL google, one core', 'PIL distorted, one core'
    peers = {'ours distorted': distorted, distorted: distorted}  # of the others: google
    contestants = {
        'ours google': functools.partial(rate, *ours(augment.Strong(), args.batch_size)),
        'ours torchssl': functools.partial(rate, *ours(augment.Strong(protocol='torchssl'), args.batch_size)),
        'ours distorted': functools.partial(rate, *ours(augment.Distorted(), args.batch_size)),
        google: functools.partial(rate, *pil(pil_strong, PIL_IMAGES)),
        distorted: functools.partial(rate, *pil(pil_distorted, PIL_IMAGES)),
    }
    for contestant in contestants.values():
        contestant()  # compiles
    rates = rounds.measure(contestants, args.rounds)
    devices = jax.devices()
    print(f'{len(devices)} x {devices[0].device_kind}, batch {args.batch_size}, {SIZE}x{SIZE}x3')
    print(f'{"pairs/s":24}{"median":>10}{"lowest":>10}{"highest":>10}{"x PIL":>8}')
    for name, values in rates.items():
        median = statistics.median(values)
        ratio = median / statistics.median(rates[peers.get(name, google)])
        print(f'{name:24}{median:10,.0f}{min(values):10,.0f}{max(values):10,.0f}{ratio:8.1f}')


if __name__ == '__main__':
    main()
