"""Loads pretrained weights into a network: their sources, the names of their tensors, and checks that all fit.

Layers have the published names with '_' for '.', so a table of names is a few lines: a regular expression for the
layer's name, and a function of its groups that returns the name in the file.
"""

import dataclasses
import re
from collections.abc import Set
from typing import Any

import numpy as np

from errors import UserError
from models import files
from models.network import HEAD, is_head
from models.preprocess import Preprocessing

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation

# {kind of network: preprocessing of its published weights if the file does not say}
PREPROCESSING = {
    'ResNet': Preprocessing(*_IMAGENET, resolution=224, interpolation='bilinear', crop=0.875),
    # Its standardised filters cannot be summed for gray images, which are copied into three channels instead.
    'BiT': Preprocessing((0.5,) * 3, (0.5,) * 3, 224, 'bilinear', 0.875, channels=3),
    'EfficientNetLite0': Preprocessing((127 / 255,) * 3, (128 / 255,) * 3, 224, 'bicubic', 0.875),
}

# {kind of network and format: ((layer's name, name in the file), ...)}; the first that matches holds.
NAMES = {
    ('ResNet', 'torch'): (
        (r'(layer\d)_(\d+)_downsample_(\d)', '{}.{}.downsample.{}'.format),
        (r'(layer\d)_(\d+)_(\w+)', '{}.{}.{}'.format),
        (r'head', 'fc'.format),
        (r'(\w+)', '{}'.format),
    ),
    ('EfficientNetLite0', 'torch'): (
        (r'blocks_(\d+)_(\w+)', '_blocks.{}._{}'.format),
        (r'head', '_fc'.format),
        (r'(\w+)', '_{}'.format),
    ),
    ('BiT', 'torch'): (
        (r'stem', 'stem.conv'.format),
        (r'stage(\d)_block(\d+)_shortcut', lambda s, b: f'stages.{s - 1}.blocks.{b - 1}.downsample.conv'),
        (r'stage(\d)_block(\d+)_(\w+)', lambda s, b, layer: f'stages.{s - 1}.blocks.{b - 1}.{layer}'),
        (r'head', 'head.fc'.format),
        (r'(\w+)', '{}'.format),
    ),
    ('BiT', 'npz'): (
        (r'stem', 'resnet/root_block/standardized_conv2d'.format),
        (r'stage(\d)_block(\d+)_shortcut', 'resnet/block{}/unit{:02}/a/proj/standardized_conv2d'.format),
        (r'stage(\d)_block(\d+)_conv1', 'resnet/block{}/unit{:02}/a/standardized_conv2d'.format),
        (r'stage(\d)_block(\d+)_conv2', 'resnet/block{}/unit{:02}/b/standardized_conv2d'.format),
        (r'stage(\d)_block(\d+)_conv3', 'resnet/block{}/unit{:02}/c/standardized_conv2d'.format),
        (r'stage(\d)_block(\d+)_norm1', 'resnet/block{}/unit{:02}/a/group_norm'.format),
        (r'stage(\d)_block(\d+)_norm2', 'resnet/block{}/unit{:02}/b/group_norm'.format),
        (r'stage(\d)_block(\d+)_norm3', 'resnet/block{}/unit{:02}/c/group_norm'.format),
        (r'norm', 'resnet/group_norm'.format),
        (r'head', 'resnet/head/conv2d'.format),
        (r'(\w+)', '{}'.format),
    ),
}
_TORCH = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors of a file or of a run.

    Attributes:
        tensors: {name: tensor}.
        format: 'torch', 'npz' (BiT's files) or 'own' (a run).
        record: Their source, as config.json and result.json record it.
        preprocessing: Fields of Preprocessing that the source states.
    """

    tensors: dict[str, np.ndarray]
    format: str
    record: dict[str, Any]
    preprocessing: dict[str, Any]


def load(source: str) -> Weights:
    """Returns the weights that `model.pretrained` names.

    Raises:
        UserError: They do not exist or cannot be read.
    """
    located = files.locate(source)
    tensors = files.read(located.path)
    record = {'source': source, 'file': located.path.name, 'sha256': files.sha256(located.path)}
    if located.revision:
        record['revision'] = located.revision
    kind = 'npz' if located.path.suffix == '.npz' else 'torch'
    return Weights(tensors, kind, record, located.preprocessing or {})


def fill(kind: str, variables: dict, weights: Weights, above: Set[str]) -> dict:
    """Returns variables with the values of weights.

    For gray images the filters of the first convolution are summed over the colours. If the weights have no tensor of
    the shape of a layer on top of the backbone, the layer keeps its value, and the classifier becomes zero, so that its
    random values do not disturb the features in the first steps (as in BiT and VTAB).

    Args:
        kind: Name of the network's class, the key of NAMES.
        variables: Variables of the network.
        weights: The weights.
        above: Names of the layers on top of the backbone.

    Raises:
        UserError: Tensors are missing, unexpected or of another shape. The message lists all of them.
    """
    left = {name for name in weights.tensors if not name.endswith('num_batches_tracked')}
    missing, misshapen = [], []

    def value(collection: str, layer: str, leaf: str, own: np.ndarray) -> np.ndarray:
        leaves = {leaf, leaf.removesuffix('_target')} if weights.format == 'own' else {leaf.removesuffix('_target')}
        names = [name_in_file(weights.format, kind, collection, layer, leaf) for leaf in sorted(leaves, reverse=True)]
        name = next((name for name in names if name in weights.tensors), names[0])  # the target's begin as the source's
        left.discard(name)
        tensor = weights.tensors.get(name)
        if tensor is not None and weights.format == 'torch' and tensor.ndim > 1:
            tensor = np.moveaxis(tensor, (0, 1), (-1, -2))  # [out, in, ...] to [..., in, out]
        if tensor is not None and tensor.ndim == 4 and own.ndim == 2 and tensor.shape[:2] == (1, 1):
            tensor = tensor[0, 0]  # a classifier that is a 1x1 convolution
        if tensor is not None and tensor.ndim == 4 and tensor.shape[2] == 3 and own.shape[2] == 1:
            tensor = tensor.sum(2, keepdims=True)
        if tensor is not None and tensor.shape == own.shape:
            return np.asarray(tensor, np.float32)
        if layer in above:
            return np.zeros(own.shape, np.float32) if layer == HEAD else own
        if tensor is None:
            missing.append(name)
        else:
            misshapen.append(f'{name} {tensor.shape} for {own.shape}')
        return own

    filled = {
        collection: {
            layer: {leaf: value(collection, layer, leaf, own) for leaf, own in leaves.items()}
            for layer, leaves in layers.items()
        }
        for collection, layers in variables.items()
    }
    unexpected = [name for name in left if not (weights.format == 'own' and is_head(name.split('/')[1]))]
    if missing or unexpected or misshapen:
        parts = {'missing': missing, 'unexpected': unexpected, 'of another shape': misshapen}
        problems = '; '.join(
            f'{len(names)} {what}: {", ".join(sorted(names))}' for what, names in parts.items() if names
        )
        raise UserError(f"model.pretrained='{weights.record['source']}' does not fit the network ({problems}).")
    return filled


def name_in_file(form: str, kind: str, collection: str, layer: str, leaf: str) -> str:
    """Returns the name of a tensor in a file."""
    if form == 'own':
        return f'{collection}/{layer}/{leaf}'
    if (kind, form) not in NAMES:
        raise UserError(f'There is no table of names for {form} weights of {kind}.')
    match, make = next((m, make) for p, make in NAMES[kind, form] if (m := re.fullmatch(p, layer)))
    name = make(*(int(part) if part.isdigit() else part for part in match.groups()))
    if form == 'npz':
        return f'{name}/' + {'scale': 'gamma', 'bias': 'bias' if layer == HEAD else 'beta'}.get(leaf, leaf)
    return f'{name}.{_TORCH[leaf]}'
