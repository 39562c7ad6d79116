"""SavedModel by TensorFlow."""

import sys

import numpy as np
import tensorflow as tf

model, images, logits = sys.argv[1:]
call = tf.saved_model.load(model).signatures['serving_default']
images = np.load(images)
batches = [images[i : i + 32] for i in range(0, len(images), 32)]
np.save(logits, np.concatenate([call(images=tf.constant(batch))['logits'].numpy() for batch in batches]))
