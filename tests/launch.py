"""main.py in a process of its own, forked from one that has already imported what takes seconds.

It differs from a process that a user starts in that memory is not set up for speed (train/startup.py).
"""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

import jax

ROOT = pathlib.Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['tables.command', 'train.experiment'])


class Main:
    """A process of 'python main.py <words>' in a folder, with the methods of subprocess.Popen that tests need.

    devices: Number of its CPU devices; None for $JAX_NUM_CPU_DEVICES.
    """

    def __init__(self, *words: str, cwd: pathlib.Path = ROOT, devices: int | None = None):
        self._folder = tempfile.TemporaryDirectory()
        self._files = [pathlib.Path(self._folder.name) / name for name in ('stdout', 'stderr')]
        self._process = CONTEXT.Process(target=_main, args=(words, cwd, self._files, devices))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self) -> tuple[str, str]:
        """Waits for the end. Returns what was written to stdout and stderr, the first time."""
        self._process.join()
        output, errors = (file.read_text() if file.exists() else '' for file in self._files)
        self._folder.cleanup()
        return output, errors


def main(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs 'python main.py <words>' to its end."""
    process = Main(*words)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def _main(words: tuple[str, ...], cwd: pathlib.Path, files: list[pathlib.Path], devices: int | None) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, 'w', buffering=1) for number in (1, 2))
    os.chdir(cwd)
    os.environ['GLIBC_TUNABLES'] = ''  # no restart
    if devices:
        jax.config.update('jax_num_cpu_devices', devices)  # imported before, JAX no longer reads the variable
    sys.argv = ['main.py', *words]
    runpy.run_path(str(ROOT / 'main.py'), run_name='__main__')
