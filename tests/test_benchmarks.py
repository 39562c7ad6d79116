"""That the benchmarks still run: their --help, and a round as small as can be."""

import importlib
import io
import json
import sys

import jax
import pytest

from benchmarks import augment, cost, devices, gpu, memory, methods, rounds, startup, step
from configs import fixmatch
from models import conv, precision


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Which would be for figures that count."""
    monkeypatch.setattr(rounds, 'SETTLE_SECONDS', 0)
    monkeypatch.setattr(rounds, '_WATCH_SECONDS', 0.05)


@pytest.fixture
def small_network(monkeypatch):
    """Makes configs/fixmatch.py's network one that compiles in seconds."""
    full = fixmatch.get_config

    def small(arg=''):
        config = full(arg)
        config.model.update(blocks=(1,), width=1)
        return config

    monkeypatch.setattr(fixmatch, 'get_config', small)


@pytest.mark.parametrize('name', ['augment', 'devices', 'gpu', 'methods', 'startup', 'step'])
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


def fake(seconds):
    """Returns the command of a process that says that it takes so many seconds, whatever the number of steps."""
    code = f'import sys; print("banner", flush=True); [print({seconds}, flush=True) for _ in sys.stdin]'
    return sys.executable, '-c', code


def test_step_compares_with_pytorch(monkeypatch, capsys):
    monkeypatch.setattr(step, 'commands', lambda *_: {'joint, ours': fake(2), 'joint, PyTorch': fake(3)})
    step.main(['--batch_size=4', '--rounds=1'])
    ours, torch = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert ours == ['joint,', 'ours', '60', '1.00', '1.50']
    assert torch == ['joint,', 'PyTorch', '40', '1.50', '1.00']


def test_step_without_pytorch(monkeypatch, capsys):
    commands = {'joint, ours': fake(2), 'joint, PyTorch': (sys.executable, '-c', '')}
    monkeypatch.setattr(step, 'commands', lambda *_: commands)
    step.main(['--rounds=1'])
    out = capsys.readouterr().out
    assert 'joint, PyTorch: not there, so no ratios' in out
    assert out.endswith('nan\n')


def test_devices_in_total_and_as_a_ratio(monkeypatch, capsys):
    monkeypatch.setattr(step, 'ours', lambda *_: fake(2))
    monkeypatch.setattr(devices.os, 'sched_getaffinity', lambda _: {4, 5})
    used = []
    monkeypatch.setattr(devices.os, 'sched_setaffinity', lambda _, cores: used.append(sorted(cores)))
    devices.main(['--rounds=1'])
    rows = [line.rsplit(maxsplit=4) for line in capsys.readouterr().out.splitlines()[-4:]]
    # 50 steps in 2 seconds; of two processes each.
    assert [row[:3] for row in rows] == [
        ['cores: 1, a device each', '25.00', '1.00'],
        ['cores: 2, a device each', '25.00', '1.00'],
        ['cores: 2, one device', '25.00', '1.00'],
        ['cores: 2, a process each', '50.00', '2.00'],
    ]
    assert used[::2] == [[4], [4, 5], [4, 5], [4], [5]]
    assert used[1::2] == [[4, 5]] * 5


@pytest.mark.parametrize(
    ('gpus', 'expected'),
    [
        ('0', {'GPUs: 1': ['0'], 'GPUs: 1, in 2 processes': ['0', '0']}),
        (
            '123',
            {'GPUs: 1': ['1'], 'GPUs: 2': ['1,2'], 'GPUs: 3': ['1,2,3'], 'GPUs: 3, in 3 processes': ['1', '2', '3']},
        ),
    ],
)
def test_devices_are_gpus(gpus, expected):
    contestants = devices.contestants(list(gpus), [0])
    visible = {name: [e['CUDA_VISIBLE_DEVICES'] for _, e in processes] for name, processes in contestants.items()}
    assert visible == expected


def test_cost(monkeypatch, capsys):
    monkeypatch.setattr(conv, 'has_avx512', conv.has_avx512)  # `main` changes it
    small = {'model.blocks': (1,), 'model.width': 1, 'batch_size': 2}
    monkeypatch.setitem(cost.RECIPES, 'WRN-28-2', cost.Recipe('fixmatch:cifar10,labels=40', (32, 32, 3), 10, small))
    cost.main(['WRN-28-2'])
    row = capsys.readouterr().out.splitlines()[2].split(' | ')
    # Three convolutions of 3x3, to 16 channels each, at 32x32 pixels without those outside. The first has no gradient
    # in its input. The rest of the step, batch norm and the augmentation above all, is less than half of it.
    products = 2 * 16 * 94**2 * (2 * 3 + 3 * 16 + 3 * 16) * 30 / 1e9
    assert row[2] == '30'
    assert products < float(row[3]) < 1.5 * products


def test_speed_is_that_of_the_tighter_limit():
    work, chip = cost.Cost(1, flop=6.0, traffic=3.0, memory=0.0), {'float32': 60.0, 'bfloat16': 600.0}
    assert work.speed(cost.GPU(chip, 90.0), 'float32') == pytest.approx(10 * cost.UTILISATION)
    assert work.speed(cost.GPU(chip, 90.0), 'bfloat16') == pytest.approx(30 * cost.UTILISATION)


def test_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(augment, 'REPEATS', 1)
    monkeypatch.setattr(precision, 'PRECISIONS', {'float32': precision.PRECISIONS['float32']})
    monkeypatch.setattr(gpu, 'alone', gpu.part)
    monkeypatch.setattr(step, 'ours', lambda *_: fake(2))
    gpu.main(['--small', '--rounds=1', f'--out={tmp_path}/gpu.json'])
    written = json.loads((tmp_path / 'gpu.json').read_text())
    assert written['machine']['device'] == '2 x cpu'
    assert written['machine']['jax'] == jax.__version__
    speeds = {name: values for name, (_, values) in written['rows'].items()}
    assert [name.partition(',')[0] for name in speeds] == [
        'WRN-28-2',
        *('RandAugment and a weak view', 'batches on the host', 'batches to the device'),
        *('1 process', '2 processes on the device'),
    ]
    assert all(len(values) == 1 and values[0] > 0 for values in speeds.values())
    assert list(speeds.values())[-2:] == [[0.5], [1.0]]  # a step in 2 seconds, of each process
    assert sum(line.startswith('| ') for line in capsys.readouterr().out.splitlines()) == 2 + len(speeds)


def test_gpu_goes_on_without_what_does_not_fit(monkeypatch, capsys):
    def full(trainer):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nmore of it')

    monkeypatch.setattr(step, 'compiled', full)
    monkeypatch.setattr(rounds, 'busy_cores', lambda: 0.0)
    assert gpu.steps('WRN-28-2', 1, small=True) == {}
    assert 'WRN-28-2, bfloat16: RESOURCE_EXHAUSTED: Out of memory\n' in capsys.readouterr().out


def test_gpu_goes_on_where_no_second_process_fits(monkeypatch, capfd):
    commands = iter([fake(2), (sys.executable, '-c', 'print("banner")')])
    monkeypatch.setattr(step, 'start', lambda stack, *_, start=step.start, **__: start(stack, *next(commands)))
    assert gpu.shared(1, small=True) == {}
    assert 'One of two processes on the device failed' in capfd.readouterr().out


@pytest.mark.parametrize(
    ('busy', 'words'), [(0.0, 'Idle: '), (1.2, 'NOT IDLE, these figures do not count: '), (float('nan'), 'How busy ')]
)
def test_figures_say_whether_they_count(busy, words, monkeypatch, capsys):
    monkeypatch.setattr(rounds, 'busy_cores', lambda: busy)
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


def test_memory_of_a_step_in_parts(monkeypatch, capsys):
    monkeypatch.setattr(conv, 'has_avx512', conv.has_avx512)  # `main` changes it
    small = {'model.blocks': (1,), 'model.width': 1, 'batch_size': 8}
    monkeypatch.setitem(cost.RECIPES, 'WRN-28-2', cost.Recipe('supervised:cifar10,labels=40', (32, 32, 3), 10, small))
    memory.main(['--micro_batches=1,4'])
    (_, _, state, whole), (*_, same, parts) = (
        line.strip('| ').split(' | ') for line in capsys.readouterr().out.splitlines()[2:]
    )
    assert state == same
    assert int(parts) < 0.6 * int(whole)


def test_startup_prints_both_caches_beside_each_other(monkeypatch, capsys):
    values = iter([dict.fromkeys((*startup.PHASES, 'in all', *startup.EVENTS.values()), n) for n in (1.0, 0.5)])
    monkeypatch.setattr(startup, 'measure', lambda *_: next(values))
    startup.main(['--rounds=1'])
    rows = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()[2:]]
    assert ['imports', '1.0', '0.5'] in rows
    assert ['in all', '1.0', '0.5'] in rows
