"""One command or one cell of a table: a run and, if asked for, an evaluation of the learned features."""

import pathlib
from typing import Any

from train import processes, run_folder, transfer
from train import run as run_lib
from train.settings import Settings


def run(
    settings: Settings, workdir: pathlib.Path, data_dir: str | None = None, profile: bool = False
) -> dict[str, Any]:
    """Makes or continues a run: first training, then the evaluation of its features (`transfer.labels`).

    Args:
        settings: Settings of the run.
        workdir: Folder of the run.
        data_dir: Folder of prepared data sets; by default tfds's own.
        profile: Trace some of the first steps into profile/ in the folder.

    Returns:
        The content of result.json, with 'transfer' if the features have been evaluated.

    Raises:
        UserError: The settings or the data are invalid.
        train.loop.Interrupted: After SIGTERM or Ctrl-C.
    """
    transfer.check(settings, data_dir)  # raises errors before training
    result = run_lib.run(settings, workdir, data_dir, profile)
    if settings.transfer.labels and 'transfer' not in result:
        result['transfer'] = transfer.report(settings, workdir, data_dir)
        processes.on_main(lambda: run_folder.write_json(workdir / 'result.json', result))
    return result
