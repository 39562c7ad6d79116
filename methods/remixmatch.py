"""ReMixMatch (Berthelot et al. 2020, arXiv:1911.09785): MixMatch with aligned guesses, anchors and rotations."""

import dataclasses

import jax
import jax.numpy as jnp

from data.augment import rotate
from methods.base import IMAGES, LABELED_STRONG, STRONG, WEAK, DataSpec, Inputs, Loss, Method, PseudoLabels, View
from methods.terms import align, class_distribution, cross_entropy, mixup, push, ramp, sharpen, targets, uniform


@dataclasses.dataclass(frozen=True)
class ReMixMatch(Method):
    """Algorithm 1 and equations 3-5, including the labeled term.

    The loss is H(p, X') + weight ramp H(q, U') + anchor_weight ramp H(q, u_1) + rotation_weight H(r, rotated u_1), each
    term a mean, where u_1 is the first strong view before mixing. Guesses come from the weak view, aligned with the
    class frequencies of the labels by the mean over the `average` batches before this one, then sharpened. That mean
    begins with uniform rows, as in the official code (PMovingAverage), which takes the frequencies of the labels from a
    moving average of the labeled batches with decay 0.999. All images with gradient pass the network as one batch,
    which gives the running statistics. Strong views here are RandAugment's (the paper: CTAugment). K and the weight of
    rotations are those of the official scripts for 250 or more labels of CIFAR-10 and SVHN; configs/remixmatch.py has
    the others. TorchSSL and USB have K = 2.
    """

    temperature: float = 0.5
    alpha: float = 0.75  # of the Beta distribution of MixUp
    strong_views: int = 8  # K
    weight: float = 1.5  # lambda_U
    anchor_weight: float = 0.5  # of the first strong view, unmixed
    rotation_weight: float = 0.5
    ramp: float = 1 / 64  # fraction of training over which the weights of the guesses rise
    average: int = 128  # number of batches that the distribution of guesses is the mean over

    def _strong(self) -> list[View]:
        return [STRONG._replace(draw=k) for k in range(1, self.strong_views + 1)]

    def views(self) -> dict[View, str]:
        return dict.fromkeys([LABELED_STRONG, WEAK, *self._strong()], IMAGES)

    def heads(self) -> dict[str, tuple[int, ...]]:
        return {'rotation': (4,)}

    def init_state(self, data: DataSpec) -> dict:
        return {
            'wanted': class_distribution(data.labels, data.num_classes),
            'guessed': uniform(self.average, data.num_classes),
        }

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        weak, strong = inputs.images[WEAK], [inputs.images[view] for view in self._strong()]
        p = targets(inputs.forward(jax.lax.stop_gradient(inputs.params), weak, draw='guess')[0]['logits'])
        guess = sharpen(align(p, state['wanted'], state['guessed'].mean(0)), self.temperature)
        guessed = push(state['guessed'], p.mean(0, keepdims=True))

        order_key, mix_key, turn_key = jax.random.split(inputs.key, 3)
        labels = jnp.concatenate([jax.nn.one_hot(inputs.labels, guess.shape[-1]), *[guess] * (len(strong) + 1)])
        images = jnp.concatenate([inputs.images[LABELED_STRONG], *strong, weak])
        order = jax.random.permutation(order_key, len(images))
        images, labels = mixup(mix_key, self.alpha, (images, labels), (images[order], labels[order]))
        turns = jax.random.randint(turn_key, (len(weak),), 0, 4)

        outputs, batch_stats = inputs.forward(
            inputs.params, jnp.concatenate([images, strong[0], rotate(strong[0], turns)]), draw='mixed'
        )
        n, m = len(inputs.labels), len(images)
        logits = outputs['logits']
        labeled_loss = cross_entropy(labels[:n], logits[:n]).mean()
        loss = cross_entropy(labels[n:], logits[n:m]).mean()
        anchor_loss = cross_entropy(guess, logits[m : m + len(weak)]).mean()
        rotation_loss = cross_entropy(turns, outputs['rotation'][m + len(weak) :]).mean()
        guess_loss = self.weight * loss + self.anchor_weight * anchor_loss
        total = labeled_loss + ramp(inputs.progress, self.ramp) * guess_loss + self.rotation_weight * rotation_loss
        terms = {'loss_labeled': labeled_loss, 'loss_anchor': anchor_loss, 'loss_rotation': rotation_loss}
        return Loss(
            total,
            state={**state, 'guessed': guessed},
            metrics={'loss': loss, **terms},
            pseudo_labels=PseudoLabels(guess.argmax(-1), jnp.ones(len(guess))),
            batch_stats=batch_stats,
        )
