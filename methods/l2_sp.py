"""L2-SP: weight decay towards the pretrained parameters (Li et al. 2018, arXiv:1802.01483)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from methods.base import DataSpec, Inputs, Loss, Method, View


@dataclasses.dataclass(frozen=True)
class L2SP(Method):
    """Equation 3: alpha / 2 ||w - w_0||^2 for the backbone and beta / 2 ||w||^2 for the heads.

    w are all parameters, those of norms included. Use it instead of `optimizer.weight_decay`, which decays to zero.
    """

    alpha: float = 0.01  # factor of the decay to the initial parameters
    beta: float = 0.01  # factor of the decay of the classifier and other heads to zero

    def views(self) -> dict[View, str]:
        return {}

    def init_state(self, data: DataSpec) -> dict:
        return {layer: leaves for layer, leaves in data.variables['params'].items() if layer not in data.heads}

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        moved = jax.tree.map(lambda w, start: w - start, {layer: inputs.params[layer] for layer in state}, state)
        heads = {layer: leaves for layer, leaves in inputs.params.items() if layer not in state}
        towards_start, towards_zero = (optax.tree.norm(tree, squared=True) / 2 for tree in (moved, heads))
        loss = self.alpha * towards_start + self.beta * towards_zero
        return Loss(loss, state, {'loss': loss, 'from_start': jnp.sqrt(2 * towards_start)})
