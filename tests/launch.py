"""main.py in a process of its own, forked from one that has already imported what takes seconds."""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['tables.command', 'train.experiment'])


def main(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs 'python main.py <words>' in the root of the repository.

    It differs from a process that a user starts in that imports are made before, and memory is not set up for speed.

    Args:
        *words: Flags.

    Returns:
        The exit status, and what was written to stdout and stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / name for name in ('stdout', 'stderr')]
        process = _CONTEXT.Process(target=_main, args=(words, files))
        process.start()
        process.join()
        return subprocess.CompletedProcess(words, process.exitcode, *(file.read_text() for file in files))


def _main(words: list[str], files: list[pathlib.Path]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, 'w', buffering=1) for number in (1, 2))
    os.chdir(ROOT)
    os.environ['GLIBC_TUNABLES'] = ''  # no restart
    sys.argv = ['main.py', *words]
    runpy.run_path('main.py', run_name='__main__')
