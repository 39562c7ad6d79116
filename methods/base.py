"""The contract between a method and the engine.

A method is a frozen dataclass of hyper-parameters with one pure `loss`. It names the views it wants to see; the
engine makes them, runs the network over all of them once, and adds up the losses of all methods of the run.
"""

import dataclasses
from typing import Any, NamedTuple

import jax

# Batch-norm policies of a view. Published methods differ exactly here, so each method states its own.
JOINT = 'joint'  # in the joint batch: shares its statistics, gradient flows through everything
NO_GRAD = 'no_grad'  # normalised with the joint batch's statistics without entering them; no backward pass
POLICIES = (JOINT, NO_GRAD)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a loss sees of one step.

    labels: true classes of the labeled stream, int32 `[B]`. There are none for the unlabeled stream: the engine
        keeps them to itself and scores `Loss.pseudo_labels` with them, so that no method can learn from them.
    images: {view: normalised images, float32 `[n, H, W, C]`}.
    outputs: {view: {'features': `[n, D]`, 'logits': `[n, num_classes]`}}; example i is the same in every view
        of a stream.
    progress: the fraction of training that is done, float32 in [0, 1).
    """

    labels: jax.Array
    images: dict[str, jax.Array]
    outputs: dict[str, dict[str, jax.Array]]
    progress: jax.Array


class PseudoLabels(NamedTuple):
    """Guessed classes of the unlabeled stream, int32 `[n]`, and their weights in the loss, float32 `[n]`."""

    labels: jax.Array
    mask: jax.Array


class Loss(NamedTuple):
    """What a loss returns: the weighted loss (scalar), the method's new state, and scalars to log."""

    loss: jax.Array
    state: Any = ()
    metrics: dict[str, jax.Array] = {}  # noqa: RUF012 - never mutated
    pseudo_labels: PseudoLabels | None = None


class Method:
    """Base of all methods; `methods/<name>.py` holds one subclass, a frozen dataclass."""

    def views(self) -> dict[str, str]:
        """Returns {'<stream>.<augmentation>': batch-norm policy}; streams: labeled, unlabeled."""
        raise NotImplementedError

    def init_state(self, num_classes: int) -> Any:
        """Returns the method's own state (thresholds, class distributions), a pytree of arrays."""
        del num_classes
        return ()

    def loss(self, inputs: Inputs, state: Any) -> Loss:
        """Returns the loss of one step. Pure; called inside the compiled step."""
        raise NotImplementedError
