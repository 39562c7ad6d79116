"""Deep CORAL (Sun & Saenko 2016, arXiv:1607.01719): the covariance of an output is made equal in both domains."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import JOINT, LABELED, WEAK, Inputs, Loss, Method, View
from methods.terms import predictions


@dataclasses.dataclass(frozen=True)
class CORAL(Method):
    """Equation 1: ||C_S - C_T||_F^2 / (4 d^2), of the covariances of an output with d dimensions.

    The paper uses the output of the classifier, and a weight at which both losses are about equal after training.
    """

    weight: float = 1.0
    output: str = 'logits'  # or 'features'

    def views(self) -> dict[View, str]:
        return {LABELED: JOINT, WEAK: JOINT}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        source, target = inputs.outputs[LABELED], inputs.outputs[WEAK]
        difference = _covariance(source[self.output]) - _covariance(target[self.output])
        loss = jnp.square(difference).sum() / (4 * len(difference) ** 2)
        return Loss(self.weight * loss, state, {'loss': loss}, predictions(target['logits']))


def _covariance(x: jax.Array) -> jax.Array:
    """Returns the unbiased covariance of x `[n, d]`, `[d, d]`."""
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)
