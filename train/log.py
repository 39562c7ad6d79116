"""The log of a run: metrics.jsonl and the progress line."""

import contextlib
import math
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
from tqdm import tqdm

from errors import UserError
from train import diagnostics, processes
from train.run_folder import RunFolder
from train.trainer import Metrics, Trainer

LINE_SECONDS = 15  # least time between two lines of progress in a log file


class Log(contextlib.AbstractContextManager):
    """Writes metrics.jsonl and shows progress: a live line in a terminal, or a line every LINE_SECONDS in a file."""

    def __init__(self, folder: RunFolder, trainer: Trainer, start: int):
        """Begins after `start` steps, whose rows are already in the folder."""
        self._folder = folder
        self._settings = trainer.settings
        self._images_per_step = sum(trainer.batch_sizes.values())
        self._watch = diagnostics.Watch(trainer.settings.steps, silent_steps(trainer))
        rows = folder.rows() if processes.is_main() else []
        for row in rows:
            self._watch.row(row['step'], row)
        self._seconds_before = max((row['seconds'] for row in rows), default=0.0)
        self._start = time.monotonic()
        self._last_line = -math.inf  # time of the last line in a log file
        self._mark: tuple[int, float] | None = None  # step and time from which speed is measured
        self._pending: tuple[int, Metrics] | None = None  # step and its metrics, which may still be computing
        self._terminal = sys.stderr.isatty() and processes.is_main()
        self._bar = tqdm(
            total=trainer.settings.steps,
            initial=start,
            unit='step',
            mininterval=0.5,
            dynamic_ncols=True,
            disable=not self._terminal,
        )

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def step(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a dispatched step, and records those of the step before.

        Raises:
            UserError: Training diverged.
        """
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Waits for the newest step and records its metrics.

        Raises:
            UserError: Training diverged.
        """
        if self._pending is not None:
            (step, metrics), self._pending = self._pending, None
            self._record(step, *jax.device_get(metrics))

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Writes a row of scores. The time of an evaluation does not count in the training speed."""
        self._watch.row(step, scores)
        self._write(step, scores)
        self._mark = step, time.monotonic()

    def _record(self, step: int, means: dict[str, np.ndarray], histograms: dict[str, np.ndarray]) -> None:
        if not all(math.isfinite(means[name][0]) for name in ('loss', 'gradient_norm', 'parameter_norm')):
            raise UserError(
                f'Loss, gradient or parameters are not finite at step {step}. Nothing of that step is saved in '
                f'{self._folder.path}; start a new --workdir with a lower optimizer.learning_rate.'
            )
        self._bar.update()
        if self._mark is None:  # the first step of a process compiles
            self._mark = step, time.monotonic()
        if step % self._settings.log_steps and step != self._settings.steps:
            return
        row = {name: float(total / count) if count else None for name, (total, count) in means.items()}
        for name, counts in histograms.items():
            row |= {f'{name}_{key}': value for key, value in diagnostics.describe_histogram(counts).items()}
        self._watch.row(step, row)
        steps_per_second = None
        if step > self._mark[0]:
            steps_per_second = (step - self._mark[0]) / (time.monotonic() - self._mark[1])
            row['images_per_second'] = steps_per_second * self._images_per_step
        self._write(step, row)
        self._show(step, row, steps_per_second)
        self._mark = step, time.monotonic()

    def _write(self, step: int, values: Mapping[str, float | None]) -> None:
        seconds = self._seconds_before + time.monotonic() - self._start
        self._folder.append({'step': step, **values, 'seconds': round(seconds, 3)})

    def _show(self, step: int, row: dict[str, float | None], steps_per_second: float | None) -> None:
        if self._terminal:
            self._bar.set_postfix_str(_brief(row), refresh=False)
            return
        last = step == self._settings.steps
        if not processes.is_main() or (not last and time.monotonic() - self._last_line < LINE_SECONDS):
            return
        self._last_line = time.monotonic()
        parts = [f'step {step} of {self._settings.steps}']
        if steps_per_second is not None:  # since the row before, to leave out compilation
            if not last:
                parts.append(f'{tqdm.format_interval((self._settings.steps - step) / steps_per_second)} left')
            parts.append(f'{steps_per_second:.1f} steps/s')
        print(', '.join([*parts, _brief(row)]), file=sys.stderr, flush=True)


def silent_steps(trainer: Trainer) -> dict[str, int]:
    """Returns {method: step up to which a loss of exactly 0 is expected}."""
    steps = {name: trainer.round_steps for name, method in trainer.methods.items() if method.rounds > 1}
    for name, method in trainer.methods.items():
        if not any(view.stream == 'unlabeled' for view in method.views()):
            steps[name] = trainer.settings.steps  # all labels learned, at a loss of 0
    return steps


def _brief(row: dict[str, float | None]) -> str:
    """Returns the end of the progress line: those known of loss, mask rate, pseudo-label accuracy and images/s."""
    short = {'mask_rate': 'mask', 'pseudo_label_accuracy': 'pseudo-label acc'}
    values = {'loss': row['loss']}
    values |= {short[key.split('/')[-1]]: value for key, value in row.items() if key.split('/')[-1] in short}
    parts = [f'{name} {value:.3f}' for name, value in values.items() if value is not None]
    if 'images_per_second' in row:
        parts.append(f'{row["images_per_second"]:.0f} img/s')
    return ', '.join(parts)
