"""UDA (Xie et al. 2020, arXiv:1904.12848): the strong view should agree with the sharpened prediction of the weak."""

import dataclasses

from methods.base import JOINT, STRONG, WEAK, Inputs, Loss, Method, View, weak_and_strong
from methods.terms import kl_divergence, pseudo_labels, sharpen, targets


@dataclasses.dataclass(frozen=True)
class UDA(Method):
    """Equation 1, sharpened and masked (section 2.3): mean 1(max p >= threshold) KL(p^(1/T) || p(strong)).

    The mask is computed from the prediction before sharpening. threshold and temperature are the paper's and the
    official code's for CIFAR-10; FixMatch's re-implementation has 0.95 and 1. Like that, this one compares with >=,
    where the official code has >. USB has a soft cross-entropy, whose gradient is the same. Training signal annealing,
    which drops easy labeled examples, is a setting of methods/supervised.py, off as in the official scripts for
    CIFAR-10 and SVHN.
    """

    threshold: float = 0.8
    temperature: float = 0.4
    weight: float = 1.0
    statistics: str = JOINT  # of batch norm: 'joint', 'no_grad' or 'separate', see methods/base.py

    separable = True

    def views(self) -> dict[View, str]:
        weak, strong = weak_and_strong(self.statistics)
        return {WEAK: weak, STRONG: strong}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        p = targets(inputs.outputs[WEAK]['logits'])
        strong = inputs.outputs[STRONG]['logits']
        guess = pseudo_labels(p, self.threshold)
        loss = (guess.mask * kl_divergence(sharpen(p, self.temperature), strong)).mean()
        return Loss(self.weight * loss, metrics={'loss': loss}, pseudo_labels=guess)
