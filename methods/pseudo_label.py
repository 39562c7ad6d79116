"""Pseudo-Label (Lee 2013, ICML workshop): the network's own confident classes are labels for the same image."""

import dataclasses

from methods.base import IMAGES, WEAK, Inputs, Loss, Method, View
from methods.terms import cross_entropy, pseudo_labels, ramp, targets


@dataclasses.dataclass(frozen=True)
class PseudoLabel(Method):
    """Lee's equations 15 and 16 with a confidence threshold: weight * ramp * mean 1(max p >= threshold) H(argmax p, p).

    Lee has no threshold (0 here) and ramps the weight up to 3. The threshold, the weight of 1 and the linear ramp over
    the first 0.4 of training are those of Oliver et al. (2018, arXiv:1804.09170) and of the MixMatch and FixMatch
    codebases. There, as here, the unlabeled batch is normalised with its own statistics, which do not enter the running
    ones.
    """

    threshold: float = 0.95
    weight: float = 1.0
    ramp: float = 0.4  # fraction of training over which the weight rises

    separable = True

    def views(self) -> dict[View, str]:
        return {WEAK: IMAGES}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        logits = inputs.forward(inputs.params, inputs.images[WEAK])[0]['logits']
        guess = pseudo_labels(targets(logits), self.threshold)
        loss = (guess.mask * cross_entropy(guess.labels, logits)).mean()
        weight = self.weight * ramp(inputs.progress, self.ramp)
        return Loss(weight * loss, metrics={'loss': loss}, pseudo_labels=guess)
