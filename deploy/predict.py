"""Predicts the classes of pictures with a finished run.

    python -m deploy.predict runs/NAME new/ --out=predictions.csv        a row for each picture
    python -m deploy.predict runs/NAME a.jpg b.jpg --out=- --top=5       to the screen
    python -m deploy.predict runs/NAME list.csv --out=predictions.jsonl  those in the column path, as JSON lines

A row has the file, label, probability, the next labels, and two doubts. `abstain` is 1 where the probability is so low
that of the held-out images with at least that, more than a share --risk is wrong. `unlike` is 1 where the features are
further from those of every labeled image than those of 99 % of the held-out images are. Probabilities are calibrated by
a temperature that is fitted on the held-out images.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import dataclasses
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from data.pictures import folder as folder_lib
from deploy import calibration, finished
from deploy.finished import Finished
from errors import UserError, first_line
from train import mesh

UNLIKE = 0.99  # of the held-out images are nearer to a labeled one than what is called unlike
AT_ONCE = 8 * finished.BATCH  # pictures in memory


@dataclasses.dataclass(frozen=True)
class Doubts:
    """When not to trust a prediction, learned from the run's data.

    Attributes:
        features: Of the labeled images, of length 1, float32 `[N, D]`.
        temperature: Of the probabilities, see `calibration.temperature`.
        threshold: Least probability of a prediction that is not abstained from, see `calibration.least_probability`.
        distance: Cosine distance to the nearest labeled image above which a picture is unlike them.
    """

    features: np.ndarray
    temperature: float
    threshold: float
    distance: float

    @classmethod
    def learn(cls, run: Finished, risk: float, data_dir: str | None = None) -> 'Doubts':
        """Returns them for a run. The held-out images are its validation part or, without one, its test part.

        Raises:
            UserError: The run's data cannot be read.
        """
        streams = run.streams(data_dir)
        images, labels = streams.held_out.get('validation', streams.held_out['test'])
        logits, held_out = run.predict(images)
        _, labeled = run.predict(streams.images[streams.indices['labeled']])
        labeled = finished.unit(labeled)
        temperature = calibration.temperature(logits, labels)
        probabilities = calibration.probabilities(logits, temperature)
        threshold = calibration.least_probability(probabilities.max(-1), probabilities.argmax(-1) == labels, risk)
        return cls(labeled, temperature, threshold, float(np.quantile(_distance(held_out, labeled), UNLIKE)))


def doubts_or_warning(run: Finished, risk: float, data_dir: str | None) -> Doubts | None:
    """Returns `Doubts.learn`, or None and prints a warning where the run's data cannot be read."""
    try:
        return Doubts.learn(run, risk, data_dir)
    except UserError as error:
        print(f'warning: no columns abstain, distance and unlike, as they need the data. {error}', file=sys.stderr)
        return None


def _distance(features: np.ndarray, labeled: np.ndarray) -> np.ndarray:
    parts = [1 - (finished.unit(features[i : i + 1000]) @ labeled.T).max(-1) for i in range(0, len(features), 1000)]
    return np.concatenate(parts)


def sources(names: Iterable[str]) -> Iterator[pathlib.Path]:
    """Yields the pictures of files, folders and CSV files with a column path.

    Raises:
        UserError: There is no such file, or a CSV file has no such column.
    """
    for name in names:
        path = pathlib.Path(name).expanduser()
        if path.is_dir():
            yield from (path / file for file in folder_lib.pictures(path))
        elif path.suffix.lower() == '.csv':
            yield from (path.parent / file for file in folder_lib.listed(path))
        elif path.exists():
            yield path
        else:
            raise UserError(f'There is no {name}.')


def answers(run: Finished, images: np.ndarray, top: int = 3, doubts: Doubts | None = None) -> list[dict[str, Any]]:
    """Returns a prediction for each image.

    Args:
        run: The finished run.
        images: As its own, uint8 `[N, H, W, C]`.
        top: Number of labels for each.
        doubts: When not to trust a prediction; None to leave `abstain`, `distance` and `unlike` out.

    Returns:
        [{'label', 'probability', 'label_2', 'probability_2', ..., 'abstain', 'distance', 'unlike'}].
    """
    logits, features = run.predict(images)
    probabilities = calibration.probabilities(logits, doubts.temperature if doubts else 1.0)
    ends = ['', *(f'_{i}' for i in range(2, top + 1))]
    found: list[dict[str, Any]] = []
    for values in probabilities:
        answer: dict[str, Any] = {}
        for end, i in zip(ends, np.argsort(-values, kind='stable'), strict=False):
            answer |= {f'label{end}': run.class_names[i], f'probability{end}': float(values[i])}
        found.append(answer)
    if doubts:
        for answer, distance in zip(found, _distance(features, doubts.features), strict=True):
            answer |= {'abstain': int(answer['probability'] < doubts.threshold)}
            answer |= {'distance': float(distance), 'unlike': int(distance > doubts.distance)}
    return found


def rows(
    run: Finished, paths: Iterable[pathlib.Path], top: int = 3, doubts: Doubts | None = None, at_once: int = AT_ONCE
) -> Iterator[dict[str, Any]]:
    """Yields a prediction for each picture, in their order. Memory does not grow with their number.

    Args:
        run: The finished run.
        paths: The pictures.
        top: As for `answers`.
        doubts: As for `answers`.
        at_once: Pictures in memory. It changes no prediction.

    Yields:
        {'file', what `answers` has, 'error'}: with an error the others are empty.
    """
    keys = answers(run, np.zeros((1, *run.image_shape), np.uint8), top, doubts)[0].keys()
    iterator = iter(paths)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        while chunk := list(itertools.islice(iterator, at_once)):
            decoded = list(pool.map(lambda path: _decode(run, path), chunk))
            images = [image for image in decoded if not isinstance(image, str)]
            found = iter(answers(run, np.stack(images), top, doubts) if images else [])
            for path, image in zip(chunk, decoded, strict=True):
                if isinstance(image, str):
                    yield {'file': _name(path), **dict.fromkeys(keys, ''), 'error': image}
                else:
                    yield {'file': _name(path), **next(found), 'error': ''}


def _name(path: pathlib.Path) -> str:
    return str(path).encode(errors='backslashreplace').decode()


def _decode(run: Finished, path: pathlib.Path) -> np.ndarray | str:
    """Returns a picture, uint8 `[H, W, C]`, or why it cannot be read."""
    try:
        return run.decode(path.read_bytes())
    except Exception as error:  # Pillow raises many types for damaged files
        return first_line(error)


@contextlib.contextmanager
def writer(out: str) -> Iterator[Any]:
    """Opens a file for rows and yields the function that writes one: CSV, or JSON lines where its name ends so.

    Args:
        out: Path of the file; '-' for the screen.

    Raises:
        UserError: It cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = sys.stdout if out == '-' else stack.enter_context(open(out, 'w', newline='', encoding='utf-8'))
        except OSError as error:
            raise UserError(f'Cannot write {out}: {error.strerror}.') from error
        table: list[csv.DictWriter] = []

        def write(row: dict[str, Any]) -> None:
            if out.endswith('.jsonl'):
                file.write(json.dumps(row) + '\n')
            else:
                if not table:
                    table.append(csv.DictWriter(file, list(row)))
                    table[0].writeheader()
                table[0].writerow(row)
            file.flush()

        yield write


def watched(names: list[str], seconds: float = 1.0) -> Iterator[pathlib.Path]:
    """Yields the pictures of folders, and for ever after those that are added to them.

    A picture is yielded when its size has not changed for so many seconds, so that it is written completely.
    """
    sizes: dict[pathlib.Path, int] = {}
    done: set[pathlib.Path] = set()
    while True:
        for path in sources(names):
            if path not in done:
                with contextlib.suppress(OSError):  # it was removed
                    if sizes.get(path) == (size := path.stat().st_size):
                        done.add(path)
                        yield path
                    sizes[path] = size
        time.sleep(seconds)


def main(args: list[str] | None = None) -> int:
    """Runs the command line, returns the exit status."""
    parser = argparse.ArgumentParser(
        'python -m deploy.predict', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('run', help='folder of a finished run')
    parser.add_argument('sources', nargs='+', metavar='PICTURES', help='files, folders or CSV files with a column path')
    parser.add_argument('--out', default='-', metavar='FILE', help='.csv or .jsonl; by default the screen')
    parser.add_argument('--top', type=int, default=3, metavar='N', help='labels for each picture (default: 3)')
    parser.add_argument('--risk', type=float, default=0.05, metavar='R', help='see above (default: 0.05)')
    parser.add_argument('--watch', action='store_true', help='go on with pictures that are added, until Ctrl-C')
    parser.add_argument('--data_dir', metavar='DIR', help='prepared data sets (default: $TFDS_DATA_DIR)')
    flags = parser.parse_args(args)
    mesh.configure()
    try:
        run = finished.load(flags.run)
        doubts = doubts_or_warning(run, flags.risk, flags.data_dir)
        count = damaged = 0
        for name in flags.sources:  # before an earlier file is replaced
            next(sources([name]), None)
        with writer(flags.out) as write:
            paths = watched(flags.sources) if flags.watch else sources(flags.sources)
            for row in rows(run, paths, flags.top, doubts, 1 if flags.watch else AT_ONCE):
                write(row)
                count, damaged = count + 1, damaged + bool(row['error'])
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if flags.out != '-':
        print(f'{count} pictures, {damaged} of them cannot be read -> {flags.out}')
    return int(bool(count) and damaged == count)


if __name__ == '__main__':
    sys.exit(main())
