"""The contract between a method and the engine.

A method is a frozen dataclass of hyper-parameters with one pure `loss`. It names the views it wants to see; the
engine makes them, runs the network over all of them once, and adds up the losses of all methods of the run. A method
that has to run the network itself (on mixed or perturbed images, or as its EMA teacher) calls `Inputs.forward`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from errors import unknown
from models.mlp import MLP


class View(NamedTuple):
    """What a method looks at: the images of a stream under a random augmentation.

    Attributes:
        stream: 'labeled' or 'unlabeled'; in domain adaptation the source and the target.
        augmentation: 'weak', 'strong', 'rotated' or 'distorted', see `data.augment`.
        draw: 1, or a number for each further draw of the same augmentation.
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
POLICIES = (JOINT, SEPARATE, NO_GRAD, IMAGES)  # a view that two methods ask for gets the first of theirs


def weak_and_strong(statistics: str) -> tuple[str, str]:
    """Returns the policies of the weak and of the strong views of consistency methods, from one word.

    joint: One batch, as in FixMatch's official code.
    no_grad: The weak views are only looked at, and need no backward pass.
    separate: The strong views have statistics of their own, as where each view has a forward pass (TLlib). The running
        statistics are those of the clean views, labeled and weak.

    Raises:
        UserError: It is none of these.
    """
    policies = {JOINT: (JOINT, JOINT), NO_GRAD: (NO_GRAD, JOINT), SEPARATE: (JOINT, SEPARATE)}
    if statistics not in policies:
        raise unknown('batch-norm policy', statistics, policies)
    return policies[statistics]


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a method may know of the data beforehand.

    Attributes:
        num_classes: Number of classes.
        image_shape: (H, W, C).
        labels: Classes of all labeled images, int32 `[N]`; position i is that of `Inputs.indices['labeled']`.
        num_unlabeled: How many images the unlabeled stream draws from.
        batch_sizes: {stream: images in a step}.
        variables: {'params', 'batch_stats'} of the network when training begins.
        heads: Names of the layers on top of the features.
        key: For whatever is random in a method's first state; another one for every seed and method.
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
    """What a method sees of a run before its first step.

    Attributes:
        images: All labeled images, not augmented, uint8 `[N, H, W, C]`.
        labels: Their classes, int32 `[N]`.
        params, batch_stats: Of the network when training begins.
        forward: `(params, images, batch_stats) -> outputs` preprocesses images and runs the network as in evaluation.
        key: For whatever is random in it.
    """

    images: np.ndarray
    labels: np.ndarray
    params: Any
    batch_stats: Any
    forward: Callable[[Any, jax.Array, Any], dict[str, jax.Array]]
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a loss sees of one step.

    Attributes:
        labels: True classes of the labeled stream, int32 `[B]`. There are none for the unlabeled stream: the engine
            keeps them to itself and scores `Loss.pseudo_labels` with them, so that no method can learn from them.
        indices: {stream: which of the stream's images these are, int32 `[n]`}.
        images: {view: preprocessed images, float32 `[n, H, W, C]`, or `[n, D]` with cached features}; image i is the
            same in every view of a stream.
        outputs: {view that is not 'images': {'features': `[n, D]`, 'logits': `[n, num_classes]`, and one for every
            head}}.
        progress: The fraction of training (of its round, see `Method.rounds`) that is done, float32 in [0, 1).
        key: For whatever is random in the loss; another one for every method and step.
        params, ema_params: Of the network and of its teacher, the exponential moving average.
        forward: `(params, images, draw='name') -> (outputs, batch_stats)` runs the network over one batch by itself,
            normalised with that batch's own statistics. The running statistics stay as they are unless batch_stats
            goes into `Loss`. Passes of another name drop other units. `(params, images, batch_stats)` runs it as in
            evaluation, with the running statistics given.
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
    """Guessed classes of the unlabeled stream, int32 `[n]`, and their weights in the loss, float32 `[n]`."""

    labels: jax.Array
    mask: jax.Array


class Loss(NamedTuple):
    """What a loss returns.

    Attributes:
        loss: The weighted loss, a scalar.
        state: The method's new state.
        metrics: Scalars to log; 'loss' is the method's main term before its weight.
        pseudo_labels: Those it used, for the engine to score.
        batch_stats: What `Inputs.forward` returned, where the network's running statistics are to come from there.
            Only one method of a run may return any.
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

    @property
    def rotation_averaged(self) -> bool:
        """Whether to report the test accuracy of outputs averaged over four rotations of the image, too."""
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
        """Returns the state before the first step, after a look at the labeled images. Called once in a run."""
        del start
        return state

    def loss(self, inputs: Inputs, state: Any) -> Loss:
        """Returns the loss of one step. Pure; called inside the compiled step."""
        raise NotImplementedError

    def relabel(self, state: Any, probabilities: jax.Array, round_number: jax.Array) -> Any:
        """Returns the state for a round after the first.

        probabilities: the EMA network's class probabilities for every image of the unlabeled stream, `[N, C]`.
        round_number: int32, from 1.
        """
        del probabilities, round_number
        return state
