"""TFLite by LiteRT, one image at a time."""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter

model, images, logits = sys.argv[1:]
run = Interpreter(model_path=model).get_signature_runner('serving_default')
np.save(logits, np.concatenate([run(images=image[None])['logits'] for image in np.load(images)]))
