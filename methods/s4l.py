"""S4L-Rotation (Zhai et al. 2019, arXiv:1905.03670): rotation prediction beside classification, on all images."""

import dataclasses

import jax.numpy as jnp

from methods.base import JOINT, LABELED_ROTATED, ROTATED, Inputs, Loss, Method, View
from methods.terms import cross_entropy, rotation_loss


@dataclasses.dataclass(frozen=True)
class S4L(Method):
    """Equations 1 and 3, including the labeled term: H(y, labeled) + weight * (mean of both streams' rotation losses).

    As in the official code all images, labeled and unlabeled, pass the network in one batch in 4 rotations, and the
    labels are used for every rotation; with `all_copies` False for the upright images only.
    """

    weight: float = 1.0
    all_copies: bool = True  # use the label for all rotations of the image

    separable = True

    @property
    def rotation_averaged(self) -> bool:
        """Whether the classifier is trained on all rotations: then evaluation also averages over them."""
        return self.all_copies

    def views(self) -> dict[View, str]:
        return {LABELED_ROTATED: JOINT, ROTATED: JOINT}

    def heads(self) -> dict[str, tuple[int, ...]]:
        return {'rotation': (4,)}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        labeled, unlabeled = (inputs.outputs[view] for view in (LABELED_ROTATED, ROTATED))
        logits = labeled['logits']
        labels = jnp.repeat(inputs.labels, len(logits) // len(inputs.labels))
        counts = jnp.ones(len(labels)) if self.all_copies else jnp.arange(len(labels)) % 4 == 0
        total = counts.sum()  # the first image is upright
        labeled_loss = (counts * cross_entropy(labels, logits)).sum() / total
        accuracy = (counts * (logits.argmax(-1) == labels)).sum() / total
        losses, accuracies = zip(*(rotation_loss(part['rotation']) for part in (labeled, unlabeled)), strict=True)
        loss = sum(losses) / 2
        metrics = {'loss': loss, 'loss_labeled': labeled_loss, 'accuracy': accuracy}
        return Loss(labeled_loss + self.weight * loss, state, metrics | {'rotation_accuracy': sum(accuracies) / 2})
