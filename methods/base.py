"""The contract between a method and the engine.

A method is a frozen dataclass of hyper-parameters with one pure `loss`. It names the views it wants to see; the
engine makes them, runs the network over all of them once, and adds up the losses of all methods of the run. A method
that has to run the network itself (on mixed or perturbed images, or as its EMA teacher) calls `Inputs.forward`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from errors import unknown
from models.mlp import MLP


class View(NamedTuple):
    """The images of a stream under a random augmentation.

    Attributes:
        stream: 'labeled' or 'unlabeled'; in domain adaptation the source and the target.
        augmentation: 'weak', 'strong', 'rotated' or 'distorted', see `data.augment`.
        draw: Number of the draw of this augmentation, from 1.
    """

    stream: str
    augmentation: str
    draw: int = 1

    def __str__(self) -> str:
        return f'{self.stream}.{self.augmentation}{self.draw if self.draw > 1 else ""}'


LABELED = View('labeled', 'weak')
LABELED_STRONG = View('labeled', 'strong')
LABELED_ROTATED = View('labeled', 'rotated')
WEAK, WEAK2 = (View('unlabeled', 'weak', draw) for draw in (1, 2))
STRONG, STRONG2 = (View('unlabeled', 'strong', draw) for draw in (1, 2))
ROTATED = View('unlabeled', 'rotated')
DISTORTED, DISTORTED2 = (View('unlabeled', 'distorted', draw) for draw in (1, 2))

# Batch-norm policies of a view. Published methods differ exactly here, so each method states its own.
JOINT = 'joint'  # in the joint batch: shares its statistics, gradient flows through everything
SEPARATE = 'separate'  # in a batch of all separate views, with statistics of its own that evaluation does not use
NO_GRAD = 'no_grad'  # normalised with the joint batch's statistics without entering them; no backward pass
IMAGES = 'images'  # not in the joint batch: the method passes the images to `Inputs.forward` itself
POLICIES = (JOINT, SEPARATE, NO_GRAD, IMAGES)  # where two methods share a view, the first of their policies holds


def weak_and_strong(statistics: str) -> tuple[str, str]:
    """Returns the batch-norm policies of the weak and of the strong views of a consistency method.

    Args:
        statistics: 'joint' is one batch, as in FixMatch's official code. With 'no_grad' the weak views are used for
            pseudo-labels only, without a backward pass. With 'separate' the strong views have statistics of their own,
            as in codebases with a forward pass for each view (TLlib); the running statistics are those of the labeled
            and weak views.

    Raises:
        UserError: There is no such policy.
    """
    policies = {JOINT: (JOINT, JOINT), NO_GRAD: (NO_GRAD, JOINT), SEPARATE: (JOINT, SEPARATE)}
    if statistics not in policies:
        raise unknown('batch-norm policy', statistics, policies)
    return policies[statistics]


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a method knows of the data before training.

    Attributes:
        num_classes: Number of classes.
        image_shape: (H, W, C).
        labels: Classes of all labeled images, int32 `[N]`; position i is that of `Inputs.indices['labeled']`.
        num_unlabeled: Number of images that the unlabeled stream draws from.
        batch_sizes: {stream: images in a step}.
        variables: {'params', 'batch_stats'} of the network when training begins.
        heads: Names of the layers on top of the features.
        key: Random key for the method's initial state, distinct for each seed and method.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    labels: np.ndarray
    num_unlabeled: int
    batch_sizes: dict[str, int]
    variables: Any = None
    heads: frozenset[str] = frozenset()
    key: Any = None


@dataclasses.dataclass(frozen=True)
class Start:
    """What `Method.prepare` gets before the first step.

    Attributes:
        images: All labeled images, not augmented, uint8 `[N, H, W, C]`.
        labels: Their classes, int32 `[N]`.
        params: Parameters of the network when training begins.
        batch_stats: Its running statistics.
        forward: `(params, images, batch_stats) -> outputs` preprocesses images and runs the network as in evaluation.
        key: Random key, distinct for each seed and method.
    """

    images: np.ndarray
    labels: np.ndarray
    params: Any
    batch_stats: Any
    forward: Callable[[Any, jax.Array, Any], dict[str, jax.Array]]
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a loss gets in one step.

    Attributes:
        labels: True classes of the labeled stream, int32 `[B]`. Those of the unlabeled stream stay in the engine, which
            scores `Loss.pseudo_labels` with them, so that no method can learn from them.
        indices: {stream: indices of the images within the stream, int32 `[n]`}.
        images: {view: preprocessed images, float32 `[n, H, W, C]`, or `[n, D]` with cached features}; image i is the
            same in every view of a stream.
        outputs: {view: {'features': `[n, D]`, 'logits': `[n, num_classes]`, and the output of every head}}, without
            views of the policy 'images'.
        progress: The fraction of training (of the round, see `Method.rounds`) that is done, float32 in [0, 1).
        key: Random key, distinct for each method and step.
        params: Parameters of the network.
        ema_params: Their exponential moving average, the teacher.
        forward: `(params, images, draw='name') -> (outputs, batch_stats)` runs the network on a separate batch,
            normalised with the statistics of that batch. The running statistics do not change unless batch_stats is
            returned in `Loss`. Passes with different draws drop different units. `(params, images, batch_stats)` runs
            the network as in evaluation, with the given running statistics.
        mlp: `(params, name, x) -> output` runs one of the method's own networks (`Method.mlps`).
    """

    labels: Any
    indices: dict[str, jax.Array]
    images: dict[View, jax.Array]
    outputs: dict[View, dict[str, jax.Array]]
    progress: jax.Array
    key: jax.Array
    params: Any
    ema_params: Any
    forward: Callable[..., tuple[dict[str, jax.Array], Any]]
    mlp: Callable[[Any, str, jax.Array], jax.Array]


class PseudoLabels(NamedTuple):
    """Pseudo-labels of the unlabeled stream.

    Attributes:
        labels: Classes, int32 `[n]`.
        mask: Their weights in the loss, float32 `[n]`.
    """

    labels: jax.Array
    mask: jax.Array


class Loss(NamedTuple):
    """What a loss returns.

    Attributes:
        loss: The weighted loss, a scalar.
        state: The method's new state.
        metrics: Scalars to log; 'loss' is the method's main term before its weight, 'accuracy' that on labeled images.
        pseudo_labels: The pseudo-labels that it used, which the engine scores.
        batch_stats: New running statistics of the network, as `Inputs.forward` returned them; None leaves them to the
            engine. Only one method of a run may return any.
    """

    loss: jax.Array
    state: Any = ()
    metrics: dict[str, jax.Array] = {}  # noqa: RUF012 - never mutated
    pseudo_labels: PseudoLabels | None = None
    batch_stats: Any = None


class Method:
    """Base of all methods; `methods/<name>.py` holds one subclass, a frozen dataclass."""

    # Training in several rounds: each has its own learning-rate schedule and begins with `relabel`.
    rounds: int = 1
    restart: bool = False  # a round begins with new parameters
    teacher: ClassVar[bool] = False  # whether the loss reads `Inputs.ema_params`

    @property
    def separable(self) -> bool:
        """Whether the loss of a batch is the mean of those of its parts, but for batch norm, and changes no state."""
        return False

    @property
    def rotation_averaged(self) -> bool:
        """Whether evaluation also reports the accuracy of outputs averaged over four rotations of the image."""
        return False

    def views(self) -> dict[View, str]:
        """Returns {view: batch-norm policy}."""
        raise NotImplementedError

    def heads(self) -> dict[str, tuple[int, ...]]:
        """Returns {name of an output: widths of the layers on top of the features that it comes from}.

        A width of 0 is that of the features.
        """
        return {}

    def mlps(self) -> dict[str, MLP]:
        """Returns {name: small network that the loss runs itself, by `Inputs.mlp`}."""
        return {}

    def init_state(self, data: DataSpec) -> Any:
        """Returns the method's own state (thresholds, class distributions, queues), a pytree of arrays."""
        del data
        return ()

    def prepare(self, state: Any, start: Start) -> Any:
        """Returns the state before the first step, given the labeled images. Called once in a run."""
        del start
        return state

    def loss(self, inputs: Inputs, state: Any) -> Loss:
        """Returns the loss of one step. A pure function, called inside the compiled step."""
        raise NotImplementedError

    def relabel(self, state: Any, probabilities: jax.Array, round_number: jax.Array) -> Any:
        """Returns the state for a round after the first.

        Args:
            state: The state after the round before.
            probabilities: The EMA network's class probabilities for every image of the unlabeled stream, `[N, C]`.
            round_number: Number of the round, int32, from 1.
        """
        del probabilities, round_number
        return state
