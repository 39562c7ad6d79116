"""Wide ResNet for small images (Zagoruyko & Komodakis 2016, arXiv:1605.07146), in FixMatch's variant.

The variant is that of MixMatch and FixMatch: pre-activation blocks, LeakyReLU, activation before the first
block's shortcut, batch norm with momentum 0.999 and epsilon 1e-3, convolutions drawn from
N(0, 2 / (k^2 C_out)). The official code's convolution biases are left out, since a batch norm after each of them
subtracts it again.
"""

import functools

import flax.linen as nn
import jax

from models.layers import BatchNorm, Conv, block


class WideResNet(nn.Module):
    """Wide ResNet. Features `[N, width * 16 * 2^(stages-1)]`; feature maps 'stage1', 'stage2', ...

    WRN-28-2 has blocks (4, 4, 4) and width 2; WRN-37-2, for 96x96 images, has blocks (4, 4, 4, 4).
    """

    blocks: tuple[int, ...] = (4, 4, 4)
    width: int = 2
    bn_momentum: float = 0.999
    bn_epsilon: float = 1e-3
    negative_slope: float = 0.1
    remat: bool = False  # keep activations between blocks only, and compute those within again: less memory

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        def norm_act(x: jax.Array, name: str) -> jax.Array:
            x = BatchNorm(self.bn_momentum, self.bn_epsilon, name=name)(x, train)
            return nn.leaky_relu(x, self.negative_slope)

        def residual(x: jax.Array, features: int, name: str, stride: int, first: bool) -> tuple[jax.Array, jax.Array]:
            y = norm_act(x, name + 'norm1')
            if first:
                x = y
            y = Conv(features, stride=stride, name=name + 'conv1')(y)
            y = norm_act(y, name + 'norm2')
            y = Conv(features, name=name + 'conv2')(y)
            if x.shape[-1] != features:
                x = Conv(features, kernel_size=1, stride=stride, name=name + 'shortcut')(x)
            return x + y, y

        outputs: dict[str, jax.Array] = {}
        x = Conv(16, name='stem')(images)
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                name = f'stage{stage + 1}_block{i + 1}_'
                chosen = {'features': 16 * self.width * 2**stage, 'stride': 2 if stage > 0 and i == 0 else 1}
                layers = functools.partial(residual, name=name, first=stage == i == 0, **chosen)
                x, y = block(layers, x, self, self.remat)
            outputs |= {f'stage{stage + 1}': x, name + 'conv2': y}
        x = norm_act(x, 'norm')
        return outputs | {'map': x, 'features': x.mean(axis=(1, 2))}

    def order(self) -> list[tuple[str, ...]]:
        """Returns the prefixes of the names of each block's layers, from the images to the features."""
        blocks = [(f'stage{s + 1}_block{b + 1}_',) for s, number in enumerate(self.blocks) for b in range(number)]
        return [('stem',), *blocks, ('norm',)]
