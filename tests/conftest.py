"""Two CPU devices for every test, as on a machine with two cores, and a network small enough to compile fast."""

import contextlib
import gc
import importlib
import importlib.metadata
import os

os.environ['JAX_NUM_CPU_DEVICES'] = '2'
os.environ['JAX_PLATFORMS'] = 'cpu'
# Compiles in about a fifth of the time. What it compiles is slower, which networks as tiny as these do not notice.
os.environ['XLA_FLAGS'] = ' '.join(
    (
        os.environ.get('XLA_FLAGS', ''),
        '--xla_backend_optimization_level=0',
        '--xla_cpu_parallel_codegen_split_count=1',  # many small modules would be for idle cores
    )
)
if importlib.metadata.version('jaxlib') < '0.11':  # later ones do not know this flag, and unknown ones end the process
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
# The suite compiles the same steps again and again, in this process and in runs of their own.
os.environ['JAX_COMPILATION_CACHE_DIR'] = os.path.join(os.path.dirname(__file__), '..', '.pytest_cache', 'jax')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

import jax
import pytest

import configs
from train import settings as settings_lib
from train.streams import Streams

CONFIGS = configs.NAMES
# TEST_PRECISION=bfloat16 pytest tests/test_behaviour.py tests/test_behaviour_steps.py
PRECISION = os.environ.get('TEST_PRECISION', 'float32')

TINY = {
    'batch_size': 4,
    'data.unlabeled_ratio': 2,
    'model.blocks': (1,),
    'model.width': 1,
    'steps': 12,
    'log_steps': 2,
    'eval_steps': 3,
    'checkpoint_steps': 4,
}


def pytest_collection_finish():
    """Keeps the collector of garbage from looking through all that is imported again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items):
    """Puts the files first whose single tests take longest, so that all workers have something to do to the end."""
    long = ('test_docs.py', 'test_processes.py', 'test_tables_runs.py', 'test_loop.py', 'test_behaviour_steps.py')
    items.sort(key=lambda item: item.path.name not in long)


@pytest.fixture(scope='session')
def make_settings():
    """Returns a function: (config name, config argument, {key: override}) -> Settings of a tiny run on digits."""

    def make(name: str = 'fixmatch', arg: str = '', **overrides) -> settings_lib.Settings:
        config = importlib.import_module(f'configs.{name}').get_config(arg)
        config.update_from_flattened_dict({**TINY, 'model.precision': PRECISION, **overrides})
        return settings_lib.from_config(config)

    return make


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory) -> str:
    """Returns a folder in which the data sets of the tests are prepared."""
    return str(tmp_path_factory.mktemp('tensorflow_datasets'))


class Died(BaseException):
    """Ends a run in the middle of the loop, as nothing that the loop handles would."""


@pytest.fixture
def dies_at(monkeypatch):
    """Returns a function: step -> context in which a run must die when it draws the batch of that step."""

    @contextlib.contextmanager
    def at(last: int):
        draw = Streams.batch

        def batch(self, stream, seed, step, size):
            if step == last:
                raise Died
            return draw(self, stream, seed, step, size)

        with monkeypatch.context() as patch:
            patch.setattr(Streams, 'batch', batch)
            with pytest.raises(Died):
                yield

    return at


@pytest.fixture
def mesh():
    """Enters a mesh of both devices."""
    mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        yield mesh
