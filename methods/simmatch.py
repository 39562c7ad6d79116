"""SimMatch (Zheng et al. 2022, arXiv:2203.06915): views agree in class and in similarity to every labeled image."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from methods.base import IMAGES, JOINT, LABELED, STRONG, WEAK, DataSpec, Inputs, Loss, Method, View
from methods.terms import align, cross_entropy, normalise, pseudo_labels, push, targets, unit


@dataclasses.dataclass(frozen=True)
class SimMatch(Method):
    """Equations 3-13: weight * mean 1(max p >= threshold) H(p, p(strong)) + instance_weight * mean H(q, q(strong)).

    A memory holds the teacher's embedding z_k of every labeled image. q are the similarities of an embedding z to it,
    softmax(z z_k / t). The teacher (the EMA network) sees the weak view; its p is aligned by the mean of the last
    `average` batches. Unfolding: q of the teacher is scaled by p of each labeled image's class, and normalised.
    Aggregation: p becomes alpha p + (1 - alpha) (q before scaling, summed over each class). Labeled images that have
    not been in a batch yet have a similarity of 0 (official: no instance term in the first epoch).

    The official code is for ImageNet; its teacher normalises with the running statistics, this one with those of the
    batch. For CIFAR, USB has no teacher, and updates the memory with momentum 0.7. Alignment averages over the batches
    so far, `average` at most: the queue of the official code (256 batches; 32 for CIFAR in the paper and USB) begins
    with zeros, which cancel. The projection's nonlinearity is the network's (official: ReLU).
    """

    teacher: ClassVar[bool] = True

    threshold: float = 0.95
    temperature: float = 0.1  # t of the similarities
    weight: float = 1.0  # lambda_u
    instance_weight: float = 1.0  # lambda_in
    alpha: float = 0.9  # weight of the class prediction in p
    embedding: int = 128  # dimensions
    average: int = 32  # number of batches that alignment averages over

    def views(self) -> dict[View, str]:
        return {LABELED: IMAGES, WEAK: IMAGES, STRONG: JOINT}

    def heads(self) -> dict[str, tuple[int, ...]]:
        return {'projection': (0, self.embedding)}

    def init_state(self, data: DataSpec) -> dict:
        return {
            # Rows that are still zero only scale the mean, and alignment normalises.
            'guessed': jnp.zeros((self.average, data.num_classes)),
            'embeddings': jnp.zeros((len(data.labels), self.embedding)),
            'classes': jax.nn.one_hot(data.labels, data.num_classes),
        }

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        views = [inputs.images[LABELED], inputs.images[WEAK]]
        teacher = jax.lax.stop_gradient(inputs.forward(inputs.ema_params, jnp.concatenate(views))[0])
        n = len(inputs.labels)
        p = targets(teacher['logits'][n:])
        embeddings = unit(teacher['projection'])
        guessed = push(state['guessed'], p.mean(0, keepdims=True))
        p = align(p, 1.0, guessed.mean(0))

        memory, classes = state['embeddings'], state['classes']
        met = jnp.any(memory != 0, axis=-1)
        similar = jax.nn.softmax(self._similarity(embeddings[n:], memory, met))
        unfolded = normalise(similar * (p @ classes.T))
        p = jnp.where(met.any(), self.alpha * p + (1 - self.alpha) * similar @ classes, p)
        guess = pseudo_labels(p, self.threshold)

        strong = inputs.outputs[STRONG]
        loss = (guess.mask * cross_entropy(p, strong['logits'])).mean()
        similarity = self._similarity(unit(strong['projection']), memory, met)
        instance_loss = jnp.where(met.any(), cross_entropy(unfolded, similarity).mean(), 0)

        memory = memory.at[inputs.indices['labeled']].set(embeddings[:n])
        total = self.weight * loss + self.instance_weight * instance_loss
        state = {'guessed': guessed, 'embeddings': memory, 'classes': classes}
        return Loss(total, state, {'loss': loss, 'loss_instance': instance_loss}, guess)

    def _similarity(self, embeddings: jax.Array, memory: jax.Array, met: jax.Array) -> jax.Array:
        return jnp.where(met, embeddings @ memory.T / self.temperature, -1e9)
