"""EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6).

Layers are arranged as in the official TensorFlow code and in the PyTorch package with its ImageNet weights.
"""

import functools

import flax.linen as nn
import jax

from models.layers import BatchNorm, Conv, Dropout, block

# For each stage: kernel size, stride of the first block, expansion, channels, number of blocks.
_STAGES: tuple[tuple[int, ...], ...]
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4))
_STAGES += ((3, 1, 6, 320, 1),)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0. Features `[N, 1280]`; feature maps 'stage1' to 'stage7'."""

    drop_path: float = 0.2  # probability of dropping the last block (stochastic depth); less for earlier ones
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    remat: bool = False  # keep activations between blocks only, and compute those within again: less memory

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        def conv(x: jax.Array, features: int, name: str, size: int = 1, stride: int = 1, groups: int = 1) -> jax.Array:
            return Conv(features, size, stride, groups, same=True, name=name)(x)

        def norm(x: jax.Array, name: str) -> jax.Array:
            return BatchNorm(self.bn_momentum, self.bn_epsilon, name=name)(x, train)

        def inverted(
            x: jax.Array, out: int, name: str, size: int, stride: int, expansion: int, drop: float
        ) -> tuple[jax.Array, jax.Array]:
            y, channels = x, x.shape[-1]
            wide = expansion * channels
            if expansion > 1:
                y = nn.relu6(norm(conv(y, wide, name + 'expand_conv'), name + 'bn0'))
            y = nn.relu6(norm(conv(y, wide, name + 'depthwise_conv', size, stride, wide), name + 'bn1'))
            last = conv(y, out, name + 'project_conv')
            y = norm(last, name + 'bn2')
            if stride == 1 and channels == out:
                y = x + Dropout(drop, whole='image', name=name + 'drop_path')(y, train)
            return y, last

        outputs: dict[str, jax.Array] = {}
        x = nn.relu6(norm(conv(images, 32, 'conv_stem', 3, 2), 'bn0'))
        number, total = 0, sum(stage[-1] for stage in _STAGES)
        for stage, (size, stage_stride, expansion, out, blocks) in enumerate(_STAGES):
            for i in range(blocks):
                name, stride, drop = f'blocks_{number}_', stage_stride if i == 0 else 1, self.drop_path * number / total
                layers = functools.partial(
                    inverted, out=out, name=name, size=size, stride=stride, expansion=expansion, drop=drop
                )
                x, last = block(layers, x, self, self.remat)
                number += 1
            outputs |= {f'stage{stage + 1}': x, name + 'project_conv': last}
        x = nn.relu6(norm(conv(x, 1280, 'conv_head'), 'bn1'))
        return outputs | {'map': x, 'features': x.mean(axis=(1, 2))}

    def order(self) -> list[tuple[str, ...]]:
        """Returns the prefixes of the names of each block's layers, from the images to the features."""
        blocks = [(f'blocks_{i}_',) for i in range(sum(stage[-1] for stage in _STAGES))]
        return [('conv_stem', 'bn0'), *blocks, ('conv_head', 'bn1')]
