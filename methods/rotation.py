"""Rotation prediction (RotNet, Gidaris et al. 2018, arXiv:1803.07728): which way up is this image?"""

import dataclasses

from methods.base import IMAGES, JOINT, ROTATED, Inputs, Loss, Method, View
from methods.terms import rotation_loss


@dataclasses.dataclass(frozen=True)
class Rotation(Method):
    """Equations 2 and 3: mean cross-entropy of a 4-way head for unlabeled images turned by 0, 90, 180 or 270 degrees.

    All 4 copies of an image or one, turned after or before the other augmentations: `data.rotated`. Alone it needs no
    label; beside other methods it is their auxiliary loss. batch_norm 'images' gives the rotated images a pass and
    statistics of their own, which leave the running ones, for use beside methods whose images are upright.
    """

    weight: float = 1.0
    batch_norm: str = JOINT  # with the images of other methods, or 'images'

    def views(self) -> dict[View, str]:
        return {ROTATED: self.batch_norm}

    def heads(self) -> dict[str, tuple[int, ...]]:
        return {'rotation': (4,)}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        if self.batch_norm == IMAGES:
            outputs, _ = inputs.forward(inputs.params, inputs.images[ROTATED])
        else:
            outputs = inputs.outputs[ROTATED]
        loss, accuracy = rotation_loss(outputs['rotation'])
        return Loss(self.weight * loss, state, {'loss': loss, 'rotation_accuracy': accuracy})
