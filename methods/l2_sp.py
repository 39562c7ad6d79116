"""L2-SP: weight decay towards the pretrained parameters (Li et al. 2018, arXiv:1802.01483)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from methods.base import DataSpec, Inputs, Loss, Method, View


@dataclasses.dataclass(frozen=True)
class L2SP(Method):
    """Equation 3: alpha / 2 ||w - w_0||^2 for the backbone and beta / 2 ||w||^2 for the heads.

    Over kernels, as in the authors' code (holyseven/TransferLearningClassification, weight_decay_mode 1); the codes of
    DELTA and TLlib take biases and the norms' parameters, too. The defaults are those of all three; for Stanford Dogs
    the authors' script has an alpha of .1. Use it instead of `optimizer.weight_decay`, which pulls towards zero.
    """

    alpha: float = 0.01  # factor of the decay to the initial parameters
    beta: float = 0.01  # factor of the decay of the classifier and other heads to zero

    separable = True

    def views(self) -> dict[View, str]:
        return {}

    def init_state(self, data: DataSpec) -> dict:
        kernels = _kernels(data.variables['params'])
        return {layer: kernel for layer, kernel in kernels.items() if layer not in data.heads}

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        kernels = _kernels(inputs.params)
        moved = {layer: kernels[layer] - start for layer, start in state.items()}
        heads = {layer: kernel for layer, kernel in kernels.items() if layer not in state}
        towards_start, towards_zero = (optax.tree.norm(tree, squared=True) / 2 for tree in (moved, heads))
        loss = self.alpha * towards_start + self.beta * towards_zero
        return Loss(loss, state, {'loss': loss, 'from_start': jnp.sqrt(2 * towards_start)})


def _kernels(params: dict) -> dict[str, jax.Array]:
    return {layer: leaves['kernel'] for layer, leaves in params.items() if 'kernel' in leaves}
