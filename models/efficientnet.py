"""EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6).

In the layout of the official TensorFlow code and of the PyTorch package that carries its ImageNet weights.
"""

import flax.linen as nn

from models.layers import Batch, BatchNorm, Conv, Mode, add, drop
from models.network import Network

# Of each stage: kernel size, stride of its first block, expansion, channels, blocks.
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4))
_STAGES += ((3, 1, 6, 320, 1),)


class EfficientNetLite0(Network):
    """Features `[N, 1280]`; feature maps 'stage1' to 'stage7'."""

    dropout: float = 0.2
    drop_path: float = 0.2  # probability of leaving out the last block (stochastic depth), less for earlier ones
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3

    def backbone(self, images: Batch, mode: Mode) -> dict[str, Batch]:
        def conv_norm(x: Batch, features: int, conv: str, norm: str, size: int = 1, stride: int = 1, groups: int = 1):
            x = Conv(features, size, stride, groups, same=True, name=conv)(x)
            return BatchNorm(self.bn_momentum, self.bn_epsilon, name=norm)(x, mode)

        outputs = {}
        x = conv_norm(images, 32, 'conv_stem', 'bn0', 3, 2).map(nn.relu6)
        number, total = 0, sum(stage[-1] for stage in _STAGES)
        for stage, (size, stage_stride, expansion, out, blocks) in enumerate(_STAGES):
            for i in range(blocks):
                name, channels = f'blocks_{number}_', x.grad.shape[-1]
                stride = stage_stride if i == 0 else 1
                y, wide = x, expansion * channels
                if expansion > 1:
                    y = conv_norm(y, wide, name + 'expand_conv', name + 'bn0').map(nn.relu6)
                y = conv_norm(y, wide, name + 'depthwise_conv', name + 'bn1', size, stride, wide).map(nn.relu6)
                y = conv_norm(y, out, name + 'project_conv', name + 'bn2')
                if stride == 1 and channels == out:
                    rate = 0.0 if name + 'bn2' in mode.frozen else self.drop_path * number / total
                    y = add(x, drop(y, mode, rate, layer=number, whole='image'))
                x = y
                number += 1
            outputs[f'stage{stage + 1}'] = x
        x = conv_norm(x, 1280, 'conv_head', 'bn1').map(nn.relu6)
        return outputs | {'features': x.map(lambda x: x.mean(axis=(1, 2)))}

    def order(self) -> list[str]:
        return ['conv_stem|bn0', *(f'blocks_{i}_' for i in range(sum(stage[-1] for stage in _STAGES))), 'conv_head|bn1']
