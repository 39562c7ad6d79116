"""That the benchmarks still run: their --help, and a round as small as can be."""

import importlib
import io
import sys

import jax
import pytest

from benchmarks import augment, methods, rounds, step
from configs import fixmatch
from models import conv


@pytest.fixture
def small_network(monkeypatch):
    """Makes configs/fixmatch.py's network one that compiles in seconds."""
    full = fixmatch.get_config

    def small(arg=''):
        config = full(arg)
        config.model.update(blocks=(1,), width=1)
        return config

    monkeypatch.setattr(fixmatch, 'get_config', small)


@pytest.mark.parametrize('name', ['augment', 'methods', 'step'])
def test_help(name, capsys):
    with pytest.raises(SystemExit, match='0'):
        importlib.import_module(f'benchmarks.{name}').main(['--help'])
    assert '--rounds' in capsys.readouterr().out


def test_augment(monkeypatch, capsys):
    monkeypatch.setattr(augment, 'PIL_IMAGES', 2)
    monkeypatch.setattr(augment, 'REPEATS', 1)
    augment.main(['--batch_size=2', '--rounds=1'])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:13] for line in lines[-5:]] == [
        *('ours google  ', 'ours torchssl', 'ours distorte', 'PIL google, o', 'PIL distorted'),
    ]
    assert all(line.endswith(' 1.0') for line in lines[-2:])


@pytest.mark.usefixtures('small_network')
def test_methods(monkeypatch, capsys):
    monkeypatch.setattr(methods, 'STEPS', 1)
    methods.main(['--rounds=1', 'fixmatch'])
    # B labeled images, B * mu weak and strong: 1 + 2 * mu forward, 1 + mu backward, of 1 + mu images; mu is 3.
    assert capsys.readouterr().out.splitlines()[-1].split()[3:5] == ['1.75', '1.00']


@pytest.mark.usefixtures('small_network')
def test_step_answers_with_seconds(monkeypatch, capsys):
    monkeypatch.setattr(conv, 'has_avx512', conv.has_avx512)  # `serve` changes it
    monkeypatch.setenv('GLIBC_TUNABLES', '')  # as if this process had been started anew
    monkeypatch.setattr(sys, 'stdin', io.StringIO('1\n2\n'))
    step.serve('wide_resnet', 'no_grad', 'blocked', batch_size=2)
    banner, *seconds = capsys.readouterr().out.splitlines()
    assert banner.startswith(f'jax {jax.__version__}, 2 x cpu with')
    assert len(seconds) == 2
    assert min(map(float, seconds)) > 0


def test_step_compares_with_pytorch(monkeypatch, capsys):
    def fake(seconds):
        return (
            sys.executable,
            '-c',
            f'import sys; print("banner", flush=True); [print({seconds}, flush=True) for _ in sys.stdin]',
        )

    monkeypatch.setattr(step, 'commands', lambda *_: {'joint, ours': fake(2), 'joint, PyTorch': fake(3)})
    step.main(['--batch_size=4', '--rounds=1'])
    ours, torch = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert ours == ['joint,', 'ours', '60', '1.00', '1.50']
    assert torch == ['joint,', 'PyTorch', '40', '1.50', '1.00']


def test_step_without_pytorch(monkeypatch, capsys):
    ours = (sys.executable, '-c', 'import sys; print("banner", flush=True); [print(2, flush=True) for _ in sys.stdin]')
    monkeypatch.setattr(
        step, 'commands', lambda *_: {'joint, ours': ours, 'joint, PyTorch': (sys.executable, '-c', '')}
    )
    step.main(['--rounds=1'])
    out = capsys.readouterr().out
    assert 'joint, PyTorch: not there, so no ratios' in out
    assert out.endswith('nan\n')


@pytest.mark.parametrize(
    ('busy', 'words'), [(0.0, 'Idle: '), (1.2, 'NOT IDLE, these figures do not count: '), (float('nan'), 'How busy ')]
)
def test_figures_say_whether_they_count(busy, words, monkeypatch, capsys):
    monkeypatch.setattr(rounds, 'busy_cores', lambda: busy)
    monkeypatch.setattr(rounds, '_SETTLE_SECONDS', 0)
    runs = iter(range(6))
    results = rounds.measure({'a': lambda: next(runs), 'b': lambda: next(runs)}, rounds=3)
    assert sorted(results['a'] + results['b']) == list(range(6))
    assert len(results['a']) == 3
    assert capsys.readouterr().out.startswith(words)


def test_busy_cores_sees_another_program(monkeypatch):
    times = iter([100.0, 100.4])
    monkeypatch.setattr(rounds, '_cpu_seconds', lambda: next(times))
    monkeypatch.setattr(rounds, '_WATCH_SECONDS', 0.2)
    assert 1 < rounds.busy_cores() <= 2


def test_busy_cores_where_the_system_does_not_say(monkeypatch):
    def missing():
        raise FileNotFoundError

    monkeypatch.setattr(rounds, '_cpu_seconds', missing)
    assert rounds.busy_cores() != rounds.busy_cores()


def test_weight_gradient_follows_the_cpu(monkeypatch):
    x, kernel = jax.numpy.ones((1, 8, 8, 8)), jax.numpy.ones((3, 3, 8, 8))
    for has_avx512 in (True, False):
        monkeypatch.setattr(conv, 'has_avx512', lambda has=has_avx512: has)
        assert ('custom_vjp' in str(jax.make_jaxpr(lambda x: conv.conv(x, kernel))(x))) == (not has_avx512)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512cd\n', True),
        ('processor\t: 0\nflags\t\t: fpu avx2\n', False),
        ('processor\t: 0\nFeatures\t: fp asimd\n', False),
        (None, False),
    ],
)
def test_has_avx512(text, expected, monkeypatch):
    def fake_open(path):
        if text is None:
            raise FileNotFoundError(path)
        return io.StringIO(text)

    monkeypatch.setattr('builtins.open', fake_open)
    assert conv.has_avx512.__wrapped__() is expected
