"""What all networks are: a backbone, and on its features a classifier and any further heads."""

from collections.abc import Mapping

import flax.linen as nn

from models.layers import Batch, BatchNorm, Dense, Mode, classify, drop


class Network(nn.Module):
    """Base of all networks: maps normalised images `[N, H, W, C]`, or features `[N, D]` they gave before, to outputs.

    heads: {name of an output beside 'features' and 'logits': widths of the layers on top of the features}.
    dropout: share of the features that the classifier and the heads do not see in training.
    frozen_statistics: batch norm keeps its running statistics, such as pretrained ones, and uses them in training.
    bottleneck_width: of a layer with batch norm and ReLU between backbone and classifier, whose output are the
        features then; 0 for none.
    batch_norm: what batch norm makes of the two domains in domain adaptation, see `layers.DOMAIN_POLICIES`.
    """

    num_classes: int
    heads: Mapping[str, tuple[int, ...]]
    dropout: float = 0.0
    frozen_statistics: bool = False
    bottleneck_width: int = 0
    batch_norm: str = 'joint'
    drop_path = 0.0
    negative_slope = 0.0

    @nn.compact
    def __call__(self, images: Batch, mode: Mode) -> dict[str, Batch]:
        if images.grad.ndim == 2:
            outputs = {'features': images}
        else:
            outputs = self.backbone(images, mode)
            if self.bottleneck_width:
                x = Dense(self.bottleneck_width, name='bottleneck')(outputs['features'])
                x = BatchNorm(0.9, 1e-5, name='bottleneck_norm')(x, mode)
                outputs['features'] = x.map(nn.relu)
        features = drop(outputs['features'], mode, self.dropout, layer=0)
        return classify(features, self.num_classes, self.heads, self.negative_slope) | outputs

    def backbone(self, images: Batch, mode: Mode) -> dict[str, Batch]:
        """Returns 'features' `[N, D]` and the feature map `[N, h, w, c]` at the end of every stage, by name."""
        raise NotImplementedError

    @property
    def drops(self) -> bool:
        """Whether it leaves out units or blocks at random in training."""
        return self.dropout > 0 or self.drop_path > 0

    def order(self) -> list[str]:
        """Returns a regular expression for each block's layer names, from the images to the features."""
        raise NotImplementedError
