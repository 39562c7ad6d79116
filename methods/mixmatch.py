"""MixMatch (Berthelot et al. 2019, arXiv:1905.02249): guessed, sharpened labels, mixed up with the true ones."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import IMAGES, LABELED, WEAK, WEAK2, Inputs, Loss, Method, PseudoLabels, View
from methods.terms import cross_entropy, mixup, ramp, sharpen, squared_difference, targets


@dataclasses.dataclass(frozen=True)
class MixMatch(Method):
    """Algorithm 1 and equations 2-5: L_X + weight * ramp * L_U. It includes the labeled term.

    L_X is the cross-entropy on mixed labeled images, L_U the squared difference, averaged over classes, on mixed
    unlabeled ones; a guess is the mean of K = 2 predictions. The mixed images pass the network as one batch, which
    gives the running statistics (the official code interleaves them into K + 1 batches, each of which is a sample of
    all, and takes the statistics of the first). alpha and weight are the paper's for CIFAR-10; configs/mixmatch.py has
    those for other data sets. FixMatch's code has alpha 0.5 and weight 100; TorchSSL and USB, too (USB 150 on
    CIFAR-100), with one lambda for a whole batch and a ramp over 0.4 of training.
    """

    temperature: float = 0.5
    alpha: float = 0.75  # of the Beta distribution of MixUp
    weight: float = 75.0  # lambda_U
    ramp: float = 1 / 64  # fraction of training over which the weight rises: the official 1024 of 65536 kimg
    per_example: bool = True  # one lambda for each image (official) or for the batch

    def views(self) -> dict[View, str]:
        return {LABELED: IMAGES, WEAK: IMAGES, WEAK2: IMAGES}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        constant = jax.lax.stop_gradient(inputs.params)
        views = [inputs.images[WEAK], inputs.images[WEAK2]]
        guesses = [
            targets(inputs.forward(constant, view, draw=f'guess{k}')[0]['logits']) for k, view in enumerate(views)
        ]
        guess = sharpen((guesses[0] + guesses[1]) / 2, self.temperature)

        labels = jax.nn.one_hot(inputs.labels, guess.shape[-1])
        images = jnp.concatenate([inputs.images[LABELED], *views])
        labels = jnp.concatenate([labels, guess, guess])
        order_key, mix_key = jax.random.split(inputs.key)
        order = jax.random.permutation(order_key, len(images))
        images, labels = mixup(mix_key, self.alpha, (images, labels), (images[order], labels[order]), self.per_example)

        outputs, batch_stats = inputs.forward(inputs.params, images, draw='mixed')
        n = len(inputs.labels)
        labeled_loss = cross_entropy(labels[:n], outputs['logits'][:n]).mean()
        loss = squared_difference(labels[n:], jax.nn.softmax(outputs['logits'][n:])).mean()
        total = labeled_loss + self.weight * ramp(inputs.progress, self.ramp) * loss
        return Loss(
            total,
            metrics={'loss': loss, 'loss_labeled': labeled_loss},
            pseudo_labels=PseudoLabels(guess.argmax(-1), jnp.ones(len(guess))),
            batch_stats=batch_stats,
        )
