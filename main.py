"""Trains and evaluates one run, or all that a table is made of.

    python main.py --config=configs/fixmatch.py:digits,labels=20 --config.seed=1
    python main.py --config=configs/tables/digits.py --jobs=2

The same command continues what was interrupted.
"""

import logging as standard_logging
import os
import pathlib
import re
import runpy
import shlex
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import configs
from errors import UserError, first_line, unknown
from train import startup

_CONFIG = config_flags.DEFINE_config_file('config', help_string='Config file, with an argument after a colon.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Run folder, by default runs/<a name made from the settings>; of a table, runs/tables/<its name>.'
)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Prepared data sets; by default ~/tensorflow_datasets.')
_PROFILE = flags.DEFINE_bool('profile', False, 'Trace some of the first steps, for TensorBoard or Perfetto.')
# For a run of several processes; SLURM, Open MPI and TPUs say these themselves.
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0; by default $JAX_COORDINATOR_ADDRESS.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes of the run.', 1)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.', 0)
# For tables.
_JOBS = flags.DEFINE_integer(
    'jobs', None, 'Cells of a table to make at once, each with its share of the cores; by default 1, or 1 a GPU.', 1
)
_GPUS = flags.DEFINE_list('gpus', [], 'GPUs to spread the jobs of a table over, such as 0,1.')
_LIST = flags.DEFINE_bool('list', False, 'Say what a table would run, and how long it would take.')
_SLURM = flags.DEFINE_bool('slurm', False, 'Print the script of a SLURM array job that makes the runs of a table.')
_CHECK = flags.DEFINE_bool('check', False, 'Say which rows of a table were made by other code than the present one.')
_RENEW = flags.DEFINE_bool('renew', False, 'Make those runs of a table again that other code or settings made.')
_OF_A_RUN: tuple[flags.FlagHolder, ...] = (_PROFILE, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
_OF_A_TABLE: tuple[flags.FlagHolder, ...] = (_JOBS, _GPUS, _LIST, _SLURM, _CHECK, _RENEW)


def main(argv: list[str]) -> None:
    """Does what the flags say."""
    standard_logging.addLevelName(standard_logging.WARNING, 'warning')
    logging.get_absl_handler().setFormatter(standard_logging.Formatter('%(levelname)s: %(message)s'))
    if argv[1:]:
        raise UserError(f'Unexpected argument {argv[1]}: settings are given as --config.<name>=<value>.')
    if 'rows' in _CONFIG.value:
        for flag in _OF_A_RUN:
            if flag.present:
                raise UserError(f'--{flag.name} is for a run, not for a table.')
        _table()
        return
    for flag in _OF_A_TABLE:
        if flag.present:
            raise UserError(f'--{flag.name} is for tables, such as --config=configs/tables/digits.py.')
    from train import mesh, processes  # only now: JAX and tfds take seconds, and errors none

    mesh.configure()
    with processes.joined(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value):
        _run()


def _run() -> None:
    from configs import data_sets
    from train import experiment, loop, processes, run_folder, settings, transfer

    run_settings = settings.from_config(_CONFIG.value)
    if text := data_sets.assumed(run_settings):
        print(text)
    idle = settings.idle(run_settings)
    for name in config_flags.get_override_values(flags.FLAGS['config']):
        part = name.rpartition('.')[0]
        if reason := idle.get(name) or idle.get(part):
            logging.warning('--config.%s has no effect %s.', name, reason)
    workdir = pathlib.Path(_WORKDIR.value or run_folder.default(run_settings))
    try:
        result = experiment.run(run_settings, workdir, _DATA_DIR.value, _PROFILE.value)
    except loop.Interrupted as interruption:
        if processes.is_main():
            print(interruption, file=sys.stderr)
        sys.exit(128 + interruption.signal_number)
    if 'transfer' in result:
        print(transfer.table(result['transfer']))
    for rule, choice in result.get('selection', {}).items():
        text = 'no step, as predictions have collapsed'
        if choice['step'] is not None:
            distance = f'proxy A-distance {choice["a_distance"]:.2f}'
            text = f'{100 * choice["test_accuracy"]:.2f} % (step {choice["step"]}, {distance})'
        print(f'chosen without target labels by {rule}: {text}')
    accuracy = {name: f'{100 * value:.2f} %' for name, value in result['test_accuracy'].items() if value is not None}
    print(f'test accuracy: {accuracy.pop("last")} (' + ', '.join(f'{k} {v}' for k, v in accuracy.items()) + ')')
    print(f'{result["seconds"]:.0f} s on {result["device"]}; everything is in {workdir}/')
    print(f'next: draw curves from {workdir}/metrics.jsonl, a JSON row a line, or begin another run with this network:')
    data_dir = [f'--data_dir={_DATA_DIR.value}'] if _DATA_DIR.value else []
    print(_command_line(*data_dir, **{'model.pretrained': str(workdir)}))


def _table() -> None:
    from tables import command, runner

    path, _, argument = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    name = '-'.join([pathlib.Path(path).stem, *re.findall(r'\w+', argument)])
    table = command.Command(_CONFIG.value, name, _command_line(), _WORKDIR.value, _RENEW.value)
    jobs = _JOBS.value or max(1, len(_GPUS.value))
    if _LIST.value:
        print(table.listing(jobs))
        return
    if _SLURM.value:
        print(table.slurm(_DATA_DIR.value))
        return
    if _CHECK.value:
        fresh, text = table.check()
        print(text)
        sys.exit(not fresh)
    try:
        print(table.make(jobs, _GPUS.value, _DATA_DIR.value))
    except runner.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal_number)


def _command_line(*others: str, **changed: str) -> str:
    """Returns the command with the config and the settings that were typed.

    Args:
        *others: Further flags.
        **changed: {setting: value} instead of what was typed.
    """
    config = flags.FLAGS['config']
    settings = config_flags.get_override_values(config) | changed
    path = config_flags.get_config_filename(config)
    overrides = [f'--config.{name}={value}' for name, value in settings.items()]
    return shlex.join(['python', 'main.py', f'--config={path}', *overrides, *others])


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags and loads the config, with every mistake in them a UserError."""
    # A config file may look at the data set's description, and is read while flags are parsed.
    for argument, after in zip(argv, [*argv[1:], ''], strict=True):
        name, equals, value = argument.partition('=')
        if name in ('--data_dir', '-data_dir'):
            os.environ['TFDS_DATA_DIR'] = value if equals else after
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(first_line(error)) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _override_error(argv, error) from error
    path = config_flags.get_config_filename(flags.FLAGS['config']) if flags.FLAGS['config'].present else ''
    tables = (pathlib.Path(__file__).parent / 'configs' / 'tables').glob('*.py')
    valid = [f'configs/{name}.py' for name in configs.NAMES]
    valid += sorted(f'configs/tables/{table.name}' for table in tables if table.stem != 'common')
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
    logging.set_verbosity(logging.WARNING)  # orbax and tfds have much to say
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
