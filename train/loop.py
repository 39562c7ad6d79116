"""The training loop: steps, rounds, evaluations, checkpoints, interruption."""

import concurrent.futures
import contextlib
import functools
import pathlib
import signal
from collections.abc import Iterator

import jax
from absl import logging

from train import evaluation, processes
from train import mesh as mesh_lib
from train import step as step_lib
from train.checkpoint import Checkpoints
from train.log import Log
from train.run_folder import RunFolder
from train.streams import Streams
from train.trainer import Trainer, TrainState


class Interrupted(Exception):
    """Raised after SIGTERM or Ctrl-C, when the step is finished and the state saved."""

    def __init__(self, signal_number: int, step: int, workdir: pathlib.Path):
        super().__init__(f'Interrupted after step {step}, saved in {workdir}. The same command continues.')
        self.signal_number = signal_number


FIRST_PROFILED, LAST_PROFILED = 3, 6  # steps of a process, whose first one compiles


def train(
    trainer: Trainer, streams: Streams, folder: RunFolder, mesh: jax.sharding.Mesh, profile: bool = False
) -> TrainState:
    """Makes the remaining steps of a run, with their evaluations and checkpoints.

    The device never waits: metrics of a step are fetched after the next step is dispatched.

    Args:
        trainer: Network, methods and settings.
        streams: The data.
        folder: The folder of the run, with the checkpoints to continue from.
        mesh: The devices, set as JAX's mesh.
        profile: Trace some of the first steps into profile/ in the folder.

    Returns:
        The state after the last step.

    Raises:
        UserError: Training diverged, or no checkpoint can be read.
        Interrupted: After SIGTERM or Ctrl-C.
    """
    settings = trainer.settings
    # Left alone, the compiler splits the memory of some methods over the devices. A state read from a checkpoint is
    # whole, and would go on with another program.
    jit = functools.partial(jax.jit, donate_argnums=0, out_shardings=jax.P())
    step = jit(functools.partial(step_lib.step, trainer), static_argnames='head_only')
    next_round = jit(functools.partial(step_lib.next_round, trainer))
    predict = evaluation.create(trainer, mesh)
    agreed = processes.Agreement(mesh)
    profile = profile and processes.is_main()
    evaluate = evaluation.Evaluator(trainer, streams, predict, folder.path / 'features')
    checkpoints = Checkpoints(folder.path / 'checkpoints')
    with _caught_signals() as signals, checkpoints, processes.watched():
        # Compiled on one core while another one makes the state.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            head_only = checkpoints.newest < settings.optimizer.unfreeze_step
            compiled = pool.submit(_compile, step, trainer, streams, mesh, head_only)
            state = _latest_or_new(trainer, streams, checkpoints, mesh)
            compiled.result()
        start = int(state.step)
        if start:
            print(f'Continuing after step {start}.')
        folder.rewind(start)
        with Log(folder, trainer, start) as log, contextlib.ExitStack() as traced:
            for done in range(start + 1, settings.steps + 1):
                if done > 1 and (done - 1) % trainer.round_steps == 0:
                    log.flush()
                    logits = predict(*state.averaged, streams.unlabeled())
                    state = next_round(state, mesh_lib.put_replicated(mesh, logits))
                if profile and done - start == FIRST_PROFILED:
                    jax.block_until_ready(state)
                    traced.enter_context(jax.profiler.trace(folder.path / 'profile'))
                batch = mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, settings.seed, done - 1))
                state, metrics = step(state, batch, head_only=done <= settings.optimizer.unfreeze_step)
                if profile and done - start == LAST_PROFILED:
                    jax.block_until_ready(state)
                    traced.close()
                log.step(done, metrics)
                last = done == settings.steps
                signal_number = agreed(signals[0] if signals else 0)
                stop = bool(signal_number) and not last
                scores = {}
                if last or done % settings.eval_steps == 0:
                    log.flush()
                    scores = evaluate(done, state)
                    log.evaluation(done, scores)
                if last or stop or done % settings.checkpoint_steps == 0:
                    log.flush()
                    checkpoints.save(done, state, scores.get('validation_accuracy'))
                if stop:
                    checkpoints.wait()
                    raise Interrupted(signal_number, done, folder.path)
    if profile and settings.steps - start < FIRST_PROFILED:
        logging.warning('Too few steps were left for a trace.')
    return state


def _compile(
    step: jax.stages.Wrapped, trainer: Trainer, streams: Streams, mesh: jax.sharding.Mesh, head_only: bool
) -> None:
    """Compiles a step. JAX finds it again by the shapes and shardings of its arguments."""
    whole = jax.NamedSharding(mesh, jax.P())
    with jax.set_mesh(mesh):  # a thread has its own
        batch = mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, trainer.settings.seed, 0))
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole, weak_type=x.weak_type),
            step_lib.check(trainer, batch),
        )
        step.lower(state, batch, head_only=head_only).compile()


def _latest_or_new(trainer: Trainer, streams: Streams, checkpoints: Checkpoints, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns the state of the latest checkpoint, or that of a new run."""
    seed = trainer.settings.seed
    batch = mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, seed, 0))
    new = mesh_lib.put_replicated(mesh, step_lib.init(trainer, batch))
    return checkpoints.latest(like=new) or mesh_lib.put_replicated(mesh, evaluation.prepare(trainer, streams, new))


@contextlib.contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list instead of ending the process. A second Ctrl-C ends it."""
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
