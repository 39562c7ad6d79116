"""One run from settings to result.json: compiled step, evaluation, checkpoints, progress, interruption."""

import contextlib
import dataclasses
import functools
import math
import operator
import pathlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
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


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run that is being made."""

    trainer: step_lib.Trainer
    streams: Streams
    folder: RunFolder


def run(settings: Settings, workdir: pathlib.Path, data_dir: str | None = None) -> dict:
    """Trains and evaluates a run, or continues it from its last checkpoint. Returns the content of result.json.

    Raises UserError for what the user can mend, Interrupted after SIGTERM or Ctrl-C.
    """
    return run_seeds([settings], [workdir], data_dir)[0]


def run_seeds(each: Sequence[Settings], workdirs: Sequence[pathlib.Path], data_dir: str | None = None) -> list[dict]:
    """The same for runs that differ by their seed only, which are trained together, as one program (`_train`).

    Raises UserError also where they are not at the same step. What is wrong with one of them stops all.
    """
    if any(dataclasses.replace(settings, seed=each[0].seed) != each[0] for settings in each):
        raise ValueError('only runs that differ by nothing but their seed can be trained together')
    protocol = transfer.protocol(each[0])
    finished, runs = {}, {}
    with contextlib.ExitStack() as stack:
        for settings, workdir in zip(each, workdirs, strict=True):
            trainer, streams = prepare(settings, data_dir)
            # Traced before anything is written, for settings that do not go together.
            batch = streams.batches(trainer.batch_sizes, settings.seed, 0)
            jax.eval_shape(functools.partial(step_lib.init, trainer), batch)
            weights = trainer.model.weights
            network = {
                'weights': weights.record if weights else None,
                'preprocessing': dataclasses.asdict(trainer.model.preprocess),
            }
            folder = stack.enter_context(RunFolder(workdir, settings, network))
            if (result_before := folder.read_json('result.json')) is not None:
                print(f'{workdir} holds this very run, finished.')
                finished[workdir] = result_before
                continue
            if folder.read_json('labels.json') not in (None, streams.manifest):
                raise UserError(f'{workdir} was begun with other labels or images. Choose another --workdir.')
            folder.write_json('labels.json', streams.manifest)
            counts = ', '.join(f'{len(indices)} {stream}' for stream, indices in streams.indices.items())
            test = len(streams.held_out['test'][0])
            data = settings.data.name + (f' -> {settings.data.target}' if settings.data.target else '')
            print(f'{" + ".join(settings.methods)} on {data}: {counts}, {test} test images -> {workdir}')
            runs[workdir] = _Run(trainer, streams, folder)
        states = []
        if runs:
            diagnostics.check_views(trainer.views, each[0].data.weak.get('vertical_flip', False))
            states = _train(list(runs.values()))
        for (workdir, made), state in zip(runs.items(), states, strict=True):
            settings = made.trainer.settings
            found = result.summarise(settings, made.folder, made.trainer, made.streams, state)
            found['seeds_together'] = len(runs)
            if protocol.labels:
                again = functools.partial(prepare, data_dir=data_dir)
                found['transfer'] = transfer.report(
                    settings, workdir, again, features, functools.partial(run, data_dir=data_dir)
                )
            made.folder.write_json('result.json', found)
            finished[workdir] = made.folder.read_json('result.json')
    return [finished[workdir] for workdir in workdirs]


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


def _train(runs: Sequence[_Run]) -> list[step_lib.TrainState]:
    """Makes the steps that are left, with their evaluations and checkpoints, and returns the last states.

    Several runs are one program on one device, with states and batches stacked: `jax.vmap` of the step. What makes
    them different, their seed, is part of the state.
    """
    trainer = runs[0].trainer
    settings = trainer.settings
    sizes = trainer.batch_sizes
    together = len(runs) > 1
    mesh = mesh_lib.create(*sizes.values(), most=1 if together else None)
    streams = [features(r.trainer, r.streams) if settings.data.cache_features else r.streams for r in runs]

    def batch(step: int) -> step_lib.Batch:
        each = [part.batches(sizes, r.trainer.settings.seed, step) for r, part in zip(runs, streams, strict=True)]
        return mesh_lib.put_batch(mesh, _stack(each))

    def step(state: step_lib.TrainState, batch: step_lib.Batch, head_only: bool):
        one = functools.partial(step_lib.step, trainer, head_only=head_only)
        return (jax.vmap(one) if together else one)(state, batch)

    step = jax.jit(step, static_argnames='head_only', donate_argnums=0)
    next_round = jax.jit(functools.partial(step_lib.next_round, trainer), donate_argnums=0)
    unstack = jax.jit(functools.partial(_unstack, count=len(runs))) if together else lambda tree: [tree]
    with _signals() as caught, jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        saved, states = [], []
        for r, part in zip(runs, streams, strict=True):
            saved.append(stack.enter_context(Checkpoints(r.folder.path / 'checkpoints')))
            first = mesh_lib.put_batch(mesh, part.batches(sizes, r.trainer.settings.seed, 0))
            new = mesh_lib.put_replicated(mesh, step_lib.init(r.trainer, first))
            states.append(saved[-1].latest(like=new) or new)
        start = int(states[0].step)
        if any(state.step != start for state in states):
            raise UserError('These runs were stopped at different steps and cannot be continued as one.')
        if start:
            print(f'Continuing after step {start}.')
        for r in runs:
            r.folder.rewind(start)
        predict = evaluation.create(trainer, mesh)
        evaluate = [evaluation.evaluator(r.trainer, part, predict) for r, part in zip(runs, streams, strict=True)]
        logs = [stack.enter_context(_Log(r.folder, r.trainer, start, shown=r is runs[0])) for r in runs]
        state, pending = mesh_lib.put_replicated(mesh, _stack(states)), None

        def flush() -> None:
            """Waits for the newest step and deals with its metrics."""
            nonlocal pending
            if pending is not None:
                (at, metrics), pending = pending, None
                for log, of_run in zip(logs, unstack(metrics), strict=True):
                    log.step(at, *jax.device_get(of_run))

        for done in range(start + 1, settings.steps + 1):
            if done > 1 and (done - 1) % trainer.round_steps == 0:
                flush()
                states = unstack(state)
                for i, part in enumerate(streams):
                    logits = predict(states[i].ema_params, states[i].batch_stats, part.unlabeled())
                    states[i] = next_round(states[i], mesh_lib.put_replicated(mesh, logits))
                state = mesh_lib.put_replicated(mesh, _stack(states))
            new = step(state, batch(done - 1), head_only=done <= settings.optimizer.unfreeze_step)
            flush()  # of the step before: the device always has the next one to work on
            state, pending = new[0], (done, new[1])
            last = done == settings.steps
            stop = bool(caught) and not last
            save = last or stop or done % settings.checkpoint_steps == 0
            if save or done % settings.eval_steps == 0:
                flush()
                states = unstack(state)
            scores = [{}] * len(runs)
            if last or done % settings.eval_steps == 0:
                for i, r in enumerate(runs):
                    scores[i], to_save = evaluate[i](states[i])
                    if to_save is not None:
                        selection.save(r.folder.path / 'features', done, *to_save)
                    logs[i].evaluation(done, scores[i])
            if save:
                for checkpoints, of_run, found in zip(saved, states, scores, strict=True):
                    checkpoints.save(done, of_run, found.get('validation_accuracy'))
            if stop:
                for checkpoints in saved:
                    checkpoints.wait()
                raise Interrupted(caught[0], done, runs[0].folder.path)
        return unstack(state)


def _stack(trees: Sequence[Any]) -> Any:
    """Returns trees of arrays as one, with a first axis for the trees; one tree alone as it is."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: np.stack(x), *trees)


def _unstack(tree: Any, count: int) -> list[Any]:
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]


def features(trainer: step_lib.Trainer, streams: Streams, layer: str = 'features') -> Streams:
    """Returns the streams with the features of a frozen backbone, or another output of it, instead of the images."""
    mesh = mesh_lib.create(*trainer.batch_sizes.values())
    with jax.set_mesh(mesh):
        variables = step_lib.initial(trainer, trainer.settings.seed, 0)
        predict = evaluation.create(trainer, mesh)
        of = functools.partial(predict, variables['params'], variables['batch_stats'], output=layer)
        return streams.map(of, trainer.batch_sizes)


class _Log(contextlib.AbstractContextManager):
    """metrics.jsonl and the progress line."""

    def __init__(self, folder: RunFolder, trainer: step_lib.Trainer, start: int, shown: bool = True):
        self._folder = folder
        self._settings = settings = trainer.settings
        self._images_per_step = sum(trainer.batch_sizes.values())
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
        self._bar = tqdm(
            total=settings.steps,
            initial=start,
            unit='step',
            mininterval=interval,
            dynamic_ncols=True,
            disable=not shown,
        )

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def step(self, done: int, means: dict[str, np.ndarray], histograms: dict[str, np.ndarray]) -> None:
        """Takes the metrics of a step. Raises UserError where training diverged."""
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
