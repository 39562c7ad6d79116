"""Writes a function of JAX as a TFLite model, without TensorFlow, and quantises it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

SIGNATURE = 'serving_default'


def write(function: Callable[[jax.Array], tuple[jax.Array, ...]], shape: tuple[int, ...], outputs: list[str]) -> bytes:
    """Returns a TFLite model of a function.

    Args:
        function: Maps images, uint8 `[1, *shape]`, to a tuple of arrays.
        shape: `(H, W, C)`.
        outputs: Names of the arrays.
    """
    # The package has no public Python API; its version is pinned in requirements-deploy.txt.
    from litert_converter import converter_api_ext as converter
    from litert_converter.mlir import ir, passmanager

    text = jax.jit(function).lower(jax.ShapeDtypeStruct((1, *shape), np.uint8)).as_text()
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context, ir.Location.unknown():
        module = ir.Module.parse(text)
        converter.set_signature(module.operation, SIGNATURE, ['images'], outputs)
        converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), converter.ConvertToTFLConfig())
        return converter.export_flatbuffer_to_bytes(module.operation)


def float16(model: bytes, images: np.ndarray) -> bytes:
    """Returns the model with its weights in float16."""
    from ai_edge_quantizer import qtyping, quantizer

    casting = quantizer.Quantizer(model)
    casting.update_quantization_recipe(
        regex='.*',
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
        ),
        algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING,
    )
    return bytes(casting.quantize().quantized_model)


def dynamic(model: bytes, images: np.ndarray) -> bytes:
    """Returns the model with its weights in int8; what they are multiplied with is quantised when it runs."""
    from ai_edge_quantizer import quantizer, recipe

    # Without small layers, unlike the package's other recipe, which loses more.
    return bytes(quantizer.Quantizer(model, recipe.dynamic_legacy_wi8_afp32()).quantize().quantized_model)


def static(model: bytes, images: np.ndarray) -> bytes:
    """Returns the model with weights and activations in int8.

    Args:
        model: The float model.
        images: Some that it may meet, uint8 `[N, H, W, C]`: ranges are those that they give.
    """
    from ai_edge_quantizer import quantizer, recipe

    quantised = quantizer.Quantizer(model, recipe.static_wi8_ai8())
    merged: dict[str, dict[str, Any]] = {}
    for image in images:  # its own merging, a moving average, cuts off what only some images reach
        for name, values in quantised.calibrate({SIGNATURE: [{'images': image[None]}]}).items():
            kept = merged.setdefault(name, dict(values))
            for key, merge in (('min', np.minimum), ('max', np.maximum)):
                if key in values:
                    kept[key] = merge(kept[key], values[key])
    return bytes(quantised.quantize(merged).quantized_model)
