"""A network: a backbone with a classifier and any further heads on its features."""

from collections.abc import Mapping

import flax.linen as nn
import jax

from models.layers import BatchNorm, Dense, Dropout

HEAD = 'head'  # name of the classifier, and prefix of the names of other heads
BOTTLENECK = ('bottleneck', 'bottleneck_norm')


def is_head(layer: str) -> bool:
    """Returns whether a layer of a run's network is a head."""
    return layer == HEAD or layer.startswith(f'{HEAD}_')


class Network(nn.Module):
    """Maps normalised images `[N, H, W, C]`, or their features `[N, D]`, to every named output.

    Attributes:
        backbone: Maps `(images, train)` to {'features': `[N, D]`, 'map': the feature map whose average they are, if
            they are one, the feature map `[N, h, w, c]` at the end of every stage, by name, and the output of the
            stage's last convolution, by the name of that layer}. Plain Flax, with `models.layers.BatchNorm` for batch
            norm. Its method `order()`, if it has one, returns the prefixes of the names of each block's layers, from
            the images to the features; otherwise each layer is a block.
        num_classes: Number of classes.
        heads: {name of an output beside 'features' and 'logits': widths of its layers on top of the features; 0 for the
            width of the features}.
        dropout: Dropout rate of the features for the classifier and the heads; with a bottleneck for everything that
            reads the features, domain discriminators included, as in TLlib.
        bottleneck_width: Width of a layer with ReLU between backbone and classifier, whose output then is the features;
            0 for no such layer.
        bottleneck_norm: Whether that layer has batch norm before the ReLU.
    """

    backbone: nn.Module
    num_classes: int
    heads: Mapping[str, tuple[int, ...]]
    dropout: float = 0.0
    bottleneck_width: int = 0
    bottleneck_norm: bool = True

    def setup(self):
        nn.share_scope(self, self.backbone)  # so that layers keep the names of the backbone

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        outputs = {'features': images}
        if images.ndim > 2:
            outputs = self.backbone(images, train)
            if self.bottleneck_width:
                x = Dense(self.bottleneck_width, name=BOTTLENECK[0])(outputs['features'])
                if self.bottleneck_norm:
                    x = BatchNorm(0.9, 1e-5, name=BOTTLENECK[1])(x, train)
                outputs['features'] = nn.relu(x)
        features = Dropout(self.dropout, name=f'{HEAD}_dropout')(outputs['features'], train)
        if self.bottleneck_width:
            outputs['features'] = features
        outputs['logits'] = Dense(self.num_classes, name=HEAD)(features)
        for head, widths in self.heads.items():
            x = features
            for i, width in enumerate(widths):
                if i > 0:
                    x = nn.leaky_relu(x, getattr(self.backbone, 'negative_slope', 0.0))
                x = Dense(width or features.shape[-1], name=f'{HEAD}_{head}{i + 1}')(x)
            outputs[head] = x
        return outputs

    def head_names(self) -> set[str]:
        """Returns the names of the layers on top of the features."""
        layers = (f'{HEAD}_{head}{i + 1}' for head, widths in self.heads.items() for i in range(len(widths)))
        return {HEAD, f'{HEAD}_dropout', *layers}
