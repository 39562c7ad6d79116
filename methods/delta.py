"""DELTA: feature maps stay near those of the pretrained network (Li et al. 2019, arXiv:1901.09229)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from errors import UserError
from methods.base import JOINT, LABELED, DataSpec, Inputs, Loss, Method, Start, View
from methods.terms import cross_entropy, uniform

_BATCH = 32  # images in a batch, for the attention
_MEASURED = 4  # number of batches on which the loss without a filter is measured
_EPOCHS = 10  # of training the classifier that the attention is measured with
_TINY = 1e-30  # avoids a division by zero where no filter changes the loss
_AT_ONCE = 8  # filters measured together; the layers below are computed once for all of them


@dataclasses.dataclass(frozen=True)
class Delta(Method):
    """Sections 3.2 and 3.3 and the authors' code (lixingjian/DELTA, train.py and channel_eval.py).

    The loss is alpha / 2 sum_j C_j sum_c W_jc ||FM_jc - FM0_jc||^2 / (h w) + beta / 2 ||w_head||^2, summed over the
    images of the batch; the default of alpha is the authors' for batches of 64. FM_j `[C_j, h, w]` is the output of the
    last convolution of stage j, before its norm. FM0_j is that of the pretrained network, run as in evaluation on the
    same augmented images.

    The attention is W_j = softmax(z / 5). z are the standardised increases of the loss when one filter at a time is set
    to zero, in the pretrained network with a classifier trained on its features. The classifier's ten epochs and the
    number of measured images are the authors'. Unlike theirs, the images are not augmented and the running statistics
    stay those of the pretrained network.

    Without attention the squared differences of a map are summed without division by h w (the authors' and TLlib's
    'fea_map'). The paper's DELTA, and TLlib's default, is the one with attention; TLlib measures
    ten batches, after training the backbone with the classifier. Neither code has a weight decay beside beta.
    """

    alpha: float = 0.01  # factor of the distance
    beta: float = 0.01  # factor of the L2 penalty of the classifier and other heads
    attention: bool = True  # weight channels by the increase of the loss without them

    def views(self) -> dict[View, str]:
        return {LABELED: JOINT}

    def init_state(self, data: DataSpec) -> dict:
        params, batch_stats = data.variables['params'], data.variables['batch_stats']
        below = {layer: leaves for layer, leaves in params.items() if layer not in data.heads}
        kernels = {layer: leaves['kernel'] for layer, leaves in below.items() if 'kernel' in leaves}
        attention = {layer: uniform(kernel.shape[-1]) for layer, kernel in kernels.items() if kernel.ndim == 4}
        return {'params': below, 'batch_stats': batch_stats, 'attention': attention}

    def prepare(self, state: dict, start: Start) -> dict:
        if not self.attention:
            return state
        measured = jax.jit(functools.partial(_attention, start.forward, tuple(state['attention'])))(
            start.params, start.batch_stats, start.images, start.labels, start.key
        )
        return state | {'attention': state['attention'] | measured}

    def loss(self, inputs: Inputs, state: dict) -> Loss:
        params = inputs.params | state['params']  # no map depends on the heads
        source, _ = inputs.forward(params, inputs.images[LABELED], state['batch_stats'])
        tuned, attention = inputs.outputs[LABELED], state['attention']
        maps = [layer for layer in attention if layer in tuned]
        if not maps:
            raise UserError('delta needs feature maps, which data.cache_features does without.')

        def half_distance(layer: str) -> jax.Array:
            _, height, width, channels = tuned[layer].shape
            weights = channels * attention[layer] / (height * width) if self.attention else 1
            return (weights * jnp.square(tuned[layer] - source[layer])).sum() / 2

        distance = jnp.stack([half_distance(layer) for layer in maps]).sum()
        heads = {layer: leaves for layer, leaves in inputs.params.items() if layer not in state['params']}
        towards_zero = optax.tree.norm(heads, squared=True) / 2
        return Loss(self.alpha * distance + self.beta * towards_zero, state, {'loss': distance, 'head': towards_zero})


def _attention(forward, layers, params, batch_stats, images, labels, key) -> dict[str, jax.Array]:
    """Returns the attention `[C]` of every layer whose feature map is among the network's outputs."""
    batches = -(-len(images) // _BATCH)
    size = len(images) // batches
    order = jax.random.permutation(key, len(images))[: batches * size].reshape(batches, size)
    images, labels = images[order], labels[order]

    def outputs(batch):
        return forward(params, batch, batch_stats)

    features = jax.lax.map(lambda batch: outputs(batch)['features'], images)
    params = params | {'head': _classifier(params['head'], features, labels, key)}
    images, labels = images[:_MEASURED], labels[:_MEASURED]

    def loss(layer, kernel):
        changed = params | {layer: params[layer] | {'kernel': kernel}}

        def of_batch(images, labels):
            return cross_entropy(labels, forward(changed, images, batch_stats)['logits']).mean()

        return jax.lax.map(lambda batch: of_batch(*batch), (images, labels)).mean()

    def without(layer, channel):
        kernel = params[layer]['kernel']
        return loss(layer, kernel.at[..., channel].set(0)) - loss(layer, kernel)

    weights = {}
    found = jax.eval_shape(outputs, images[0])
    for layer in [layer for layer in layers if layer in found]:
        channels = jnp.arange(params[layer]['kernel'].shape[-1])
        increase = jax.lax.map(functools.partial(without, layer), channels, batch_size=_AT_ONCE)
        weights[layer] = jax.nn.softmax((increase - increase.mean()) / jnp.maximum(increase.std(), _TINY) / 5)
    return weights


def _classifier(head, features, labels, key):
    """Returns the classifier after training on features `[batches, size, D]` of images of classes `[batches, size]`."""
    batches, size = labels.shape
    features, labels = features.reshape(batches * size, -1), labels.reshape(-1)
    rate = optax.exponential_decay(0.01, batches, 0.1 ** (1 / 6), staircase=True)
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, momentum=0.9))

    def loss(head, chosen):
        return cross_entropy(labels[chosen], features[chosen] @ head['kernel'] + head['bias']).mean()

    def step(carry, chosen):
        head, state = carry
        updates, state = optimizer.update(jax.grad(loss)(head, chosen), state, head)
        return (optax.apply_updates(head, updates), state), None

    keys = jax.random.split(key, _EPOCHS)
    order = jax.vmap(lambda key: jax.random.permutation(key, batches * size))(keys).reshape(-1, size)
    return jax.lax.scan(step, (head, optimizer.init(head)), order)[0][0]
