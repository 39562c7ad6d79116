"""Checkpoints of the train state. The only place that knows orbax."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from errors import UserError, first_line
from models import pretrained
from train import processes
from train.trainer import TrainState, averaged


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of one run: the two latest, and the best by validation accuracy.

    There are two, so that if the newest is damaged only the steps since the one before are lost.
    """

    def __init__(self, directory: pathlib.Path):
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda m: m['validation_accuracy'], n=1, keep_checkpoints_without_metrics=False
        )
        processes.on_main(lambda: _set_aside_unreadable(directory))
        self._checkpointer = ocp.training.Checkpointer(
            directory.resolve(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best]),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: TrainState, validation_accuracy: float | None) -> None:
        """Starts writing the state in the background. Waits for an earlier write to end.

        Args:
            step: Number of steps done.
            state: The state after them.
            validation_accuracy: Selects the best checkpoint; None if it was not measured.
        """
        metrics = None if validation_accuracy is None else {'validation_accuracy': validation_accuracy}
        self._checkpointer.save_async(step, _as_dict(state), metrics=metrics)

    @property
    def newest(self) -> int:
        """Number of steps of the newest checkpoint, readable or not; 0 if there is none."""
        return max((checkpoint.step for checkpoint in self._checkpointer.checkpoints), default=0)

    def latest(self, like: TrainState) -> TrainState | None:
        """Returns the newest state that can be read, None if nothing has been saved.

        Args:
            like: A state of the same shapes, types and shardings.

        Raises:
            UserError: There are checkpoints, but none can be read.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _as_dict(like))
        damaged = []
        for step in sorted((c.step for c in self._checkpointer.checkpoints), reverse=True):
            try:
                state = TrainState(**self._checkpointer.load(step, abstract))
            except Exception as error:  # orbax raises many types of exception for damaged files
                reason = (str(error).strip() or repr(error)).split('\n')[0][:200]
                logging.warning('Checkpoint %d cannot be read, trying the one before: %s', step, reason)
                damaged.append(step)
                continue
            for later in damaged:  # training will save these steps again
                self._checkpointer.delete(later)
            return state
        if damaged:
            raise UserError(f'No checkpoint in {self._checkpointer.directory} can be read: {reason}')
        return None

    def wait(self) -> None:
        """Waits until all checkpoints are on disk."""
        self._checkpointer.wait()

    def __exit__(self, *exception) -> None:
        self._checkpointer.close()


def read(folder: pathlib.Path, selected: bool = False) -> tuple[int, dict[str, Any]]:
    """Reads a checkpoint of a run.

    Args:
        folder: The run's folder.
        selected: That of the best validation accuracy, where there is a validation part, instead of the last one.

    Returns:
        Its step, and {field of TrainState: tree of arrays}.

    Raises:
        UserError: There is no checkpoint.
        Exception: A file is missing or damaged, for which orbax raises many types.
    """
    with ocp.training.Checkpointer((folder / 'checkpoints').resolve(strict=True)) as checkpointer:
        if checkpointer.latest is None:
            raise UserError(f'{folder} holds no checkpoint.')
        measured = [checkpoint for checkpoint in checkpointer.checkpoints if checkpoint.metrics] if selected else []
        best = max(measured, key=lambda checkpoint: checkpoint.metrics['validation_accuracy'], default=None)
        step = (best or checkpointer.latest).step
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), checkpointer.metadata(step).metadata
        )
        return step, checkpointer.load(step, abstract)


def weights(source: str) -> pretrained.Weights:
    """Returns the averaged network of a run's last checkpoint, as initial weights of another run.

    Args:
        source: The run's folder.

    Raises:
        UserError: There is no checkpoint that can be read.
    """
    folder = pathlib.Path(source).expanduser()
    try:
        preprocessing = json.loads((folder / 'config.json').read_text())['preprocessing']
        step, state = read(folder)
    except Exception as error:
        reason = first_line(error)[:200]
        raise UserError(f"model.pretrained='{source}' is no run's folder that can be read ({reason}).") from error
    tensors = {
        f'{collection}/{layer}/{leaf}': np.asarray(array)
        for collection, layers in zip(('params', 'batch_stats'), averaged(state), strict=True)
        for layer, leaves in layers.items()
        for leaf, array in leaves.items()
    }
    digest = hashlib.sha256(b''.join(name.encode() + tensors[name].tobytes() for name in sorted(tensors)))
    record = {'source': source, 'step': step, 'sha256': digest.hexdigest()}
    preprocessing = {key: tuple(value) if isinstance(value, list) else value for key, value in preprocessing.items()}
    return pretrained.Weights(tensors, 'own', record, preprocessing)


def _set_aside_unreadable(directory: pathlib.Path) -> None:
    """Renames checkpoints whose metrics cannot be parsed, since orbax reads the metrics of all checkpoints first."""
    for metrics in directory.glob('[0-9]*/metrics/metrics'):
        try:
            json.loads(metrics.read_text())
        except ValueError:
            folder = metrics.parents[1]
            logging.warning('Checkpoint %s cannot be read, trying the one before: its metrics are damaged', folder.name)
            folder.rename(folder.with_name(f'damaged-{folder.name}'))


def _as_dict(state: TrainState) -> dict:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
