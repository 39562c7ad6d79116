"""Writes the network of a finished run for other programs, and proves that it is the same.

    python -m deploy.export runs/NAME --to=onnx             runs/NAME/export/onnx/: model.onnx and what belongs to it
    python -m deploy.export runs/NAME --to=tflite-int8 --size=480x640

The model takes uint8 pictures `[N, H, W, C]` and gives `logits` and `probabilities`; preprocessing is part of it. It is
run on the run's test images in its own runtime, in another process, and compared with JAX. If it differs by more than
its format allows, nothing is written and the exit status is 1. Needs packages of its own, in an environment of their
own: pip install -r requirements-deploy.txt; savedmodel also needs tensorflow-cpu.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from data.pictures import folder as pictures
from deploy import finished
from deploy.finished import Finished
from errors import UserError
from models import conv
from models.files import sha256
from train import mesh
from train.streams import Streams

OUTPUTS = ['logits', 'probabilities']
COMPARED = 1000  # images at most, test images first
MAX_PIXELS = 4_000_000  # of --size: images of that size are compared
CALIBRATED = 100  # training images that quantisation learns ranges from
REFERENCES = 16  # images that stand beside the model
RUNTIMES = pathlib.Path(__file__).parent / 'runtimes'


@dataclasses.dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        suffix: Of the file or folder.
        labels: Least share of the images with the same label.
        difference: Largest difference of a logit, as a share of the range of all logits; 0 for no limit.
        accuracy: Largest loss of accuracy on the test images; 1 for no limit.
        quantise: Name of a function of `tflite_writer`, '' for none.
        packages: What pip is to install for it.
    """

    suffix: str
    labels: float = 1.0
    difference: float = 1e-4
    accuracy: float = 1.0
    quantise: str = ''
    packages: str = '-r requirements-deploy.txt'


FORMATS = {
    'stablehlo': Format('stablehlo'),
    'onnx': Format('onnx'),
    'tflite': Format('tflite'),
    'tflite-float16': Format('tflite', labels=0.995, difference=0, quantise='float16'),
    'tflite-dynamic': Format('tflite', labels=0.99, difference=0, quantise='dynamic'),
    'tflite-int8': Format('tflite', labels=0.98, difference=0, accuracy=0.01, quantise='static'),
    'savedmodel': Format('savedmodel', packages='tensorflow-cpu'),
}


def function(run: Finished, size: tuple[int, int] | None = None) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns the function that is exported: pictures, uint8 `[N, H, W, C]`, to logits and probabilities.

    Args:
        run: The finished run.
        size: (H, W) of pictures that are resized first, as they were for training; None for those of the run.
    """

    def forward(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        if size and size != run.image_shape[:2]:
            shape = (images.shape[0], *run.image_shape)
            # Pillow, which resizes for training, rounds.
            images = jnp.round(jax.image.resize(images.astype(jnp.float32), shape, 'linear'))
        logits = run.forward(images)['logits']
        return logits, jax.nn.softmax(logits)

    return forward


def write(run: Finished, kind: str, size: tuple[int, int] | None, images: np.ndarray, path: pathlib.Path) -> None:
    """Writes the model.

    Args:
        run: The finished run.
        kind: One of FORMATS.
        size: As for `function`.
        images: Training images, for quantisation.
        path: The file, or the folder of a SavedModel.

    Raises:
        UserError: A package is missing, or the network cannot be written in the format.
    """
    forward, shape = function(run, size), (*(size or run.image_shape[:2]), run.image_shape[2])
    form = FORMATS[kind]
    try:
        if form.suffix in ('stablehlo', 'savedmodel'):
            (batch,) = jax.export.symbolic_shape('N')
            with conv.traced_as('portable'):
                exported = jax.export.export(jax.jit(forward), platforms=('cpu', 'cuda', 'tpu'))(
                    jax.ShapeDtypeStruct((batch, *shape), np.uint8)
                )
            if form.suffix == 'savedmodel':
                from deploy import savedmodel_writer

                savedmodel_writer.write(exported, OUTPUTS, path)
            else:
                path.write_bytes(exported.serialize())
        elif form.suffix == 'onnx':
            from deploy import onnx_writer

            with conv.traced_as('plain'):
                path.write_bytes(onnx_writer.write(forward, shape, OUTPUTS))
        else:
            from deploy import tflite_writer

            with conv.traced_as('plain'):
                model = tflite_writer.write(forward, shape, OUTPUTS)
            path.write_bytes(getattr(tflite_writer, form.quantise)(model, images) if form.quantise else model)
    except ImportError as error:
        raise UserError(f'--to={kind} needs packages: pip install {form.packages} ({error}).') from error


def compare(
    kind: str, path: pathlib.Path, images: np.ndarray, labels: np.ndarray, expected: np.ndarray
) -> dict[str, float]:
    """Runs a model in its own runtime, in another process.

    Args:
        kind: One of FORMATS.
        path: The model.
        images: uint8 `[N, H, W, C]`, the test images first.
        labels: Classes of the test images, int `[M]`.
        expected: Logits of the images in JAX, float32 `[N, C]`.

    Returns:
        'images', their number; 'difference', the largest of a logit as a share of the range of all; 'same_labels', a
        share; 'accuracy' on the test images, and 'accuracy_before', in JAX.

    Raises:
        UserError: The model does not run, or differs by more than the format allows.
    """
    form = FORMATS[kind]
    with tempfile.TemporaryDirectory() as name:
        given, made = pathlib.Path(name, 'images.npy'), pathlib.Path(name, 'logits.npy')
        np.save(given, images)
        # -I: this project cannot be imported.
        command = [
            sys.executable,
            '-I',
            str(RUNTIMES / f'{form.suffix}.py'),
            str(path.resolve()),
            str(given),
            str(made),
        ]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True)
        if done.returncode:
            raise UserError(
                f'The exported model does not run: {(done.stderr.strip() or "no message").splitlines()[-1]}'
            )
        logits = np.load(made)
    parity = {
        'images': len(images),
        'difference': float(np.abs(logits - expected).max() / np.ptp(expected)),
        'same_labels': float((logits.argmax(-1) == expected.argmax(-1)).mean()),
        'accuracy': float((logits[: len(labels)].argmax(-1) == labels).mean()),
        'accuracy_before': float((expected[: len(labels)].argmax(-1) == labels).mean()),
    }
    wrong = []
    if parity['same_labels'] < form.labels:
        wrong.append(f'{parity["same_labels"]:.2%} of the labels are the same, {form.labels:.1%} must be')
    if form.difference and not parity['difference'] <= form.difference:
        wrong.append(f'logits differ by {parity["difference"]:.1e} of their range, {form.difference} is allowed')
    if parity['accuracy'] < parity['accuracy_before'] - form.accuracy:
        wrong.append(f'accuracy is {parity["accuracy"]:.2%} instead of {parity["accuracy_before"]:.2%}')
    if wrong:
        raise UserError(f'--to={kind} is not the same model: {"; ".join(wrong)}. Nothing was written.')
    return parity


def export(
    run: Finished, kind: str, out: pathlib.Path, size: tuple[int, int] | None, streams: Streams
) -> dict[str, float]:
    """Writes a model with model.json, README.md and reference.npz beside it, if it is the same as in JAX.

    Args:
        run: The finished run.
        kind: One of FORMATS.
        out: Folder to write, which is replaced.
        size: As for `function`.
        streams: The run's data.

    Returns:
        What `compare` returns.

    Raises:
        UserError: As for `write` and `compare`, or the folder exists and holds something else.
    """
    if out.exists() and not (out / 'model.json').is_file():
        raise UserError(f'{out} exists and is no export: name another folder with --out.')
    training, (images, labels) = streams.unlabeled(), streams.held_out['test']
    labels = labels[:COMPARED]
    images = np.concatenate([images[:COMPARED], training[:COMPARED]])[:COMPARED]  # few test images do not tell much
    training = training[:CALIBRATED]
    if size:
        few = max(1, COMPARED * 64 * 64 // (size[0] * size[1]))
        training, images, labels = _enlarged(training[:few], size), _enlarged(images[:few], size), labels[:few]
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        path = pathlib.Path(name, 'new', f'model.{FORMATS[kind].suffix}')
        path.parent.mkdir()
        write(run, kind, size, training, path)
        forward = jax.jit(function(run, size))
        batches = [np.asarray(forward(images[i : i + 32])[0]) for i in range(0, len(images), 32)]
        expected = np.concatenate(batches)
        parity = compare(kind, path, images, labels, expected)
        np.savez(path.with_name('reference.npz'), images=images[:REFERENCES], logits=expected[:REFERENCES])
        record = _record(run, kind, path, images.shape[1:], parity)
        path.with_name('model.json').write_text(json.dumps(record, indent=2) + '\n')
        path.with_name('README.md').write_text(_card(record))
        if out.exists():
            out.rename(pathlib.Path(name, 'before'))
        path.parent.rename(out)
    return parity


def _enlarged(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(jax.image.resize(images, (len(images), *size, images.shape[-1]), 'nearest'))


def _record(run: Finished, kind: str, path: pathlib.Path, shape: tuple[int, ...], parity: dict[str, float]) -> dict:
    data = run.settings.data
    names = filter(pictures.is_folder, (data.name, data.target))
    file = path / 'saved_model.pb' if path.is_dir() else path  # the weights are in it, too
    return {
        'file': file.relative_to(path.parent).as_posix(),
        'format': kind,
        'sha256': sha256(file),
        'input': {'name': 'images', 'type': 'uint8', 'shape': ['N' if FORMATS[kind].suffix != 'tflite' else 1, *shape]},
        'outputs': OUTPUTS,
        'classes': run.class_names,
        'parity': parity,
        'run': run.folder.name,
        'step': run.step,
        'network': run.settings.model['name'],
        'methods': list(run.settings.methods),
        'test_accuracy': run.result['test_accuracy'],
        'data': data.name,
        'data_sha256': {name: pictures.fingerprint(name) for name in names},
        'weights': run.result['protocol']['weights'],
        'git_commit': run.result['git_commit'],
        'versions': run.result['versions'],
    }


def _card(record: dict) -> str:
    """Returns a model card in Markdown."""
    accuracy, parity = record['test_accuracy'], record['parity']
    weights = record['weights']['source'] if record['weights'] else 'none'
    return f"""# {record['run']}

{record['network']} for {len(record['classes'])} classes of {record['data']}, by {' + '.join(record['methods'])}.

- File: `{record['file']}` ({record['format']}), SHA-256 `{record['sha256']}`
- Input: `images`, uint8 {record['input']['shape']}, pixels from 0 to 255. Preprocessing is part of the model.
- Outputs: `logits` and `probabilities`, of the classes {', '.join(record['classes'])}.
- Accuracy on the test images: {accuracy['last']:.2%} in training.
- This file on the same images: {parity['accuracy']:.2%}.
- Of {parity['images']} images {parity['same_labels']:.2%} get the label that they get in JAX.
- Weights that training began with: {weights}. Their licence holds for this model, too.
- `reference.npz` has images and their logits, to test a program that uses the model.
"""


def main(args: list[str] | None = None) -> int:
    """Runs the command line, returns the exit status."""
    parser = argparse.ArgumentParser(
        'python -m deploy.export', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('run', help='folder of a finished run')
    parser.add_argument('--to', required=True, choices=FORMATS, metavar='FORMAT', help=', '.join(FORMATS))
    parser.add_argument('--out', metavar='DIR', help='folder to write, by default export/FORMAT in that of the run')
    parser.add_argument('--size', metavar='HxW', help='size of the pictures, if they are to be resized in the model')
    parser.add_argument('--data_dir', metavar='DIR', help='prepared data sets (default: $TFDS_DATA_DIR)')
    flags = parser.parse_args(args)
    mesh.configure()
    try:
        size = None
        if flags.size:
            try:
                height, width = map(int, flags.size.split('x'))
            except ValueError as error:
                raise UserError(f'--size={flags.size} is not of the form 480x640, height by width.') from error
            if min(height, width) < 1 or height * width > MAX_PIXELS:
                raise UserError(f'--size={flags.size} is not of 1 to {MAX_PIXELS:,} pixels.')
            size = height, width
        run = finished.load(flags.run)
        out = pathlib.Path(flags.out) if flags.out else run.folder / 'export' / flags.to
        out.parent.mkdir(parents=True, exist_ok=True)
        parity = export(run, flags.to, out, size, run.streams(flags.data_dir))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    text = (
        f'{parity["same_labels"]:.2%} of {parity["images"]} labels as in JAX, logits within {parity["difference"]:.1e}'
    )
    print(f'{out}: {text} of their range, accuracy {parity["accuracy"]:.2%}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
