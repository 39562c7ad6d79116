"""Trains and evaluates one run:  python main.py --config=configs/fixmatch.py:digits,labels=20 --config.seed=1

The same command continues an interrupted run.
"""

import pathlib
import runpy
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from errors import UserError, first_line, unknown
from train import startup

_CONFIG = config_flags.DEFINE_config_file('config', help_string='Config file, with an argument after a colon.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder; by default runs/<a name made from the settings>.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Prepared data sets; by default ~/tensorflow_datasets.')


def main(argv: list[str]) -> None:
    """Does what the flags say."""
    from train import loop, mesh, run_folder, settings, transfer  # only now: JAX and tfds take seconds, and errors none

    if argv[1:]:
        raise UserError(f'Unexpected argument {argv[1]}: settings are given as --config.<name>=<value>.')
    run = settings.from_config(_CONFIG.value)
    workdir = pathlib.Path(_WORKDIR.value or run_folder.default(run))
    logging.set_verbosity(logging.WARNING)  # orbax has much to say
    mesh.configure()
    try:
        result = loop.run(run, workdir, _DATA_DIR.value)
    except loop.Interrupted as interruption:
        print(interruption, file=sys.stderr)
        sys.exit(128 + interruption.signal_number)
    if 'transfer' in result:
        print(transfer.table(result['transfer']))
    for rule, found in result.get('selection', {}).items():
        chosen = 'no step, as predictions have collapsed'
        if found['step'] is not None:
            distance = f'proxy A-distance {found["a_distance"]:.2f}'
            chosen = f'{100 * found["test_accuracy"]:.2f} % (step {found["step"]}, {distance})'
        print(f'chosen without target labels by {rule}: {chosen}')
    accuracy = {name: f'{100 * value:.2f} %' for name, value in result['test_accuracy'].items() if value is not None}
    print(f'test accuracy: {accuracy.pop("last")} (' + ', '.join(f'{k} {v}' for k, v in accuracy.items()) + ')')
    print(f'{result["seconds"]:.0f} s on {result["device"]}; everything is in {workdir}/')


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags and loads the config, with every mistake in them a UserError."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(first_line(error)) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _override_error(argv, error) from error
    path = config_flags.get_config_filename(flags.FLAGS['config']) if flags.FLAGS['config'].present else ''
    folder = pathlib.Path(__file__).parent / 'configs'
    valid = sorted(f'configs/{p.name}' for p in folder.glob('*.py') if p.stem != 'common')
    if not path:
        raise UserError(f'Say what to run, --config=FILE, such as {", ".join(valid)}.')
    if not pathlib.Path(path.split(':')[0]).exists():
        raise unknown('config file', path.split(':')[0], valid)
    return rest


def _override_error(argv: list[str], error: Exception) -> UserError:
    """Finds the first --config.<name> that does not exist, which ml_collections' own errors do not name in full."""
    path = next((a.partition('=')[2] for a in argv if a.startswith(('--config=', '-config='))), None)
    if path is None:
        return UserError(f'Give the config file as --config=FILE. ({first_line(error)})')
    path, colon, argument = path.partition(':')
    config = runpy.run_path(path)['get_config'](*[argument] if colon else [])  # its own mistakes show here
    for argument in argv:
        flag, _, name = argument.partition('=')[0].partition('config.')
        if flag not in ('--', '-', '--no', '-no'):
            continue
        node, keys = config, name.split('.')
        for i, key in enumerate(keys):
            if not isinstance(node, ConfigDict):
                return UserError(f"Setting '{'.'.join(keys[:i])}' has no part '{key}'.")
            if key not in node:
                return unknown('setting', '.'.join(keys[: i + 1]), ['.'.join([*keys[:i], k]) for k in node])
            node = node[key]
    return UserError(f'A --config.<name>=<value> cannot be applied: {first_line(error)}')


if __name__ == '__main__':
    startup.use_huge_pages()
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
