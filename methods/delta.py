"""DELTA: feature maps stay near those of the pretrained network (Li et al. 2019, arXiv:1901.09229)."""

import dataclasses

import jax.numpy as jnp

from errors import UserError
from methods.base import JOINT, DataSpec, Inputs, Loss, Method


@dataclasses.dataclass(frozen=True)
class Delta(Method):
    """Section 3.2 with equal attention to all channels: half the squared distance of feature maps at each stage's end.

    The pretrained network runs as in evaluation, on the same augmented images. The distance is averaged over images
    and over a map's values, so that alpha does not depend on the resolution; the paper adds them up.
    """

    alpha: float = 1.0  # factor of the distance

    def views(self) -> dict[str, str]:
        return {'labeled.weak': JOINT}

    def init_state(self, data: DataSpec) -> dict:
        return data.variables

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        source, _ = inputs.forward(state['params'], inputs.images['labeled.weak'], state['batch_stats'])
        found = inputs.outputs['labeled.weak']
        maps = [name for name in found if found[name].ndim == 4]
        if not maps:
            raise UserError('delta needs feature maps, which data.cache_features does without.')
        loss = sum(jnp.square(found[name] - source[name]).mean() / 2 for name in maps)
        return Loss(self.alpha * loss, state, {'loss': loss})
