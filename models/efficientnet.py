"""EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6).

Layers are arranged as in the official TensorFlow code and in the PyTorch package with its ImageNet weights.
"""

import flax.linen as nn
import jax

from models.layers import BatchNorm, Conv, Dropout

# For each stage: kernel size, stride of the first block, expansion, channels, number of blocks.
_STAGES: tuple[tuple[int, ...], ...]
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4))
_STAGES += ((3, 1, 6, 320, 1),)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0. Features `[N, 1280]`; feature maps 'stage1' to 'stage7'."""

    drop_path: float = 0.2  # probability of dropping the last block (stochastic depth); less for earlier ones
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        def conv_norm(x: jax.Array, features: int, conv: str, norm: str, size=1, stride=1, groups=1) -> jax.Array:
            convolved[conv] = Conv(features, size, stride, groups, same=True, name=conv)(x)
            return BatchNorm(self.bn_momentum, self.bn_epsilon, name=norm)(convolved[conv], train)

        outputs: dict[str, jax.Array] = {}
        convolved: dict[str, jax.Array] = {}
        x = nn.relu6(conv_norm(images, 32, 'conv_stem', 'bn0', 3, 2))
        number, total = 0, sum(stage[-1] for stage in _STAGES)
        for stage, (size, stage_stride, expansion, out, blocks) in enumerate(_STAGES):
            for i in range(blocks):
                name, channels = f'blocks_{number}_', x.shape[-1]
                stride = stage_stride if i == 0 else 1
                y, wide = x, expansion * channels
                if expansion > 1:
                    y = nn.relu6(conv_norm(y, wide, name + 'expand_conv', name + 'bn0'))
                y = nn.relu6(conv_norm(y, wide, name + 'depthwise_conv', name + 'bn1', size, stride, wide))
                y = conv_norm(y, out, name + 'project_conv', name + 'bn2')
                if stride == 1 and channels == out:
                    rate = self.drop_path * number / total
                    y = x + Dropout(rate, whole='image', name=name + 'drop_path')(y, train)
                x = y
                number += 1
            outputs |= {f'stage{stage + 1}': x, name + 'project_conv': convolved[name + 'project_conv']}
        x = nn.relu6(conv_norm(x, 1280, 'conv_head', 'bn1'))
        return outputs | {'map': x, 'features': x.mean(axis=(1, 2))}

    def order(self) -> list[tuple[str, ...]]:
        """Returns the prefixes of the names of each block's layers, from the images to the features."""
        blocks = [(f'blocks_{i}_',) for i in range(sum(stage[-1] for stage in _STAGES))]
        return [('conv_stem', 'bn0'), *blocks, ('conv_head', 'bn1')]
