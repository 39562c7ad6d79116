"""CDAN and CDAN+E (Long et al. 2018, arXiv:1705.10667): DANN with a discriminator that also gets the predictions."""

import dataclasses

import jax
import jax.numpy as jnp

from methods.base import JOINT, LABELED, WEAK, DataSpec, Inputs, Loss, Method, View
from methods.terms import adversarial_ramp, domain_loss, entropy, predictions, reverse_gradient, targets
from models.mlp import MLP


@dataclasses.dataclass(frozen=True)
class CDAN(Method):
    """Equations 2 to 9: the discriminator's input is the outer product of features and class probabilities.

    No gradient flows through the probabilities. With `randomized` > 0 the input is that many products of random
    projections instead (equation 6), which are drawn from the run's seed. This is meant for many classes, see
    configs/data_sets.py. (The paper uses them from 4,096 products on; in its code and in TLlib they are an option.)

    With `entropy` (CDAN+E) an example has the weight 1 + exp(-H(p)), scaled to a mean of one in each domain. The
    network gets a gradient through the weights, reversed like that of the features: equation 9, and the authors' code
    (thuml/CDAN, loss.py). TLlib has no gradient there, and scales the weights over both domains.
    """

    weight: float = 1.0
    gamma: float = 10.0  # how fast lambda rises
    entropy: bool = False  # entropy conditioning: CDAN+E
    randomized: int = 0  # number of random products; 0 for all products
    widths: tuple[int, ...] = (1024, 1024)  # hidden layers of the discriminator
    batch_norm: bool = True  # in the discriminator

    def views(self) -> dict[View, str]:
        return {LABELED: JOINT, WEAK: JOINT}

    def mlps(self) -> dict[str, MLP]:
        def inputs(features: int, num_classes: int) -> int:
            return self.randomized or features * num_classes

        return {'domain': MLP((*self.widths, 1), inputs, self.batch_norm)}

    def init_state(self, data: DataSpec) -> jax.Array:
        return jax.random.key_data(data.key)  # of the random projections

    def loss(self, inputs: Inputs, state: jax.Array) -> Loss:
        parts = inputs.outputs[LABELED], inputs.outputs[WEAK]
        features, logits = (jnp.concatenate([part[name] for part in parts]) for name in ('features', 'logits'))
        p = targets(logits)
        strength = adversarial_ramp(inputs.progress, self.gamma)
        if self.randomized:
            keys = jax.random.split(jax.random.wrap_key_data(state))
            f, g = (
                x @ jax.random.normal(key, (x.shape[-1], self.randomized))
                for key, x in zip(keys, (features, p), strict=True)
            )
            joint = f * g / self.randomized**0.5
        else:
            joint = (features[:, :, None] * p[:, None, :]).reshape(len(p), -1)
        domain = inputs.mlp(inputs.params, 'domain', reverse_gradient(joint, strength))[:, 0]
        n = len(inputs.labels)
        weights = [jnp.float32(1)] * 2
        if self.entropy:
            certainty = 1 + jnp.exp(-entropy(jax.nn.softmax(reverse_gradient(logits, strength))))
            weights = [part / jax.lax.stop_gradient(part.mean()) for part in (certainty[:n], certainty[n:])]
        loss, metrics = domain_loss(domain[:n], domain[n:], weights)
        metrics = {'loss': loss, 'lambda': strength, **metrics}
        return Loss(self.weight * loss, state, metrics, predictions(parts[1]['logits']))
