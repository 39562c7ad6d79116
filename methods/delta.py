"""DELTA: feature maps stay near those of the pretrained network (Li et al. 2019, arXiv:1901.09229)."""

import dataclasses

import jax.numpy as jnp

from errors import UserError
from methods.base import JOINT, LABELED, DataSpec, Inputs, Loss, Method, View


@dataclasses.dataclass(frozen=True)
class Delta(Method):
    """Section 3.2 with equal attention to all channels: half the squared distance of feature maps at each stage's end.

    The pretrained network runs as in evaluation, on the same augmented images. The distance is averaged over images
    and over a map's values, so that alpha does not depend on the resolution; the paper adds them up.
    """

    alpha: float = 1.0  # factor of the distance

    def views(self) -> dict[View, str]:
        return {LABELED: JOINT}

    def init_state(self, data: DataSpec) -> dict:
        return data.variables

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        source, _ = inputs.forward(state['params'], inputs.images[LABELED], state['batch_stats'])
        tuned = inputs.outputs[LABELED]
        maps = [name for name in tuned if tuned[name].ndim == 4]
        if not maps:
            raise UserError('delta needs feature maps, which data.cache_features does without.')
        loss = jnp.stack([jnp.square(tuned[name] - source[name]).mean() / 2 for name in maps]).sum()
        return Loss(self.alpha * loss, state, {'loss': loss})
