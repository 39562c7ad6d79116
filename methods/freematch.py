"""FreeMatch (Wang et al. 2023, arXiv:2205.07246): thresholds that adapt themselves, and fairness between classes."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import JOINT, STRONG, WEAK, DataSpec, Inputs, Loss, Method, View, weak_and_strong
from methods.terms import class_distribution, cross_entropy, ema, normalise, pseudo_labels, targets, uniform


@dataclasses.dataclass(frozen=True)
class FreeMatch(Method):
    """Equations 5-12: weight * mean 1(max q >= tau(argmax q)) H(argmax q, p(strong)) + fairness_weight * L_f.

    tau is the moving average of the mean confidence, tau(c) = tau * p(c) / max p with p the moving average of q.
    L_f = -H(SumNorm(p / h), SumNorm(p_s / h_s)): p_s and h_s are the mean prediction and the histogram of classes of
    the strong views selected by the mask, h the moving average of the histogram of weak views. L_f is negative, and
    falls as the cross-entropy between the two grows; this sign is the paper's and the official code's (in TorchSSL and
    USB). There 1 / h is 0 for a class that does not occur. On SVHN TorchSSL clips the thresholds tau(c) to [0.9, 0.95]
    and USB tau to at most 0.95; configs/freematch.py does the former.
    """

    weight: float = 1.0  # w_u
    fairness_weight: float = 0.001  # w_f; USB's settings; 0.01 in its code's default and TorchSSL's CIFAR-10
    decay: float = 0.999  # lambda of the moving averages
    lowest: float = 0.0  # least threshold of a class
    highest: float = 1.0  # greatest threshold of a class
    statistics: str = JOINT  # of batch norm: 'joint', 'no_grad' or 'separate', see methods/base.py

    def views(self) -> dict[View, str]:
        weak, strong = weak_and_strong(self.statistics)
        return {WEAK: weak, STRONG: strong}

    def init_state(self, data: DataSpec) -> dict:
        equal = uniform(data.num_classes)
        return {'confidence': jnp.float32(1 / data.num_classes), 'p': equal, 'histogram': equal}

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        q = targets(inputs.outputs[WEAK]['logits'])
        strong = inputs.outputs[STRONG]['logits']
        num_classes = q.shape[-1]
        state = {
            'confidence': ema(state['confidence'], q.max(-1).mean(), self.decay),
            'p': ema(state['p'], q.mean(0), self.decay),
            'histogram': ema(state['histogram'], class_distribution(q.argmax(-1), num_classes), self.decay),
        }
        thresholds = state['confidence'] * state['p'] / state['p'].max()
        guess = pseudo_labels(q, jnp.clip(thresholds, self.lowest, self.highest))
        loss = (guess.mask * cross_entropy(guess.labels, strong)).mean()

        any_passes = guess.mask.any()  # otherwise the term and its gradient are 0
        weights = jnp.where(any_passes, guess.mask, 1)
        p_strong = weights @ jax.nn.softmax(strong)
        histogram = weights @ jax.nn.one_hot(strong.argmax(-1), num_classes)
        expected = normalise(state['p'] * _inverse(state['histogram']))
        observed = normalise(p_strong * _inverse(histogram))  # a common factor cancels
        fairness = jnp.where(any_passes, jnp.sum(expected * jnp.log(observed + 1e-12)), 0)
        total = self.weight * loss + self.fairness_weight * fairness
        metrics = {'loss': loss, 'loss_fairness': fairness, 'threshold': state['confidence']}
        return Loss(total, state, metrics, guess)


def _inverse(histogram: jax.Array) -> jax.Array:
    """Returns 1 / histogram, 0 where it is 0."""
    return jnp.where(histogram > 0, 1 / jnp.where(histogram > 0, histogram, 1), 0)
