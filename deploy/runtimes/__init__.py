"""Programs that run an exported model as its user would: without this project, each in a process of its own.

Each reads the model and an array of images, uint8 `[N, H, W, C]`, and writes their logits: PROGRAM MODEL IMAGES LOGITS.
"""
