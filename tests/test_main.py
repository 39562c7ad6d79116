"""The command line: every mistake is one line that says what to do, and a non-zero exit."""

import shlex
import subprocess
import sys

import launch
import numpy as np
import pytest

from data import datasets
from data.builders import idx

# (flags, what the line says)
MISTAKES = [
    ([], 'Say what to run, --config=FILE, such as configs/'),
    (
        ['--config=configs/fixmtch.py'],
        "Unknown config file 'configs/fixmtch.py'. Did you mean 'configs/fixmatch.py'",
    ),
    (['--config=configs/fixmatch.py:cifr10'], "Unknown data set 'cifr10'. Did you mean 'cifar10'"),
    (['--config=configs/fixmatch.py', '--config.stepz=3'], "Unknown setting 'stepz'. Did you mean 'steps'"),
    (
        ['--config=configs/fixmatch.py', '--config.methods.fixmatch.treshold=1'],
        "Unknown setting 'methods.fixmatch.treshold'. Did you mean 'methods.fixmatch.threshold'",
    ),
    (
        ['--config=configs/fixmatch.py', '--config.methods.fixmach.threshold=1'],
        "Unknown setting 'methods.fixmach'. Did you mean 'methods.fixmatch'",
    ),
    (['--config=configs/fixmatch.py', '--config.data.name.foo=1'], "Setting 'data.name' has no part 'foo'"),
    (['--config=configs/fixmatch.py', '--config.data.mean[3]=1'], "Did you mean 'data.mean'"),
    (['--config=configs/fixmatch.py', '--config.data.mean=(x'], "'mean' must be a tuple of float"),
    (['--config=configs/fixmatch.py', '--config.data.weak.pad=8'], 'pad=8 must be less than the image'),
    (['--config=configs/fixmatch.py:labels=0'], 'data.labels must be at least 1'),
    (
        ['--config=configs/fixmatch.py', '--config.data.mean=(.5,.5)', '--config.data.std=(.5,.5)'],
        'digits has 1 channels',
    ),
    (['--config=configs/fixmatch.py', '--config.steps=many'], '--config.steps=many'),
    (['--config=configs/fixmatch.py', 'digits'], 'Unexpected argument digits'),
    (
        ['--config=configs/fixmatch.py', '--config.data.name=digit'],
        "Unknown data set 'digit'. Did you mean 'digits'",
    ),
    (['--config=configs/fixmatch.py', '--config.model.name=resnet'], "Unknown model 'resnet'"),
    (['--config=configs/fixmatch.py:labels=2000'], 'class 0'),
    (['--config=configs/fixmatch.py:cifar10'], 'python -m data.prepare cifar10'),
    (['--config=configs/fixmatch.py:kmnist'], 'python -m data.prepare kmnist --data_dir='),
    (['--config=configs/fixmatch.py', '--workdir=/proc/run'], 'Cannot write to /proc/run'),
]


@pytest.mark.parametrize(('flags', 'text'), MISTAKES, ids=[' '.join(flags) for flags, _ in MISTAKES])
def test_mistakes_are_one_line(flags, text, data_dir, tmp_path):
    where = [] if any('--workdir' in flag for flag in flags) else [f'--workdir={tmp_path}/run']
    done = launch.main(*flags, f'--data_dir={data_dir}', *where)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith('error: ')
    assert text in lines[0]
    assert not (tmp_path / 'run').exists()


def test_what_a_run_assumes_and_does_not_use_and_what_is_next_is_said(tmp_path):
    images, classes = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8), np.arange(40) % 10
    builder = idx.from_arrays('kmnist', {'train': (images, classes), 'test': (images, classes)}, str(tmp_path))
    datasets.write(builder)
    settings = ('model.blocks=(1,)', 'steps=1', 'data.target_split=a/b', 'transfer.steps=7', 'data.strong.cutout=2')
    flags = [f'--config.{setting}' for setting in settings]
    where = ('--data_dir', str(tmp_path), f'--workdir={tmp_path}/run')
    config = '--config=configs/fixmatch.py:kmnist,labels=10'
    words = (sys.executable, 'main.py', config, *flags, *where)
    done = subprocess.run(words, cwd=launch.ROOT, capture_output=True, text=True, check=True)
    first = done.stdout.splitlines()[0]
    assert first.startswith('kmnist (10 classes, 28x28 pixels, gray): no recipe in configs/data_sets.py, assumed ')
    assert 'steps' not in first  # which the command says
    assert [line for line in done.stderr.splitlines() if 'no effect' in line] == [
        'warning: --config.data.target_split has no effect without a data.target.',
        'warning: --config.transfer.steps has no effect without transfer.labels.',
    ]
    # The last line is a command for a run that begins with the network of this one.
    typed = [config, *flags, f'--config.model.pretrained={tmp_path}/run', f'--data_dir={tmp_path}']
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[:2] == ['python', 'main.py']
    assert sorted(words[2:]) == sorted(typed)
