"""Self-training in rounds: each round labels the unlabeled images with the network of the round before.

Curriculum Labeling (Cascante-Bonilla et al. 2021, arXiv:2001.06001) with the class balance of Noisy Student (Xie et
al. 2020, arXiv:1911.04252), which is a setting of it: view 'strong', soft True, growing False.
"""

import dataclasses

import jax
import jax.numpy as jnp

from errors import UserError, unknown
from methods.base import JOINT, STRONG, WEAK, DataSpec, Inputs, Loss, Method, PseudoLabels, View
from methods.terms import cross_entropy

_VIEWS = {'weak': WEAK, 'strong': STRONG}


@dataclasses.dataclass(frozen=True)
class SelfTraining(Method):
    """The mean of mask H(label, p) over the unlabeled images, with labels that are fixed during a round.

    The first round has no such labels. Each later round begins with the EMA network's prediction for every unlabeled
    image, and keeps for each class the most confident predictions: at most N / C images, rounded up, in the last round,
    and the share r / (R - 1) of that in the r-th of the R - 1 rounds (curriculum labeling raises the share by 20 points
    a round). The steps of the run are split evenly over the rounds.
    """

    rounds: int = 6
    restart: bool = True  # begin each round with new parameters (both papers), not with the last student
    growing: bool = True  # increase the share of images from round to round; if not, it is 1 from the second
    threshold: float = 0.0  # least confidence of a label; Noisy Student 0.3 on ImageNet
    soft: bool = False  # labels are probabilities (Noisy Student) or classes
    view: str = 'weak'  # of the student: 'weak' or 'strong' (the noise of Noisy Student)
    weight: float = 1.0

    separable = True

    def __post_init__(self):
        if self.rounds < 1:
            raise UserError(f'self_training.rounds must be at least 1, not {self.rounds}.')
        if self.view not in _VIEWS:
            raise unknown('view of self-training', self.view, _VIEWS)

    def views(self) -> dict[View, str]:
        return {_VIEWS[self.view]: JOINT}

    def init_state(self, data: DataSpec) -> dict:
        return {
            'labels': jnp.zeros((data.num_unlabeled, data.num_classes)),
            'mask': jnp.zeros(data.num_unlabeled),
        }

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        index = inputs.indices['unlabeled']
        labels, mask = state['labels'][index], state['mask'][index]
        loss = (mask * cross_entropy(labels, inputs.outputs[_VIEWS[self.view]]['logits'])).mean()
        guess = PseudoLabels(labels.argmax(-1), mask)
        return Loss(self.weight * loss, state, {'loss': loss}, guess)

    def relabel(self, state: dict, probabilities: jax.Array, round_number: jax.Array) -> dict:
        count, num_classes = probabilities.shape
        classes, confidence = probabilities.argmax(-1), probabilities.max(-1)
        # Rank of each image among those of its class: sort by class, then by falling confidence.
        order = jnp.lexsort((-confidence, classes))
        first = jnp.searchsorted(classes[order], jnp.arange(num_classes))
        rank = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count) - first[classes[order]])
        part, parts = (round_number, self.rounds - 1) if self.growing else (1, 1)
        quota = -(-part * count // (parts * num_classes))
        mask = (rank < quota) & (confidence >= self.threshold)
        labels = probabilities if self.soft else jax.nn.one_hot(classes, num_classes)
        return {'labels': labels, 'mask': mask.astype(jnp.float32)}
