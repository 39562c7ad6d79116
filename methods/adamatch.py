"""AdaMatch (Berthelot et al. 2022, arXiv:2106.04732): one method for semi-supervised learning and domain adaptation."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import (
    JOINT,
    LABELED,
    LABELED_STRONG,
    STRONG,
    WEAK,
    DataSpec,
    Inputs,
    Loss,
    Method,
    View,
    weak_and_strong,
)
from methods.terms import align, cross_entropy, ema, pseudo_labels, push, sharpen, targets, uniform


@dataclasses.dataclass(frozen=True)
class AdaMatch(Method):
    """Section 3: labeled term + weight * ramp * mean 1(max q >= tau) H(label, p(strong)), labeled term included.

    - Random logit interpolation (3.2): labeled logits are lambda z' + (1 - lambda) z'', lambda ~ U(0, 1) for each
      logit, z' from the batch of all images and z'' from the labeled images alone. The latter pass does not change the
      running statistics.
    - Distribution alignment (3.3): q is aligned by the moving averages of predictions on weak labeled and unlabeled.
    - Relative threshold (3.4): tau is `threshold` times the mean confidence on the weak labeled images of the step.
    - Labeled loss: the mean of the cross-entropies on weak and strong view. Ramp: 1/2 - cos(min(pi, 2 pi t)) / 2.

    Labels are those of the aligned q: hard in the official code (temperature 0), q itself in the paper's equation
    (temperature 1). Averages start uniform. USB leaves out the interpolation, the strong labeled view and the ramp, and
    has a threshold of 0.95.
    """

    threshold: float = 0.9  # relative to the confidence on labeled images
    temperature: float = 0.0  # of the labels; 0 gives hard ones
    weight: float = 1.0
    interpolation: bool = True  # random logit interpolation
    decay: float = 0.999  # of the moving average of labeled predictions
    average: int = 128  # number of batches in the moving average of unlabeled predictions
    statistics: str = JOINT  # of batch norm: 'joint', 'no_grad' or 'separate', see methods/base.py

    def views(self) -> dict[View, str]:
        weak, strong = weak_and_strong(self.statistics)
        return {LABELED: JOINT, LABELED_STRONG: strong, WEAK: weak, STRONG: strong}

    def init_state(self, data: DataSpec) -> dict:
        return {'labeled': uniform(data.num_classes), 'unlabeled': uniform(self.average, data.num_classes)}

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        views = (LABELED, LABELED_STRONG)
        logits = jnp.concatenate([inputs.outputs[view]['logits'] for view in views])
        if self.interpolation:
            alone = inputs.forward(inputs.params, jnp.concatenate([inputs.images[view] for view in views]))[0]
            share = jax.random.uniform(inputs.key, logits.shape)
            logits = share * logits + (1 - share) * alone['logits']
        weak, strong = jnp.split(logits, 2)
        labeled_loss = (cross_entropy(inputs.labels, weak).mean() + cross_entropy(inputs.labels, strong).mean()) / 2

        p, q = targets(weak), targets(inputs.outputs[WEAK]['logits'])
        state = {
            'labeled': ema(state['labeled'], p.mean(0), self.decay),
            'unlabeled': push(state['unlabeled'], q.mean(0, keepdims=True)),
        }
        q = align(q, state['labeled'], state['unlabeled'].mean(0))
        threshold = self.threshold * p.max(-1).mean()
        guess = pseudo_labels(q, threshold)
        loss = (guess.mask * cross_entropy(sharpen(q, self.temperature), inputs.outputs[STRONG]['logits'])).mean()
        ramp = 0.5 - jnp.cos(jnp.minimum(jnp.pi, 2 * jnp.pi * inputs.progress)) / 2
        metrics = {'loss': loss, 'loss_labeled': labeled_loss, 'threshold': threshold}
        return Loss(labeled_loss + self.weight * ramp * loss, state, metrics, guess)
