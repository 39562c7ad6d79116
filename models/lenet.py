"""Two small networks for handwritten digits, in the forms that domain adaptation is compared with (TLlib)."""

import flax.linen as nn
import jax

from models.layers import Batch, BatchNorm, Conv, Dense, Mode, drop
from models.network import Network


class LeNet(Network):
    """LeNet-5 of modern kind, for images of 28x28 pixels: two convolutions of 5x5 pixels and a dense layer.

    Features `[N, 500]`; feature maps 'stage1', 'stage2' with 20 and 50 channels. In training, half of the channels of
    the second are dropped, and half of the features where dropout is 0.5, as in TLlib (there for a discriminator, too).
    """

    drops = True

    def backbone(self, images: Batch, mode: Mode) -> dict[str, Batch]:
        def stage(x: Batch, features: int, number: int, rate: float) -> Batch:
            # Without padding: only where the kernel lies inside.
            x = Conv(features, kernel_size=5, bias=True, name=f'conv{number}')(x).map(lambda x: x[:, 2:-2, 2:-2])
            x = drop(x, mode, rate, layer=number, whole='channel')
            return x.map(lambda x: nn.relu(nn.max_pool(x, (2, 2), strides=(2, 2))))

        stage1 = stage(images, 20, 1, 0.0)
        stage2 = stage(stage1, 50, 2, 0.5)
        features = Dense(500, name='dense')(stage2.map(_flatten)).map(nn.relu)
        return {'stage1': stage1, 'stage2': stage2, 'features': features}

    def order(self) -> list[str]:
        return ['conv1', 'conv2', 'dense']


class DTN(Network):
    """The network of SVHN to MNIST, for images of 32x32 pixels: three convolutions of stride 2 and a dense layer.

    Features `[N, 512]`; feature maps 'stage1' to 'stage3' with 64, 128 and 256 channels, a tenth, three tenths and half
    of which are dropped in training. bn_momentum, bn_epsilon: of batch norm, after every layer.
    """

    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    drops = True

    def backbone(self, images: Batch, mode: Mode) -> dict[str, Batch]:
        outputs, x = {}, images
        for i, (features, rate) in enumerate(((64, 0.1), (128, 0.3), (256, 0.5)), 1):
            x = Conv(features, kernel_size=5, stride=2, name=f'conv{i}')(x)
            x = BatchNorm(self.bn_momentum, self.bn_epsilon, name=f'conv{i}_norm')(x, mode)
            x = drop(x, mode, rate, layer=i, whole='channel').map(nn.relu)
            outputs[f'stage{i}'] = x
        x = Dense(512, name='dense')(x.map(_flatten))
        x = BatchNorm(self.bn_momentum, self.bn_epsilon, name='dense_norm')(x, mode)
        return outputs | {'features': x.map(nn.relu)}

    def order(self) -> list[str]:
        return ['conv1', 'conv2', 'conv3', 'dense']


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)
