"""ONNX by onnxruntime."""

import sys

import numpy as np
import onnxruntime

model, images, logits = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
images = np.load(images)
batches = [images[i : i + 32] for i in range(0, len(images), 32)]
np.save(logits, np.concatenate([session.run(['logits'], {'images': batch})[0] for batch in batches]))
