"""One run, from its settings to result.json."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
from absl import logging

from data.pictures import folder as pictures
from errors import UserError
from models import pretrained
from train import checkpoint, diagnostics, evaluation, loop, processes, result
from train import mesh as mesh_lib
from train import step as step_lib
from train.run_folder import RunFolder
from train.settings import Settings
from train.streams import Streams
from train.trainer import Trainer


def prepare(settings: Settings, data_dir: str | None = None) -> tuple[Trainer, Streams]:
    """Reads data and pretrained weights and builds the trainer of a run.

    Args:
        settings: Settings of the run.
        data_dir: Folder of prepared data sets; by default tfds's own.

    Returns:
        The trainer and the data.

    Raises:
        UserError: The settings or the data are invalid.
    """
    streams = Streams.load(settings, data_dir)
    source = settings.model.get('pretrained')
    weights = None
    if source:
        is_run = pathlib.Path(source).expanduser().is_dir()
        weights = (checkpoint.weights if is_run else pretrained.load)(source)
    return Trainer.create(settings, streams.spec(settings), weights), streams


def run(
    settings: Settings, workdir: pathlib.Path, data_dir: str | None = None, profile: bool = False
) -> dict[str, Any]:
    """Trains and evaluates a run, or continues it from its last checkpoint. A finished run is not repeated.

    Args:
        settings: Settings of the run.
        workdir: Folder of the run.
        data_dir: Folder of prepared data sets; by default tfds's own.
        profile: Trace some of the first steps into profile/ in the folder.

    Returns:
        The content of result.json.

    Raises:
        UserError: The settings or the data are invalid.
        loop.Interrupted: After SIGTERM or Ctrl-C.
    """
    processes.check_same('settings', (settings, workdir))
    trainer, streams = prepare(settings, data_dir)
    processes.check_same('labels or images', streams.manifest)
    mesh = mesh_lib.create(*trainer.together)
    with jax.set_mesh(mesh):
        # Before anything is written.
        batch = mesh_lib.put_batch(mesh, streams.batches(trainer.batch_sizes, settings.seed, 0))
        evaluation.check(trainer, step_lib.check(trainer, batch))
        numbers = {'devices': mesh.size, 'processes': jax.process_count()}
        with RunFolder(workdir, settings, {**_identity(trainer), **numbers}) as folder:
            if (finished := folder.read_json('result.json')) is not None:
                print(f'{workdir} holds this very run, finished.' + ' No step is left to trace.' * profile)
                return finished
            _begin(trainer, streams, folder)
            _warn_of_rounding(folder, numbers)
            if settings.data.cache_features:
                streams = evaluation.features(trainer, streams, mesh)
            state = loop.train(trainer, streams, folder, mesh, profile)
            summarise = functools.partial(result.summarise, trainer, streams, folder, state, mesh.size)
            processes.on_main(lambda: folder.write_json('result.json', summarise()))
            return folder.read_json('result.json')


def _identity(trainer: Trainer) -> dict[str, Any]:
    """Returns what has to be equal, beside the settings, for a run to be continued."""
    weights, data = trainer.model.weights, trainer.settings.data
    return {
        'pictures': {name: pictures.fingerprint(name) for name in (data.name, data.target) if pictures.is_folder(name)},
        'weights': weights.record if weights else None,
        'preprocessing': dataclasses.asdict(trainer.model.preprocess),
    }


def _warn_of_rounding(folder: RunFolder, numbers: dict[str, int]) -> None:
    """Warns of a run that goes on with other numbers of devices or processes."""
    begun = {**numbers, 'processes': 1, **(folder.read_json('config.json') or {})}
    if any(begun[name] != number for name, number in numbers.items()):
        texts = []
        for values in (begun, numbers):
            texts += [values['devices'], f' of {values["processes"]} processes' if values['processes'] > 1 else '']
        logging.warning('Begun on %d devices%s, continued on %d%s: equal but for rounding.', *texts)


def _begin(trainer: Trainer, streams: Streams, folder: RunFolder) -> None:
    """Writes labels.json and prints a description of the run."""
    settings = trainer.settings
    if folder.read_json('labels.json') not in (None, streams.manifest):
        raise UserError(f'{folder.path} was begun with other labels or images. Choose another --workdir.')
    folder.write_json('labels.json', streams.manifest)
    diagnostics.check_statistics(trainer.model.frozen_statistics, trainer.model.weights)
    diagnostics.check_micro_batches(settings.micro_batches, trainer.apart)
    diagnostics.check_views(trainer.views, settings.data.weak.get('vertical_flip', False))
    counts = ', '.join(f'{len(indices)} {stream}' for stream, indices in streams.indices.items())
    test_images = len(streams.held_out['test'][0])
    data = settings.data.name + (f' -> {settings.data.target}' if settings.data.target else '')
    print(f'{" + ".join(settings.methods)} on {data}: {counts}, {test_images} test images -> {folder.path}')
