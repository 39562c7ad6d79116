"""Cross-entropy on the labeled images: the baseline alone, the labeled term of other methods beside them."""

import dataclasses

from methods.base import JOINT, LABELED, Inputs, Loss, Method, View
from methods.terms import cross_entropy


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """Mean cross-entropy of the weakly augmented labeled images (FixMatch, equation 3)."""

    weight: float = 1.0  # factor of this term in the total loss

    def views(self) -> dict[View, str]:
        return {LABELED: JOINT}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        logits = inputs.outputs[LABELED]['logits']
        loss = cross_entropy(inputs.labels, logits).mean()
        accuracy = (logits.argmax(-1) == inputs.labels).mean()
        return Loss(self.weight * loss, metrics={'loss': loss, 'accuracy': accuracy})
