"""MCC (Jin et al. 2020, arXiv:1912.03699): predictions for the target should not confuse one class with another."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import JOINT, WEAK, Inputs, Loss, Method, View
from methods.terms import entropy, predictions


@dataclasses.dataclass(frozen=True)
class MCC(Method):
    """Equations 3 to 7: the off-diagonal part of the class confusion of a batch, |C| of it averaged over classes.

    Predictions are smoothed by a temperature. Examples have the weights 1 + exp(-entropy), scaled to a mean of one;
    no gradient flows through the weights.
    """

    weight: float = 1.0
    temperature: float = 2.5  # T

    def views(self) -> dict[View, str]:
        return {WEAK: JOINT}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        logits = inputs.outputs[WEAK]['logits']
        p = jax.nn.softmax(logits / self.temperature)
        certainty = jax.lax.stop_gradient(1 + jnp.exp(-entropy(p)))
        confusion = p.T @ (p * (certainty / certainty.mean())[:, None])
        confusion /= confusion.sum(1, keepdims=True)
        loss = (confusion.sum() - jnp.trace(confusion)) / len(confusion)
        return Loss(self.weight * loss, state, {'loss': loss}, predictions(logits))
