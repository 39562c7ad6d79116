"""CoMatch (Li et al. 2021, arXiv:2011.11183): class probabilities and embeddings regularise each other."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import DISTORTED, JOINT, LABELED, STRONG, WEAK, DataSpec, Inputs, Loss, Method, View, weak_and_strong
from methods.terms import align, cross_entropy, normalise, pseudo_labels, push, targets, unit


@dataclasses.dataclass(frozen=True)
class CoMatch(Method):
    """Equations 3-9: weight * mean 1(max q >= threshold) H(q, p(strong)) + contrast_weight * L_ctr.

    The prediction of the weak view is aligned (divided by its mean over the last `average` batches, or over all while
    there are fewer, as in the official code) and, once the memory is full, smoothed: q = alpha p + (1 - alpha) sum_k
    a_k p_k with a = softmax(z z_k / t), over a memory of recent embeddings z_k and their probabilities p_k (one-hot
    labels for labeled images). L_ctr is the cross-entropy between two graphs over the batch: the similarities of the
    embeddings of two strong views, and q q^T with ones on the diagonal and zeros for values below contrast_threshold.
    The first strong view is FixMatch's, the second SimCLR's, as in the official CIFAR code (datasets/cifar.py; USB
    draws FixMatch's twice). Like that code, this one fills the memory from the network in training; the official
    ImageNet code uses the EMA network. The projection's first layer is as wide as the features, as there.
    """

    threshold: float = 0.95  # tau
    contrast_threshold: float = 0.8  # T of the pseudo-label graph
    temperature: float = 0.2  # t of the similarities
    weight: float = 1.0
    contrast_weight: float = 1.0
    alpha: float = 0.9  # weight of the prediction; 1 - alpha is that of the memory
    embedding: int = 64  # dimensions
    batches: int = 5  # number of batches that the memory holds
    average: int = 32  # number of batches that alignment averages over
    statistics: str = JOINT  # of batch norm: 'joint', 'no_grad' or 'separate', see methods/base.py

    def views(self) -> dict[View, str]:
        weak, strong = weak_and_strong(self.statistics)
        return {LABELED: JOINT, WEAK: weak, STRONG: strong, DISTORTED: strong}

    def heads(self) -> dict[str, tuple[int, ...]]:
        return {'projection': (0, self.embedding)}

    def init_state(self, data: DataSpec) -> dict:
        size = self.batches * sum(data.batch_sizes.values())
        return {
            # Rows that are still zero only scale the mean, and alignment normalises.
            'guessed': jnp.zeros((self.average, data.num_classes)),
            'embeddings': jnp.zeros((size, self.embedding)),
            'probabilities': jnp.zeros((size, data.num_classes)),
        }

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        outputs = inputs.outputs
        embeddings = {view: unit(outputs[view]['projection']) for view in self.views()}
        weak = jax.lax.stop_gradient(embeddings[WEAK])
        p = targets(outputs[WEAK]['logits'])
        guessed = push(state['guessed'], p.mean(0, keepdims=True))
        p = align(p, 1.0, guessed.mean(0))
        neighbours = jax.nn.softmax(weak @ state['embeddings'].T / self.temperature) @ state['probabilities']
        full = state['probabilities'][0].sum() > 0
        q = jnp.where(full, self.alpha * p + (1 - self.alpha) * neighbours, p)
        guess = pseudo_labels(q, self.threshold)
        loss = (guess.mask * cross_entropy(q, outputs[STRONG]['logits'])).mean()

        similarity = embeddings[STRONG] @ embeddings[DISTORTED].T / self.temperature
        graph = jnp.where(jnp.eye(len(q), dtype=bool), 1.0, q @ q.T)
        graph = normalise(jnp.where(graph >= self.contrast_threshold, graph, 0))
        contrast_loss = cross_entropy(graph, similarity).mean()

        labeled = jax.lax.stop_gradient(embeddings[LABELED])
        state = {
            'guessed': guessed,
            'embeddings': push(state['embeddings'], jnp.concatenate([weak, labeled])),
            'probabilities': push(
                state['probabilities'], jnp.concatenate([p, jax.nn.one_hot(inputs.labels, p.shape[-1])])
            ),
        }
        total = self.weight * loss + self.contrast_weight * contrast_loss
        return Loss(total, state, {'loss': loss, 'loss_contrast': contrast_loss}, guess)
