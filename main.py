"""Trains and evaluates one run:  python main.py --config=configs/fixmatch.py:digits,labels=20 --config.seed=1

The same command continues an interrupted run.
"""

import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from errors import UserError, unknown
from train import loop, mesh, run_folder, settings

_CONFIG = config_flags.DEFINE_config_file('config', help_string='Config file, with an argument after a colon.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder; by default runs/<a name made from the settings>.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Prepared data sets; by default ~/tensorflow_datasets.')


def main(argv: list[str]) -> None:
    """Does what the flags say."""
    if argv[1:]:
        raise UserError(f'Unexpected argument {argv[1]}: settings are given as --config.<name>=<value>.')
    run = settings.from_config(_CONFIG.value)
    workdir = pathlib.Path(_WORKDIR.value or run_folder.default(run))
    logging.set_verbosity(logging.WARNING)  # orbax has much to say
    mesh.configure()
    result = loop.run(run, workdir, _DATA_DIR.value)
    accuracy = {name: f'{100 * value:.2f} %' for name, value in result['test_accuracy'].items() if value is not None}
    print(f'test accuracy: {accuracy.pop("last")} (' + ', '.join(f'{k} {v}' for k, v in accuracy.items()) + ')')
    print(f'{result["seconds"]:.0f} s on {result["device"]}; everything is in {workdir}/')


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags and loads the config, with every mistake in them a UserError."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error)) from error
    except (AttributeError, KeyError) as error:  # an override of a key that the config does not have
        names = re.findall(r'[\'"](\w+)[\'"]', str(error).replace('\\', ''))
        hint = f" Did you mean '{names[1]}'?" if len(names) > 1 else ''
        raise UserError(f"Unknown setting '{names[0]}'.{hint} The config file lists all of them.") from error
    path = config_flags.get_config_filename(flags.FLAGS['config']) if flags.FLAGS['config'].present else ''
    valid = sorted(str(p) for p in pathlib.Path('configs').glob('*.py') if p.stem != 'common')
    if not path:
        raise UserError(f'Say what to run, --config=FILE, such as {", ".join(valid)}.')
    if not pathlib.Path(path.split(':')[0]).exists():
        raise unknown('config file', path.split(':')[0], valid)
    return rest


if __name__ == '__main__':
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        sys.exit(f'error: {error}')
    except loop.Interrupted as interruption:
        print(interruption, file=sys.stderr)
        sys.exit(128 + interruption.signal_number)
