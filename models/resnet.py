"""ResNets: torchvision's (v1.5, with ResNeXt and wide variants, and with a stem for small images) and BiT's (v2).

He et al. 2016, arXiv:1512.03385 and arXiv:1603.05027; Xie et al. 2017, arXiv:1611.05431; Zagoruyko & Komodakis 2016,
arXiv:1605.07146; Kolesnikov et al. 2020 (Big Transfer), arXiv:1912.11370. v1.5 is v1 with the stride of a bottleneck
in its 3x3 convolution. Layers have torchvision's names, with '_' for '.'.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import BatchNorm, Conv, GroupNorm, block


class ResNet(nn.Module):
    """ResNet v1.5. Features `[N, 512]`, or `[N, 2048]` with bottlenecks; feature maps 'layer1' to 'layer4'."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    groups: int = 1  # of the 3x3 convolution of a bottleneck block
    group_width: int = 64  # channels per group in the first stage
    small_images: bool = False  # a 3x3 convolution at full resolution as the stem, usual for 32x32 images
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    remat: bool = False  # keep activations between blocks only, and compute those within again: less memory

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        def norm(x: jax.Array, name: str) -> jax.Array:
            return BatchNorm(self.bn_momentum, self.bn_epsilon, name=name)(x, train)

        def residual(x: jax.Array, features: int, name: str, stride: int) -> tuple[jax.Array, jax.Array]:
            def conv(
                x: jax.Array, number: int, features: int, size: int, stride: int = 1, groups: int = 1
            ) -> jax.Array:
                return Conv(features, size, stride, groups, name=f'{name}conv{number}')(x)

            if self.bottleneck:
                out, width = 4 * features, self.groups * (features * self.group_width // 64)
                y = nn.relu(norm(conv(x, 1, width, 1), f'{name}bn1'))
                y = nn.relu(norm(conv(y, 2, width, 3, stride, self.groups), f'{name}bn2'))
                last = conv(y, 3, out, 1)
                y = norm(last, f'{name}bn3')
            else:
                out = features
                y = nn.relu(norm(conv(x, 1, out, 3, stride), f'{name}bn1'))
                last = conv(y, 2, out, 3)
                y = norm(last, f'{name}bn2')
            if stride > 1 or x.shape[-1] != out:
                x = norm(Conv(out, 1, stride, name=f'{name}downsample_0')(x), f'{name}downsample_1')
            return nn.relu(x + y), last

        outputs: dict[str, jax.Array] = {}
        x = nn.relu(norm(Conv(64, *((3, 1) if self.small_images else (7, 2)), name='conv1')(images), 'bn1'))
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                name, stride = f'layer{stage + 1}_{i}_', 2 if stage > 0 and i == 0 else 1
                layers = functools.partial(residual, features=64 * 2**stage, name=name, stride=stride)
                x, last = block(layers, x, self, self.remat)
            outputs |= {f'layer{stage + 1}': x, f'{name}conv{3 if self.bottleneck else 2}': last}
        return outputs | {'map': x, 'features': x.mean(axis=(1, 2))}

    def order(self) -> list[tuple[str, ...]]:
        """Returns the prefixes of the names of each block's layers, from the images to the features."""
        blocks = [(f'layer{s + 1}_{b}_',) for s, number in enumerate(self.blocks) for b in range(number)]
        return [('conv1', 'bn1'), *blocks]


class BiT(nn.Module):
    """ResNet v2 with group norm and standardised weights; feature maps 'stage1' to 'stage4'."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 1
    remat: bool = False  # keep activations between blocks only, and compute those within again: less memory

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        def conv(x: jax.Array, features: int, name: str, size: int = 1, stride: int = 1) -> jax.Array:
            return Conv(features, size, stride, standardize=True, name=name)(x)

        def norm_act(x: jax.Array, name: str) -> jax.Array:
            return nn.relu(GroupNorm(name=name)(x))

        def residual(x: jax.Array, out: int, name: str, stride: int, first: bool) -> tuple[jax.Array, jax.Array]:
            y = norm_act(x, name + 'norm1')
            if first:
                x = conv(y, out, name + 'shortcut', stride=stride)
            y = norm_act(conv(y, out // 4, name + 'conv1'), name + 'norm2')
            y = norm_act(conv(y, out // 4, name + 'conv2', 3, stride), name + 'norm3')
            y = conv(y, out, name + 'conv3')
            return x + y, y

        outputs: dict[str, jax.Array] = {}
        x = conv(images, 64 * self.width, 'stem', 7, 2)
        # Padded with zeros, not minus infinity, which differs here as there is no ReLU before.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, (3, 3), (2, 2))
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                name = f'stage{stage + 1}_block{i + 1}_'
                chosen = {'out': 256 * self.width * 2**stage, 'stride': 2 if stage > 0 and i == 0 else 1}
                layers = functools.partial(residual, name=name, first=i == 0, **chosen)
                x, y = block(layers, x, self, self.remat)
            outputs |= {f'stage{stage + 1}': x, name + 'conv3': y}
        x = norm_act(x, 'norm')
        return outputs | {'map': x, 'features': x.mean(axis=(1, 2))}

    def order(self) -> list[tuple[str, ...]]:
        """Returns the prefixes of the names of each block's layers, from the images to the features."""
        blocks = [(f'stage{s + 1}_block{b + 1}_',) for s, number in enumerate(self.blocks) for b in range(number)]
        return [('stem',), *blocks, ('norm',)]
