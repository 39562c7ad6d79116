"""What one command or one cell of a table makes: a run and, where asked for, what its features are worth."""

import pathlib
from typing import Any

from train import run as run_lib
from train import run_folder, transfer
from train.settings import Settings


def run(settings: Settings, workdir: pathlib.Path, data_dir: str | None = None) -> dict[str, Any]:
    """Makes a run, or continues it: training first, then the evaluation of its features (`transfer.labels`).

    Args:
        settings: Settings of the run.
        workdir: Folder of the run.
        data_dir: Folder of prepared data sets; tfds' own by default.

    Returns:
        The content of result.json. It gets 'transfer' when the features have been evaluated.

    Raises:
        UserError: For what the user can mend.
        train.loop.Interrupted: After SIGTERM or Ctrl-C.
    """
    transfer.check(settings, data_dir)  # an error before training, not after
    result = run_lib.run(settings, workdir, data_dir)
    if settings.transfer.labels and 'transfer' not in result:
        result['transfer'] = transfer.report(settings, workdir, data_dir)
        run_folder.write_json(workdir / 'result.json', result)
    return result
