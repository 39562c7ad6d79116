"""Fine-tuning on the labeled images, with regularisation against overfitting to few images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from methods.base import IMAGES, JOINT, LABELED, DataSpec, Inputs, Loss, Method, View
from methods.terms import cross_entropy, mixup


@dataclasses.dataclass(frozen=True)
class Finetune(Method):
    """Mean cross-entropy of the labeled images, optionally with label smoothing, mixup and logit adjustment.

    Label smoothing is Szegedy et al. 2016 (arXiv:1512.00567), section 7; mixup is Zhang et al. 2018
    (arXiv:1710.09412), between the batch and its reverse with one lambda for the batch, as in BiT. Logit
    adjustment is Menon et al. 2021 (arXiv:2007.07314), equation 10: the loss is of logits to which tau times the log of
    the classes' shares of the labels is added, so that those of evaluation favour no class. A class without labels
    counts as one with one.

    `optimizer.layer_rates`, `layer_decay` and `unfreeze_step` set which layers learn, and how fast. The regularisers
    l2_sp, delta and bss are separate methods.
    """

    weight: float = 1.0  # factor of this term in the total loss
    label_smoothing: float = 0.0  # share of a label that is distributed over all classes
    mixup: float = 0.0  # alpha of the Beta distribution of lambda; 0 for no mixup
    logit_adjustment: float = 0.0  # tau; 1 for classes of equal prior, 0 for those of the labels

    @property
    def separable(self) -> bool:
        return not self.mixup

    def views(self) -> dict[View, str]:
        return {LABELED: IMAGES if self.mixup else JOINT}

    def init_state(self, data: DataSpec) -> jax.Array:
        counts = np.bincount(data.labels, minlength=data.num_classes)
        return jnp.float32(self.logit_adjustment * np.log(np.maximum(counts, 1) / len(data.labels)))

    def loss(self, inputs: Inputs, state: jax.Array) -> Loss:
        targets = jax.nn.one_hot(inputs.labels, len(state))
        targets = (1 - self.label_smoothing) * targets + self.label_smoothing / len(state)
        batch_stats = None
        if self.mixup:
            images = inputs.images[LABELED]
            images, targets = mixup(
                inputs.key, self.mixup, (images, targets), (images[::-1], targets[::-1]), per_example=False
            )
            outputs, batch_stats = inputs.forward(inputs.params, images)
        else:
            outputs = inputs.outputs[LABELED]
        loss = cross_entropy(targets, outputs['logits'] + state).mean()
        accuracy = (outputs['logits'].argmax(-1) == inputs.labels).mean()
        return Loss(self.weight * loss, state, {'loss': loss, 'accuracy': accuracy}, batch_stats=batch_stats)
