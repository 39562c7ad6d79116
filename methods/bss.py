"""BSS, batch spectral shrinkage: penalises small singular values of the features (Chen et al. 2019, NeurIPS)."""

import dataclasses

import jax.numpy as jnp

from methods.base import JOINT, LABELED, Inputs, Loss, Method, View


@dataclasses.dataclass(frozen=True)
class BSS(Method):
    """Equation 6 of "Catastrophic Forgetting Meets Negative Transfer": eta times the k smallest sigma_i^2.

    k and eta are those of the authors' code (thuml/Batch-Spectral-Shrinkage, BSS.py) and of TLlib, as are the features
    that it takes: the ones that the classifier sees, a sum over the batch. Both train the backbone at a tenth of the
    classifier's rate, with a weight decay of 5e-4.

    sigma_i are the singular values of the batch's features F `[B, D]`. Their squares are the eigenvalues of the
    smaller one of F F^T and F^T F, whose gradient is finite where that of a decomposition of F is not.
    """

    eta: float = 1e-3  # factor of the penalty
    k: int = 1  # number of singular values

    def views(self) -> dict[View, str]:
        return {LABELED: JOINT}

    def loss(self, inputs: Inputs, state: tuple) -> Loss:
        features = inputs.outputs[LABELED]['features']
        wide = features.shape[0] <= features.shape[1]
        gram = features @ features.T if wide else features.T @ features
        smallest = jnp.linalg.eigvalsh(gram)[: self.k]
        return Loss(self.eta * smallest.sum(), state, {'loss': smallest.sum()})
