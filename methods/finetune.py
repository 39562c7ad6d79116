"""Fine-tuning on the labeled images, with regularisation against overfitting to few images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from methods.base import IMAGES, JOINT, LABELED, DataSpec, Inputs, Loss, Method, View
from methods.terms import cross_entropy, mixup


@dataclasses.dataclass(frozen=True)
class Finetune(Method):
    """Mean cross-entropy of the labeled images, optionally with label smoothing, mixup and balanced classes.

    Label smoothing is Szegedy et al. 2016 (arXiv:1512.00567), section 7; mixup is Zhang et al. 2018
    (arXiv:1710.09412), between the batch and its reverse with one lambda for the batch, as in BiT. With balanced
    classes an image has the weight N / (C n_c), for N labels, C classes and n_c labels of its class.

    `optimizer.layer_rates`, `layer_decay` and `unfreeze_step` set which layers learn, and how fast. The regularisers
    l2_sp, delta and bss are separate methods.
    """

    weight: float = 1.0  # factor of this term in the total loss
    label_smoothing: float = 0.0  # share of a label that is distributed over all classes
    mixup: float = 0.0  # alpha of the Beta distribution of lambda; 0 for no mixup
    balanced: bool = False  # equal weight for all classes, whatever their numbers of labels

    def views(self) -> dict[View, str]:
        return {LABELED: IMAGES if self.mixup else JOINT}

    def init_state(self, data: DataSpec) -> jax.Array:
        counts = np.bincount(data.labels, minlength=data.num_classes)
        weights = len(data.labels) / (data.num_classes * np.maximum(counts, 1))
        return jnp.float32(weights if self.balanced else np.ones(data.num_classes))

    def loss(self, inputs: Inputs, state: jax.Array) -> Loss:
        targets = jax.nn.one_hot(inputs.labels, len(state))
        targets = (1 - self.label_smoothing) * targets + self.label_smoothing / len(state)
        targets *= state[inputs.labels, None]
        batch_stats = None
        if self.mixup:
            images = inputs.images[LABELED]
            images, targets = mixup(
                inputs.key, self.mixup, (images, targets), (images[::-1], targets[::-1]), per_example=False
            )
            outputs, batch_stats = inputs.forward(inputs.params, images)
        else:
            outputs = inputs.outputs[LABELED]
        loss = cross_entropy(targets, outputs['logits']).mean()
        accuracy = (outputs['logits'].argmax(-1) == inputs.labels).mean()
        return Loss(self.weight * loss, state, {'loss': loss, 'accuracy': accuracy}, batch_stats=batch_stats)
