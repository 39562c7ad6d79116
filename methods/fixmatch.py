"""FixMatch (Sohn et al. 2020, arXiv:2001.07685): confident labels of the weak view teach the strong view.

The unlabeled term of the total loss l_s + lambda_u l_u; l_s is methods/supervised.py, and configs/fixmatch.py
combines the two.
"""

import dataclasses

from methods.base import JOINT, STRONG, WEAK, DataSpec, Inputs, Loss, Method, View, weak_and_strong
from methods.terms import align, class_distribution, cross_entropy, pseudo_labels, push, sharpen, targets, uniform


@dataclasses.dataclass(frozen=True)
class FixMatch(Method):
    """Equation 4: the mean over ALL unlabeled images of 1(max q >= threshold) H(argmax q, p(strong)).

    In the official code labeled, weak and strong images pass the network as one batch, so batch norm takes its
    statistics from all of them: statistics 'joint'. With 'no_grad' it takes them from the labeled and the strong
    images, and the weak ones, which are used for pseudo-labels only, need no backward pass. With 'separate' the strong
    images have statistics of their own, and evaluation uses those of the labeled and the weak ones.

    Extensions: with a temperature above 0 labels are soft, q sharpened. Alignment is ReMixMatch's, by the class
    frequencies of the labels and the mean of q over the 128 batches before this one, which begins uniform; the
    threshold then applies to the aligned q. The official code has no alignment for FixMatch: the average is that of its
    ReMixMatch (PMovingAverage).
    """

    threshold: float = 0.95  # tau: confidence from which a pseudo-label is used
    weight: float = 1.0  # lambda_u
    temperature: float = 0.0  # of soft labels; 0 gives hard ones
    alignment: bool = False  # distribution alignment
    statistics: str = JOINT  # of batch norm: 'joint', 'no_grad' or 'separate', see methods/base.py

    @property
    def separable(self) -> bool:
        return not self.alignment  # to a mean over the batch

    def views(self) -> dict[View, str]:
        weak, strong = weak_and_strong(self.statistics)
        return {WEAK: weak, STRONG: strong}

    def init_state(self, data: DataSpec) -> dict:
        if not self.alignment:
            return {}
        wanted = class_distribution(data.labels, data.num_classes)
        return {'wanted': wanted, 'guessed': uniform(128, data.num_classes)}

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        q = targets(inputs.outputs[WEAK]['logits'])
        if self.alignment:
            guessed = push(state['guessed'], q.mean(0, keepdims=True))
            q = align(q, state['wanted'], state['guessed'].mean(0))
            state = {**state, 'guessed': guessed}
        guess = pseudo_labels(q, self.threshold)
        strong = inputs.outputs[STRONG]['logits']
        loss = (guess.mask * cross_entropy(sharpen(q, self.temperature), strong)).mean()
        return Loss(self.weight * loss, state, {'loss': loss}, guess)
