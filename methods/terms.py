"""Terms that the losses of several methods share. All are pure functions; p and q are probabilities, `[n, C]`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from methods.base import PseudoLabels

_TINY = 1e-30  # keeps divisions and logarithms of probabilities finite


def cross_entropy(targets: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns H(targets, softmax(logits)) of each example, `[n]`.

    Args:
        targets: Classes, int `[n]`, or probabilities `[n, C]`.
        logits: `[n, C]`.
    """
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return optax.softmax_cross_entropy(logits, targets)


def entropy(p: jax.Array) -> jax.Array:
    """Returns -sum p log p over the last axis, in nats."""
    return -jnp.sum(p * jnp.log(jnp.maximum(p, _TINY)), axis=-1)  # the value and the gradient are finite where p is 0


def kl_divergence(p: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns KL(p || softmax(logits)) of each example, `[n]`."""
    return cross_entropy(p, logits) - entropy(p)


def squared_difference(p: jax.Array, q: jax.Array) -> jax.Array:
    """Returns (p - q)^2 of each example, averaged over classes, `[n]`."""
    return jnp.square(p - q).mean(-1)


def targets(logits: jax.Array) -> jax.Array:
    """Returns softmax(logits) as a target: no gradient flows through it."""
    return jax.nn.softmax(jax.lax.stop_gradient(logits))


def sharpen(p: jax.Array, temperature: float) -> jax.Array:
    """Returns normalised p^(1/T) (MixMatch, equation 7): p itself for T = 1, one-hot labels for the limit T = 0."""
    if temperature == 0:
        return jax.nn.one_hot(p.argmax(-1), p.shape[-1])
    return normalise((p / p.max(-1, keepdims=True)) ** (1 / temperature))


def normalise(p: jax.Array) -> jax.Array:
    """Returns p scaled to a sum of one over the last axis."""
    total = p.sum(-1, keepdims=True)
    return p / jnp.where(total > 0, total, 1)


def align(p: jax.Array, wanted: jax.Array | float, observed: jax.Array) -> jax.Array:
    """Returns p * wanted / observed class frequencies, normalised (distribution alignment, ReMixMatch, section 3.1)."""
    return normalise(p * wanted / jnp.maximum(observed, _TINY))


def uniform(*shape: int) -> jax.Array:
    """Returns equal probabilities for all classes, `[..., C]`."""
    return jnp.full(shape, 1 / shape[-1])


def class_distribution(labels: jax.typing.ArrayLike, num_classes: int) -> jax.Array:
    """Returns the frequency of each class among labels `[n]`, float32 `[C]`."""
    return jnp.bincount(labels, length=num_classes) / jnp.size(labels)


def pseudo_labels(p: jax.Array, threshold: float | jax.Array) -> PseudoLabels:
    """Returns the most probable classes and a mask: 1 where their probability reaches the threshold.

    Args:
        p: Probabilities, `[n, C]`.
        threshold: One for all classes, or one for each class, `[C]`.
    """
    labels = p.argmax(-1)
    threshold = jnp.broadcast_to(threshold, p.shape[-1:])[labels]
    return PseudoLabels(labels, (p.max(-1) >= threshold).astype(jnp.float32))


def ramp(progress: jax.Array, length: float) -> jax.Array:
    """Returns a factor that rises linearly from 0 to 1 over the first `length` of training; always 1 for length 0."""
    return jnp.clip(progress / length, 0, 1) if length else jnp.float32(1)


def ema(average: jax.Array, value: jax.Array, decay: float) -> jax.Array:
    """Returns the exponential moving average after one more value."""
    return decay * average + (1 - decay) * value


def push(queue: jax.Array, new: jax.Array) -> jax.Array:
    """Returns a queue `[N, ...]` after `new`, `[n, ...]` with n <= N, has replaced the oldest entries."""
    return jnp.concatenate([queue[len(new) :], new])


def mixup(key: jax.Array, alpha: float, examples: tuple, partners: tuple, per_example: bool = True) -> tuple:
    """Returns lambda * examples + (1 - lambda) * partners (MixMatch, equations 8 to 11).

    lambda is the larger one of l and 1 - l for l ~ Beta(alpha, alpha).

    Args:
        key: Random key.
        alpha: Parameter of the Beta distribution.
        examples: Arrays `[n, ...]`, such as (images, targets).
        partners: Arrays of the same shapes.
        per_example: Draw lambda for each example instead of once for all.
    """
    share = jax.random.beta(key, alpha, alpha, (len(examples[0]) if per_example else 1,))
    share = jnp.maximum(share, 1 - share)

    def mix(a, b):
        s = share.reshape(-1, *[1] * (a.ndim - 1))
        return s * a + (1 - s) * b

    return tuple(map(mix, examples, partners))


def unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors `[n, D]` scaled to length one."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(-1, keepdims=True), 1e-14))


@jax.custom_vjp
def reverse_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns x and multiplies its gradient by -factor (Ganin et al. 2016, JMLR, equations 16 and 17)."""
    del factor
    return x


reverse_gradient.defvjp(lambda x, factor: (x, factor), lambda factor, g: (-factor * g, jnp.zeros_like(factor)))


def adversarial_ramp(progress: jax.Array, gamma: float) -> jax.Array:
    """Returns lambda = 2 / (1 + exp(-gamma p)) - 1, from 0 towards 1 (Ganin et al. 2016, JMLR, section 5.2.2)."""
    return 2 / (1 + jnp.exp(-gamma * progress)) - 1


def domain_loss(
    source: jax.Array, target: jax.Array, weights: Sequence[jax.typing.ArrayLike] = (1.0, 1.0)
) -> tuple[jax.Array, dict]:
    """Computes the binary cross-entropy of a domain discriminator, with equal weight for both domains.

    Args:
        source: Logits of the source examples, `[n]`; positive for "source".
        target: Logits of the target examples, `[m]`.
        weights: Weights of the examples of source and target: scalars, or `[n]` and `[m]`.

    Returns:
        The loss and metrics: the accuracy of the discriminator, with equal weight for both domains, and the proxy
        A-distance of its error, 2 (1 - 2 error) (Ben-David et al. 2007).
    """
    loss = (weights[0] * jax.nn.softplus(-source)).mean() + (weights[1] * jax.nn.softplus(target)).mean()
    accuracy = ((source > 0).mean() + (target <= 0).mean()) / 2
    return loss / 2, {'domain_accuracy': accuracy, 'a_distance': 4 * accuracy - 2}


def predictions(logits: jax.Array) -> PseudoLabels:
    """Returns all predicted classes, so that the log of a method without pseudo-labels shows their accuracy, too."""
    return PseudoLabels(logits.argmax(-1), jnp.ones(len(logits)))


def rotation_loss(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean cross-entropy and accuracy of logits `[n, 4]` for a rotated view: image j is turned j % 4 times."""
    turns = jnp.arange(len(logits)) % 4
    return cross_entropy(turns, logits).mean(), (logits.argmax(-1) == turns).mean()


def spread(embeddings: jax.Array) -> dict[str, jax.Array]:
    """Measures whether embeddings `[n, D]`, scaled to length one, have collapsed.

    Returns:
        Two metrics. 'embedding_std' is the standard deviation of a dimension times sqrt(D), averaged over dimensions
        (Chen & He 2021, arXiv:2011.10566, section 4.1): 1 where embeddings are spread over the sphere, 0 where all are
        equal. 'effective_rank' is (sum of eigenvalues)^2 / (sum of their squares) of the covariance: the number of
        directions that embeddings use.
    """
    z = unit(jax.lax.stop_gradient(embeddings))
    centred = z - z.mean(0)
    covariance = centred.T @ centred / len(z)
    rank = jnp.square(jnp.trace(covariance)) / jnp.maximum(jnp.square(covariance).sum(), _TINY)
    return {'embedding_std': (z.std(0) * z.shape[-1] ** 0.5).mean(), 'effective_rank': rank}
