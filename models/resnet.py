"""ResNets: torchvision's (v1.5, with ResNeXt and wide variants, and with a stem for small images) and BiT's (v2).

He et al. 2016, arXiv:1512.03385 and arXiv:1603.05027; Xie et al. 2017, arXiv:1611.05431; Zagoruyko & Komodakis 2016,
arXiv:1605.07146; Kolesnikov et al. 2020 (Big Transfer), arXiv:1912.11370. v1.5 is v1 with the stride of a bottleneck
in its 3x3 convolution. Layers have torchvision's names, with '_' for '.'.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import BatchNorm, Conv, GroupNorm


class ResNet(nn.Module):
    """ResNet v1.5. Features `[N, 512]`, or `[N, 2048]` with bottlenecks; feature maps 'layer1' to 'layer4'."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    groups: int = 1  # of the 3x3 convolution of a bottleneck block
    group_width: int = 64  # channels per group in the first stage
    small_images: bool = False  # a 3x3 convolution at full resolution as the stem, usual for 32x32 images
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        def conv_norm(x: jax.Array, features: int, conv: str, norm: str, size: int, stride: int = 1, groups: int = 1):
            convolved[conv] = Conv(features, size, stride, groups, name=conv)(x)
            return BatchNorm(self.bn_momentum, self.bn_epsilon, name=norm)(convolved[conv], train)

        def block(x: jax.Array, features: int, name: str, stride: int) -> jax.Array:
            def layer(x: jax.Array, number: int, features: int, size: int, **settings) -> jax.Array:
                return conv_norm(x, features, f'{name}conv{number}', f'{name}bn{number}', size, **settings)

            if self.bottleneck:
                out, width = 4 * features, self.groups * (features * self.group_width // 64)
                y = nn.relu(layer(x, 1, width, 1))
                y = nn.relu(layer(y, 2, width, 3, stride=stride, groups=self.groups))
                y = layer(y, 3, out, 1)
            else:
                out = features
                y = nn.relu(layer(x, 1, out, 3, stride=stride))
                y = layer(y, 2, out, 3)
            if stride > 1 or x.shape[-1] != out:
                x = conv_norm(x, out, f'{name}downsample_0', f'{name}downsample_1', 1, stride)
            return nn.relu(x + y)

        outputs: dict[str, jax.Array] = {}
        convolved: dict[str, jax.Array] = {}
        x = nn.relu(conv_norm(images, 64, 'conv1', 'bn1', *((3, 1) if self.small_images else (7, 2))))
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = block(x, 64 * 2**stage, f'layer{stage + 1}_{i}_', stride)
            last = f'layer{stage + 1}_{blocks - 1}_conv{3 if self.bottleneck else 2}'
            outputs |= {f'layer{stage + 1}': x, last: convolved[last]}
        return outputs | {'map': x, 'features': x.mean(axis=(1, 2))}

    def order(self) -> list[tuple[str, ...]]:
        """Returns the prefixes of the names of each block's layers, from the images to the features."""
        blocks = [(f'layer{s + 1}_{b}_',) for s, number in enumerate(self.blocks) for b in range(number)]
        return [('conv1', 'bn1'), *blocks]


class BiT(nn.Module):
    """ResNet v2 with group norm and standardised weights; feature maps 'stage1' to 'stage4'."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        def conv(x: jax.Array, features: int, name: str, size: int = 1, stride: int = 1) -> jax.Array:
            return Conv(features, size, stride, standardize=True, name=name)(x)

        def norm_act(x: jax.Array, name: str) -> jax.Array:
            return nn.relu(GroupNorm(name=name)(x))

        outputs: dict[str, jax.Array] = {}
        x = conv(images, 64 * self.width, 'stem', 7, 2)
        # Padded with zeros, not minus infinity, which differs here as there is no ReLU before.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, (3, 3), (2, 2))
        for stage, blocks in enumerate(self.blocks):
            out = 256 * self.width * 2**stage
            for i in range(blocks):
                name = f'stage{stage + 1}_block{i + 1}_'
                stride = 2 if stage > 0 and i == 0 else 1
                y = norm_act(x, name + 'norm1')
                if i == 0:
                    x = conv(y, out, name + 'shortcut', stride=stride)
                y = norm_act(conv(y, out // 4, name + 'conv1'), name + 'norm2')
                y = norm_act(conv(y, out // 4, name + 'conv2', 3, stride), name + 'norm3')
                y = conv(y, out, name + 'conv3')
                x = x + y
            outputs |= {f'stage{stage + 1}': x, name + 'conv3': y}
        x = norm_act(x, 'norm')
        return outputs | {'map': x, 'features': x.mean(axis=(1, 2))}

    def order(self) -> list[tuple[str, ...]]:
        """Returns the prefixes of the names of each block's layers, from the images to the features."""
        blocks = [(f'stage{s + 1}_block{b + 1}_',) for s, number in enumerate(self.blocks) for b in range(number)]
        return [('stem',), *blocks, ('norm',)]
