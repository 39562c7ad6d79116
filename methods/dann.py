"""DANN (Ganin et al. 2016, JMLR 17, arXiv:1505.07818): features from which a discriminator cannot tell the domain."""

import dataclasses

import jax.numpy as jnp

from methods.base import JOINT, LABELED, WEAK, Inputs, Loss, Method, View
from methods.terms import adversarial_ramp, domain_loss, predictions, reverse_gradient
from models.mlp import MLP


@dataclasses.dataclass(frozen=True)
class DANN(Method):
    """Equation 9: a discriminator learns to tell source from target features; the gradient it sends back is reversed.

    lambda rises with progress and multiplies the reversed gradient alone, as in the paper's experiments, so that the
    discriminator learns at full speed from the start. The loss is half the sum of the means over each domain (TLlib);
    the paper has the sum: weight 2. The discriminator is TLlib's, two hidden layers of 1024 with batch norm; the
    paper's have no batch norm, one hidden layer of 100 for MNIST and two of 1024 for SVHN. `model.batch_norm` sets
    which statistics the network normalises each domain with, `model.bottleneck_width` a layer between backbone and
    classifier.
    """

    weight: float = 1.0
    gamma: float = 10.0  # how fast lambda rises; 0 keeps it at 0: the discriminator learns, the features do not
    widths: tuple[int, ...] = (1024, 1024)  # hidden layers of the discriminator
    batch_norm: bool = True  # in the discriminator

    def views(self) -> dict[View, str]:
        return {LABELED: JOINT, WEAK: JOINT}

    def mlps(self) -> dict[str, MLP]:
        return {'domain': MLP((*self.widths, 1), batch_norm=self.batch_norm)}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        source, target = inputs.outputs[LABELED], inputs.outputs[WEAK]
        strength = adversarial_ramp(inputs.progress, self.gamma)
        features = reverse_gradient(jnp.concatenate([source['features'], target['features']]), strength)
        logits = inputs.mlp(inputs.params, 'domain', features)[:, 0]
        n = len(source['features'])
        loss, metrics = domain_loss(logits[:n], logits[n:])
        metrics = {'loss': loss, 'lambda': strength, **metrics}
        return Loss(self.weight * loss, state, metrics, predictions(target['logits']))
