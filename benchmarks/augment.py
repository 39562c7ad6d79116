"""Times the augmentation of 32x32x3 images, ours inside a compiled function and PIL's on one core.

    python -m benchmarks.augment [--batch_size=448] [--rounds=15]

A pair is one weak and one strong view of an image, draws included. Ours runs like a training step: the batch is
split over all devices, and a CPU counts as one device per core. PIL runs the google policy on one core, as a
loader's worker would. Each figure is the median over the rounds, which alternate between the contestants.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from data import augment
from train import mesh as mesh_lib

SIZE = 32


def ours(protocol: str, batch_size: int) -> tuple[Callable[[], object], int]:
    """Returns a function that makes pairs with our code, and how many it makes in a call."""
    views = [augment.Weak(flip=True, pad=4), augment.Strong(flip=True, pad=4, protocol=protocol)]
    mesh = mesh_lib.create(batch_size)
    images = mesh_lib.put_batch(mesh, photographs(batch_size))

    @jax.jit
    def pairs(step, images):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), len(views))
        draws = [view.draw(key, images.shape) for key, view in zip(keys, views, strict=True)]
        batch = jax.P('data')
        return [
            jax.shard_map(view.apply, in_specs=batch, out_specs=batch)(draw, images)
            for view, draw in zip(views, draws, strict=True)
        ]

    steps = iter(range(10**9))
    repeats = 10

    def run():
        with jax.set_mesh(mesh):
            for _ in range(repeats):
                result = pairs(next(steps), images)
            jax.block_until_ready(result)

    return run, repeats * batch_size


def pil(pairs: int) -> tuple[Callable[[], object], int]:
    """Returns a function that makes pairs of the google policy with PIL, and how many it makes in a call."""
    images = photographs(pairs)

    def run():
        for image in images:
            np.asarray(pil_weak(Image.fromarray(image)), np.float32) / 255
            pil_strong(Image.fromarray(image))

    return run, pairs


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
    for name in random.choices(list(PIL_OPS), k=2):
        if random.random() < 0.5:
            image = PIL_OPS[name](image, random.randint(1, 9))
    pixels = np.asarray(image)
    result = np.where(pixels[..., 3:] > 0, pixels[..., :3] / np.float32(255), np.float32(0.5))
    y, x = random.randrange(SIZE), random.randrange(SIZE)
    result[max(y - 8, 0) : y + 8, max(x - 8, 0) : x + 8] = 0.5
    return result


def _signed(value: float) -> float:
    return random.choice((-value, value))


def _affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _enhance(enhancement):
    return lambda image, level: enhancement(image).enhance(0.18 * level + 0.1)


def _flat(function):
    return lambda image, level: function(image.convert('RGB'), level).convert('RGBA')


PIL_OPS = {
    'AutoContrast': _flat(lambda image, level: ImageOps.autocontrast(image)),
    'Brightness': _enhance(ImageEnhance.Brightness),
    'Color': _enhance(ImageEnhance.Color),
    'Contrast': _enhance(ImageEnhance.Contrast),
    'Equalize': _flat(lambda image, level: ImageOps.equalize(image)),
    'Identity': lambda image, level: image,
    'Posterize': _flat(lambda image, level: ImageOps.posterize(image, 4 - level * 4 // 10)),
    'Rotate': lambda image, level: image.rotate(_signed(3 * level)),
    'Sharpness': _enhance(ImageEnhance.Sharpness),
    'ShearX': lambda image, level: _affine(image, 1, _signed(0.03 * level), 0, 0, 1, 0),
    'ShearY': lambda image, level: _affine(image, 1, 0, 0, _signed(0.03 * level), 1, 0),
    'Solarize': _flat(lambda image, level: ImageOps.solarize(image, 256 - level * 256 // 10)),
    'TranslateX': lambda image, level: _affine(image, 1, 0, _signed(level), 0, 1, 0),
    'TranslateY': lambda image, level: _affine(image, 1, 0, 0, 0, 1, _signed(level)),
}


def photographs(count: int) -> np.ndarray:
    """Returns smooth random pictures, uint8 [count, H, W, 3]; noise would flatter no one but is no photograph."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 5, 5, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for c in coarse])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--batch_size', type=int, default=448)
    parser.add_argument('--rounds', type=int, default=15)
    args = parser.parse_args()
    mesh_lib.configure()
    contestants = {
        'ours, google': ours('google', args.batch_size),
        'ours, torchssl': ours('torchssl', args.batch_size),
        'PIL, google, one core': pil(256),
    }
    rates = {name: [] for name in contestants}
    for name, (run, _) in contestants.items():
        started = time.perf_counter()
        run()
        print(f'# first call of {name}: {time.perf_counter() - started:.2f} s, compilation included')
    for _ in range(args.rounds):
        for name, (run, count) in contestants.items():
            started = time.perf_counter()
            run()
            rates[name].append(count / (time.perf_counter() - started))
    peer = statistics.median(rates['PIL, google, one core'])
    devices = jax.devices()
    print(f'{len(devices)} x {devices[0].device_kind}, batch {args.batch_size}, {SIZE}x{SIZE}x3')
    print(f'{"":24}{"pairs/s":>10}{"lowest":>10}{"highest":>10}{"x PIL":>8}')
    for name, values in rates.items():
        median = statistics.median(values)
        print(f'{name:24}{median:10,.0f}{min(values):10,.0f}{max(values):10,.0f}{median / peer:8.1f}')


if __name__ == '__main__':
    main()
