"""Writes a function that JAX has exported as a SavedModel of TensorFlow.

jax2tf does the same, but with StableHLO of a version that TensorFlow may not know yet: what it writes with JAX 0.11.2,
TensorFlow 2.21 does not read.
"""

import pathlib

import jax
import tensorflow as tf
from jaxlib.mlir.dialects import stablehlo
from tensorflow.compiler.tf2xla.python import xla


def write(exported: jax.export.Exported, outputs: list[str], path: pathlib.Path) -> None:
    """Writes a SavedModel with the signature 'serving_default'.

    Args:
        exported: Maps images, uint8 `[N, H, W, C]`, to a tuple of arrays `[N, ...]`.
        outputs: Names of the arrays.
        path: The folder.
    """
    oldest = stablehlo.get_version_from_compatibility_requirement(stablehlo.StablehloCompatibilityRequirement.MAX)
    module = stablehlo.serialize_portable_artifact_str(exported.mlir_module(), oldest)

    def forward(images: tf.Tensor) -> dict[str, tf.Tensor]:
        values = xla.call_module(
            [images],
            version=exported.calling_convention_version,
            module=module,
            Tout=[value.dtype for value in exported.out_avals],
            Sout=[[None, *value.shape[1:]] for value in exported.out_avals],
            platforms=[platform.upper() for platform in exported.platforms],
        )
        return dict(zip(outputs, values, strict=True))

    (images,) = exported.in_avals
    given = tf.TensorSpec([None, *images.shape[1:]], images.dtype, name='images')
    model = tf.Module()
    model.forward = tf.function(forward, input_signature=[given], autograph=False)
    tf.saved_model.save(model, path, signatures=model.forward)
