"""Wide ResNet for small images (Zagoruyko & Komodakis 2016, arXiv:1605.07146), in FixMatch's variant.

The variant is that of MixMatch and FixMatch: pre-activation blocks, LeakyReLU, activation before the first
block's shortcut, batch norm with momentum 0.999 and epsilon 1e-3, convolutions drawn from
N(0, 2 / (k^2 C_out)). The official code's convolution biases are left out: each of them only reaches the
network through a batch norm that subtracts it again.
"""

from collections.abc import Mapping

import flax.linen as nn

from models.layers import Batch, BatchNorm, Conv, Dense

_kernel_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class WideResNet(nn.Module):
    """Maps images `[N, H, W, C]`, normalised, to 'features' `[N, width * 16 * 2^(stages-1)]` and 'logits'.

    heads: {name of another output: widths of the dense layers that lead from the features to it}.

    WRN-28-2 has blocks (4, 4, 4) and width 2; WRN-37-2, for 96x96 images, has blocks (4, 4, 4, 4).
    """

    num_classes: int
    heads: Mapping[str, tuple[int, ...]]
    blocks: tuple[int, ...] = (4, 4, 4)
    width: int = 2
    bn_momentum: float = 0.999
    bn_epsilon: float = 1e-3
    negative_slope: float = 0.1

    @nn.compact
    def __call__(self, images: Batch, train: bool) -> dict[str, Batch]:
        def norm_act(x: Batch, name: str) -> Batch:
            x = BatchNorm(self.bn_momentum, self.bn_epsilon, name=name)(x, train)
            return x.map(lambda x: nn.leaky_relu(x, self.negative_slope))

        def conv(x: Batch, features: int, name: str, kernel_size: int = 3, stride: int = 1) -> Batch:
            return Conv(features, kernel_size, stride, kernel_init=_kernel_init, name=name)(x)

        x = conv(images, 16, 'stem')
        for stage, blocks in enumerate(self.blocks):
            features = 16 * self.width * 2**stage
            for block in range(blocks):
                name = f'stage{stage + 1}_block{block + 1}_'
                stride = 2 if stage > 0 and block == 0 else 1
                y = norm_act(x, name + 'norm1')
                if stage == block == 0:
                    x = y
                y = conv(y, features, name + 'conv1', stride=stride)
                y = norm_act(y, name + 'norm2')
                y = conv(y, features, name + 'conv2')
                if x.grad.shape[-1] != features:
                    x = conv(x, features, name + 'shortcut', kernel_size=1, stride=stride)
                x = Batch(*(None if a is None else a + b for a, b in zip(x, y, strict=True)))
        x = norm_act(x, 'norm').map(lambda x: x.mean(axis=(1, 2)))
        outputs = {'features': x, 'logits': Dense(self.num_classes, name='head')(x)}
        for head, widths in self.heads.items():
            y = x
            for i, width in enumerate(widths):
                if i > 0:
                    y = y.map(lambda y: nn.leaky_relu(y, self.negative_slope))
                y = Dense(width, name=f'{head}{i + 1}')(y)
            outputs[head] = y
        return outputs
