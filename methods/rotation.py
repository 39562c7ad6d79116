"""Rotation prediction (RotNet, Gidaris et al. 2018, arXiv:1803.07728): classifying the rotation of an image."""

import dataclasses

from methods.base import IMAGES, JOINT, ROTATED, Inputs, Loss, Method, View
from methods.terms import rotation_loss


@dataclasses.dataclass(frozen=True)
class Rotation(Method):
    """Equations 2 and 3: mean cross-entropy of a 4-way head for unlabeled images turned by 0, 90, 180 or 270 degrees.

    `data.rotated` sets whether an image has all 4 copies or one, and whether it is turned after or before the other
    augmentations. Alone the loss needs no label; beside other methods it is an auxiliary loss. With batch_norm 'images'
    the rotated images have a separate pass and statistics of their own, which do not enter the running ones, for use
    beside methods whose images are upright.
    """

    weight: float = 1.0
    batch_norm: str = JOINT  # 'joint', with the images of other methods, or 'images'

    separable = True

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
