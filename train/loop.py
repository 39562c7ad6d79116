"""One run from settings to result.json: compiled step, evaluation, checkpoints, progress, interruption."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import signal
import sys
import time
from collections.abc import Iterator

import jax
from tqdm import tqdm

from errors import UserError
from models import pretrained
from train import checkpoint, diagnostics, evaluation, result, selection, transfer
from train import mesh as mesh_lib
from train import step as step_lib
from train.checkpoint import Checkpoints
from train.run_folder import RunFolder
from train.settings import Settings
from train.streams import Streams


class Interrupted(Exception):
    """SIGTERM or Ctrl-C: the step was finished and the state saved."""

    def __init__(self, signal_number: int, step: int, workdir: pathlib.Path):
        super().__init__(f'Interrupted after step {step}, saved in {workdir}. The same command continues.')
        self.signal_number = signal_number


def run(settings: Settings, workdir: pathlib.Path, data_dir: str | None = None) -> dict:
    """Trains and evaluates a run, or continues it from its last checkpoint. Returns the content of result.json.

    Raises UserError for what the user can mend, Interrupted after SIGTERM or Ctrl-C.
    """
    protocol = transfer.protocol(settings)
    trainer, streams = prepare(settings, data_dir)
    # Traced before anything is written, for settings that do not go together.
    jax.eval_shape(functools.partial(step_lib.init, trainer), streams.batches(trainer.batch_sizes, settings.seed, 0))
    weights = trainer.model.weights
    network = {
        'weights': weights.record if weights else None,
        'preprocessing': dataclasses.asdict(trainer.model.preprocess),
    }
    with RunFolder(workdir, settings, network) as folder:
        if (finished := folder.read_json('result.json')) is not None:
            print(f'{workdir} holds this very run, finished.')
            return finished
        if folder.read_json('labels.json') not in (None, streams.manifest):
            raise UserError(f'{workdir} was begun with other labels or images. Choose another --workdir.')
        folder.write_json('labels.json', streams.manifest)
        counts = ', '.join(f'{len(indices)} {stream}' for stream, indices in streams.indices.items())
        test = len(streams.held_out['test'][0])
        data = settings.data.name + (f' -> {settings.data.target}' if settings.data.target else '')
        print(f'{" + ".join(settings.methods)} on {data}: {counts}, {test} test images -> {workdir}')
        diagnostics.check_views(trainer.views, settings.data.weak.get('vertical_flip', False))
        state = _train(trainer, streams, folder)
        found = result.summarise(settings, folder, trainer, streams, state)
        if protocol.labels:
            again = functools.partial(prepare, data_dir=data_dir)
            found['transfer'] = transfer.report(
                settings, workdir, again, features, functools.partial(run, data_dir=data_dir)
            )
        folder.write_json('result.json', found)
        return folder.read_json('result.json')


def prepare(settings: Settings, data_dir: str | None = None) -> tuple[step_lib.Trainer, Streams]:
    """Reads data and pretrained weights and builds the rest of a run from its settings.

    Raises UserError for what the user can mend.
    """
    streams = Streams.load(settings, data_dir)
    source = settings.model.get('pretrained')
    weights = None
    if source:
        is_run = pathlib.Path(source).expanduser().is_dir()
        weights = (checkpoint.weights if is_run else pretrained.load)(source)
    return step_lib.Trainer.create(settings, streams.spec(settings), weights), streams


def _train(trainer: step_lib.Trainer, streams: Streams, folder: RunFolder) -> step_lib.TrainState:
    """Makes the steps that are left, with their evaluations and checkpoints, and returns the last state."""
    settings = trainer.settings
    sizes = trainer.batch_sizes
    mesh = mesh_lib.create(*sizes.values())
    if settings.data.cache_features:
        streams = features(trainer, streams)

    def batch(step: int) -> step_lib.Batch:
        return mesh_lib.put_batch(mesh, streams.batches(sizes, settings.seed, step))

    with _signals() as caught, jax.set_mesh(mesh), Checkpoints(folder.path / 'checkpoints') as checkpoints:
        state = mesh_lib.put_replicated(mesh, step_lib.init(trainer, batch(0)))
        if (saved := checkpoints.latest(like=state)) is not None:
            state = saved
            print(f'Continuing after step {int(state.step)}.')
        start = int(state.step)
        folder.rewind(start)
        step_fn = jax.jit(functools.partial(step_lib.step, trainer), static_argnames='head_only', donate_argnums=0)
        predict, evaluate = evaluation.create(trainer, mesh), evaluation.evaluator(trainer, streams, mesh)
        next_round = jax.jit(functools.partial(step_lib.next_round, trainer), donate_argnums=0)
        with _Log(folder, trainer, start) as log:
            for done in range(start + 1, settings.steps + 1):
                if done > 1 and (done - 1) % trainer.round_steps == 0:
                    log.flush()
                    logits = predict(state.ema_params, state.batch_stats, streams.unlabeled())
                    state = next_round(state, mesh_lib.put_replicated(mesh, logits))
                head_only = done <= settings.optimizer.unfreeze_step
                state, metrics = step_fn(state, batch(done - 1), head_only=head_only)
                log.step(done, metrics)
                last = done == settings.steps
                scores = {}
                if last or done % settings.eval_steps == 0:
                    log.flush()
                    scores, saved = evaluate(state)
                    if saved is not None:
                        selection.save(folder.path / 'features', done, *saved)
                    log.evaluation(done, scores)
                if last or caught or done % settings.checkpoint_steps == 0:
                    log.flush()
                    checkpoints.save(done, state, scores.get('validation_accuracy'))
                if caught and not last:
                    checkpoints.wait()
                    raise Interrupted(caught[0], done, folder.path)
        return state


def features(trainer: step_lib.Trainer, streams: Streams, layer: str = 'features') -> Streams:
    """Returns the streams with the features of a frozen backbone, or another output of it, instead of the images."""
    mesh = mesh_lib.create(*trainer.batch_sizes.values())
    with jax.set_mesh(mesh):
        variables = step_lib.initial(trainer, trainer.settings.seed, 0)
        predict = evaluation.create(trainer, mesh, layer)
        of = functools.partial(predict, variables['params'], variables['batch_stats'])
        return streams.map(of, trainer.batch_sizes)


class _Log(contextlib.AbstractContextManager):
    """metrics.jsonl and the progress line, one step late: the device always has the next step to work on."""

    def __init__(self, folder: RunFolder, trainer: step_lib.Trainer, start: int):
        self._folder = folder
        self._settings = settings = trainer.settings
        self._images_per_step = sum(trainer.batch_sizes.values())
        self._pending = None
        self._seconds_before = max((row['seconds'] for row in folder.rows()), default=0.0)
        begins = {name: trainer.round_steps for name, m in trainer.methods.items() if m.rounds > 1}
        for name, method in trainer.methods.items():
            if not any(view.startswith('unlabeled') for view in method.views()):
                begins[name] = settings.steps  # all labels learned, at a loss of 0, is no mistake
        self._watch = diagnostics.Watch(settings.steps, begins)
        for row in folder.rows():
            self._watch.row(row['step'], row)
        self._start = time.monotonic()
        self._mark = None  # (step, time) from which speed is measured
        # A terminal gets a live line, a log file one now and then.
        interval = 0.5 if sys.stderr.isatty() else 15
        self._bar = tqdm(total=settings.steps, initial=start, unit='step', mininterval=interval, dynamic_ncols=True)

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def step(self, done: int, metrics: step_lib.Metrics) -> None:
        """Takes the metrics of the step just dispatched and deals with those of the step before."""
        self.flush()
        self._pending = done, metrics

    def flush(self) -> None:
        """Waits for the newest step and deals with its metrics. Raises UserError where training diverged."""
        if self._pending is None:
            return
        (done, metrics), self._pending = self._pending, None
        means, histograms = jax.device_get(metrics)
        if not all(math.isfinite(means[name][0]) for name in ('loss', 'gradient_norm', 'parameter_norm')):
            raise UserError(
                f'Loss, gradient or parameters are not finite at step {done}. Nothing of that step is saved in '
                f'{self._folder.path}; start a new --workdir with a lower optimizer.learning_rate.'
            )
        self._bar.update()
        if self._mark is None:  # the first step of a process compiles
            self._mark = done, time.monotonic()
        if done % self._settings.log_steps == 0 or done == self._settings.steps:
            row = {name: float(s / n) if n else None for name, (s, n) in means.items()}
            for name, counts in histograms.items():
                row |= {f'{name}_{key}': value for key, value in diagnostics.of_histogram(counts).items()}
            self._watch.row(done, row)
            if done > self._mark[0]:
                steps, seconds = done - self._mark[0], time.monotonic() - self._mark[1]
                row['images_per_second'] = steps * self._images_per_step / seconds
            self._write(done, row)
            self._mark = done, time.monotonic()
            self._bar.set_postfix_str(_brief(row), refresh=False)

    def evaluation(self, done: int, scores: dict[str, float]) -> None:
        """Writes a row of scores; the time an evaluation takes does not count as training speed."""
        self._write(done, scores)
        self._mark = done, time.monotonic()

    def _write(self, done: int, values: dict[str, float | None]) -> None:
        seconds = self._seconds_before + time.monotonic() - self._start
        self._folder.append({'step': done, **values, 'seconds': round(seconds, 3)})


def _brief(row: dict[str, float | None]) -> str:
    """Returns the end of the progress line: loss, mask rate, pseudo-label accuracy and images/s, as far as known."""
    short = {'mask_rate': 'mask', 'pseudo_label_accuracy': 'pseudo-label acc'}
    named = {short[name.split('/')[-1]]: value for name, value in row.items() if name.split('/')[-1] in short}
    parts = [f'{name} {value:.3f}' for name, value in ({'loss': row['loss']} | named).items() if value is not None]
    if 'images_per_second' in row:
        parts.append(f'{row["images_per_second"]:.0f} img/s')
    return ', '.join(parts)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list instead of dying of them. A second Ctrl-C ends at once."""
    caught: list[int] = []

    def note(number, frame):
        del frame
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
