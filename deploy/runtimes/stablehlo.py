"""StableHLO by JAX."""

import sys

import jax
import numpy as np

model, images, logits = sys.argv[1:]
with open(model, 'rb') as file:
    call = jax.export.deserialize(bytearray(file.read())).call
images = np.load(images)
batches = [images[i : i + 32] for i in range(0, len(images), 32)]
np.save(logits, np.concatenate([np.asarray(call(batch)[0]) for batch in batches]))
