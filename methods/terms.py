"""What the losses of several methods are made of. Pure functions; p and q are probabilities, `[n, C]`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from methods.base import PseudoLabels

_TINY = 1e-30  # keeps divisions and logarithms of probabilities finite


def cross_entropy(targets: jax.Array, logits: jax.Array) -> jax.Array:
    """H(targets, softmax(logits)) of each example, `[n]`. targets: classes, int `[n]`, or probabilities `[n, C]`."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return optax.softmax_cross_entropy(logits, targets)


def entropy(p: jax.Array) -> jax.Array:
    """-sum p log p over the last axis, in nats."""
    return -jnp.sum(p * jnp.log(jnp.maximum(p, _TINY)), axis=-1)  # finite, as is its gradient, where p is 0


def kl_divergence(p: jax.Array, logits: jax.Array) -> jax.Array:
    """KL(p || softmax(logits)) of each example, `[n]`."""
    return cross_entropy(p, logits) - entropy(p)


def squared_difference(p: jax.Array, q: jax.Array) -> jax.Array:
    """(p - q)^2 of each example, averaged over classes, `[n]`."""
    return jnp.square(p - q).mean(-1)


def targets(logits: jax.Array) -> jax.Array:
    """softmax(logits) to learn from: no gradient flows back through it."""
    return jax.nn.softmax(jax.lax.stop_gradient(logits))


def sharpen(p: jax.Array, temperature: float) -> jax.Array:
    """Normalised p^(1/T) (MixMatch, equation 7). T = 1 leaves p; T = 0, the limit, gives one-hot labels."""
    if temperature == 0:
        return jax.nn.one_hot(p.argmax(-1), p.shape[-1])
    return normalise((p / p.max(-1, keepdims=True)) ** (1 / temperature))


def normalise(p: jax.Array) -> jax.Array:
    """p scaled to sum to one along the last axis."""
    total = p.sum(-1, keepdims=True)
    return p / jnp.where(total > 0, total, 1)


def align(p: jax.Array, wanted: jax.Array | float, observed: jax.Array) -> jax.Array:
    """Distribution alignment (ReMixMatch, section 3.1): p times wanted / observed class frequencies, normalised."""
    return normalise(p * wanted / jnp.maximum(observed, _TINY))


def uniform(*shape: int) -> jax.Array:
    """Equal probabilities for all classes, `[..., C]`."""
    return jnp.full(shape, 1 / shape[-1])


def class_distribution(labels: jax.typing.ArrayLike, num_classes: int) -> jax.Array:
    """The frequency of each class among labels `[n]`, float32 `[C]`."""
    return jnp.bincount(labels, length=num_classes) / jnp.size(labels)


def pseudo_labels(p: jax.Array, threshold: float | jax.Array) -> PseudoLabels:
    """The likeliest classes, and 1 where their probability reaches the threshold (a number, or one a class)."""
    labels = p.argmax(-1)
    threshold = jnp.broadcast_to(threshold, p.shape[-1:])[labels]
    return PseudoLabels(labels, (p.max(-1) >= threshold).astype(jnp.float32))


def ramp(progress: jax.Array, length: float) -> jax.Array:
    """Rises linearly from 0 to 1 over the first `length` of training; 1 from the start for length 0."""
    return jnp.clip(progress / length, 0, 1) if length else jnp.float32(1)


def ema(average: jax.Array, value: jax.Array, decay: float) -> jax.Array:
    """The exponential moving average after one more value."""
    return decay * average + (1 - decay) * value


def push(queue: jax.Array, new: jax.Array) -> jax.Array:
    """A first-in-first-out memory `[N, ...]` after `new`, `[n, ...]` with n <= N, has taken the oldest places."""
    return jnp.concatenate([queue[len(new) :], new])


def mixup(key: jax.Array, alpha: float, examples: tuple, partners: tuple, per_example: bool = True) -> tuple:
    """lambda * examples + (1 - lambda) * partners, lambda ~ Beta(alpha, alpha), at least 1/2 (MixMatch, eq. 8-11).

    examples, partners: arrays `[n, ...]`, such as (images, targets). per_example: one lambda for each of the n, or
    one for all of them.
    """
    share = jax.random.beta(key, alpha, alpha, (len(examples[0]) if per_example else 1,))
    share = jnp.maximum(share, 1 - share)

    def mix(a, b):
        s = share.reshape(-1, *[1] * (a.ndim - 1))
        return s * a + (1 - s) * b

    return tuple(map(mix, examples, partners))


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors `[n, D]` scaled to length one."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(-1, keepdims=True), 1e-14))


@jax.custom_vjp
def reverse_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x; its gradient is -factor times the one that arrives (Ganin et al. 2016, JMLR, equations 16 and 17)."""
    del factor
    return x


reverse_gradient.defvjp(lambda x, factor: (x, factor), lambda factor, g: (-factor * g, jnp.zeros_like(factor)))


def adversarial_ramp(progress: jax.Array, gamma: float) -> jax.Array:
    """lambda = 2 / (1 + exp(-gamma p)) - 1, from 0 towards 1 (Ganin et al. 2016, JMLR, section 5.2.2)."""
    return 2 / (1 + jnp.exp(-gamma * progress)) - 1


def domain_loss(
    source: jax.Array, target: jax.Array, weights: Sequence[jax.typing.ArrayLike] = (1.0, 1.0)
) -> tuple[jax.Array, dict]:
    """The binary cross-entropy of a domain discriminator's logits, `[n]` and `[m]`: the mean of both domains' means.

    weights: of the examples of each domain.
    Returns it and metrics: the discriminator's accuracy (each domain counts half) and the proxy A-distance that its
    errors amount to, 2 (1 - 2 error) (Ben-David et al. 2007).
    """
    loss = (weights[0] * jax.nn.softplus(-source)).mean() + (weights[1] * jax.nn.softplus(target)).mean()
    accuracy = ((source > 0).mean() + (target <= 0).mean()) / 2
    return loss / 2, {'domain_accuracy': accuracy, 'a_distance': 4 * accuracy - 2}


def predictions(logits: jax.Array) -> PseudoLabels:
    """The predicted classes, all of them: for a method that learns from no pseudo-label, so that the log shows them."""
    return PseudoLabels(logits.argmax(-1), jnp.ones(len(logits)))


def rotation_loss(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy and accuracy of logits `[n, 4]` for the images of a rotated view, turned j % 4 times each."""
    turns = jnp.arange(len(logits)) % 4
    return cross_entropy(turns, logits).mean(), (logits.argmax(-1) == turns).mean()


def spread(embeddings: jax.Array) -> dict[str, jax.Array]:
    """What shows whether embeddings `[n, D]` have collapsed: metrics of them, scaled to length one.

    embedding_std: standard deviation of a dimension times sqrt(D), the mean over dimensions (Chen & He 2021,
    arXiv:2011.10566, section 4.1). 1 where they are spread over the sphere, 0 where all are the same.
    effective_rank: (sum of eigenvalues)^2 / sum of their squares, of the covariance: how many directions they use.
    """
    z = unit(jax.lax.stop_gradient(embeddings))
    centred = z - z.mean(0)
    covariance = centred.T @ centred / len(z)
    rank = jnp.square(jnp.trace(covariance)) / jnp.maximum(jnp.square(covariance).sum(), _TINY)
    return {'embedding_std': (z.std(0) * z.shape[-1] ** 0.5).mean(), 'effective_rank': rank}
