"""FlexMatch (Zhang et al. 2021, arXiv:2110.08263): FixMatch with a lower threshold for classes not yet learned."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import JOINT, STRONG, WEAK, DataSpec, Inputs, Loss, Method, View, weak_and_strong
from methods.terms import cross_entropy, pseudo_labels, targets


@dataclasses.dataclass(frozen=True)
class FlexMatch(Method):
    """Equations 5-10: the mean of 1(max q >= T(argmax q)) H(argmax q, p(strong)).

    sigma(c) counts the unlabeled images whose last confident (>= threshold) label was c. beta is sigma divided by the
    largest sigma or, if it is larger, by the number of images without a label (equation 11, the warm-up).
    T(c) = threshold * beta / (2 - beta). Thresholds are those before the step, as in the official code.
    """

    threshold: float = 0.95  # tau: of the best-learned class, and for the counts
    weight: float = 1.0
    warm_up: bool = True  # equation 11
    statistics: str = JOINT  # of batch norm: 'joint', 'no_grad' or 'separate', see methods/base.py

    def views(self) -> dict[View, str]:
        weak, strong = weak_and_strong(self.statistics)
        return {WEAK: weak, STRONG: strong}

    def init_state(self, data: DataSpec) -> dict:
        return {
            'labels': jnp.full(data.num_unlabeled, -1, jnp.int32),  # of each unlabeled image; -1 for none
            'counts': jnp.zeros(data.num_classes, jnp.int32),  # sigma
        }

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        q = targets(inputs.outputs[WEAK]['logits'])
        counts, unused = state['counts'], len(state['labels']) - state['counts'].sum()
        largest = jnp.maximum(counts.max(), unused) if self.warm_up else counts.max()
        beta = counts / jnp.maximum(largest, 1)
        guess = pseudo_labels(q, self.threshold * beta / (2 - beta))
        loss = (guess.mask * cross_entropy(guess.labels, inputs.outputs[STRONG]['logits'])).mean()

        index = inputs.indices['unlabeled']
        # An index out of range is dropped: only confident labels are written.
        index = jnp.where(q.max(-1) >= self.threshold, index, len(state['labels']))
        labels = state['labels'].at[index].set(guess.labels, mode='drop')
        counts = jax.nn.one_hot(labels, len(counts), dtype=jnp.int32).sum(0)  # -1 is no class
        return Loss(self.weight * loss, {'labels': labels, 'counts': counts}, {'loss': loss}, guess)
