"""Two small networks for handwritten digits, in the forms that domain adaptation is compared with (TLlib)."""

import flax.linen as nn
import jax

from models.layers import BatchNorm, Conv, Dense, Dropout


class LeNet(nn.Module):
    """A modern LeNet-5 for images of 28x28 pixels: two convolutions of 5x5 pixels and a dense layer.

    Features `[N, 500]`; feature maps 'stage1', 'stage2' with 20 and 50 channels. The dropout rate is 0.5, for the
    channels of 'stage2' and for the features.
    """

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        outputs, x = {}, images
        for i, (features, rate) in enumerate(((20, 0.0), (50, 0.5)), 1):
            x = Conv(features, kernel_size=5, bias=True, name=f'conv{i}')(x)
            for axis in (1, 2):  # no padding: only where the kernel lies inside
                x = jax.lax.slice_in_dim(x, 2, -2, axis=axis)
            outputs[f'conv{i}'] = x
            x = Dropout(rate, whole='channel', name=f'conv{i}_drop')(x, train)
            x = outputs[f'stage{i}'] = nn.relu(nn.max_pool(x, (2, 2), strides=(2, 2)))
        x = nn.relu(Dense(500, name='dense')(x.reshape(images.shape[0], -1)))
        return outputs | {'features': Dropout(0.5, name='dense_drop')(x, train)}

    def order(self) -> list[tuple[str, ...]]:
        """Returns the prefixes of the names of each block's layers, from the images to the features."""
        return [('conv1',), ('conv2',), ('dense',)]


class DTN(nn.Module):
    """The network of SVHN to MNIST, for images of 32x32 pixels: three convolutions of stride 2 and a dense layer.

    Features `[N, 512]`; feature maps 'stage1' to 'stage3' with 64, 128 and 256 channels and dropout rates of 0.1, 0.3
    and 0.5. The dropout rate of the features is 0.5.

    Attributes:
        bn_momentum: Momentum of batch norm, which follows every layer.
        bn_epsilon: Its epsilon.
    """

    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        outputs, x = {}, images
        for i, (features, rate) in enumerate(((64, 0.1), (128, 0.3), (256, 0.5)), 1):
            x = outputs[f'conv{i}'] = Conv(features, kernel_size=5, stride=2, name=f'conv{i}')(x)
            x = BatchNorm(self.bn_momentum, self.bn_epsilon, name=f'conv{i}_norm')(x, train)
            x = nn.relu(Dropout(rate, whole='channel', name=f'conv{i}_drop')(x, train))
            outputs[f'stage{i}'] = x
        x = Dense(512, name='dense')(x.reshape(images.shape[0], -1))
        x = BatchNorm(self.bn_momentum, self.bn_epsilon, name='dense_norm')(x, train)
        return outputs | {'features': Dropout(0.5, name='dense_drop')(nn.relu(x), train)}

    def order(self) -> list[tuple[str, ...]]:
        """Returns the prefixes of the names of each block's layers, from the images to the features."""
        return [('conv1',), ('conv2',), ('conv3',), ('dense',)]
