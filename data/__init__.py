"""Data sets as arrays, label splits, the batch sampler; data/augment runs inside the compiled step."""
