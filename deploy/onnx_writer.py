"""Writes a function of JAX as an ONNX model.

The function is traced with a symbolic number of images. What does not depend on the images is computed now, so that
parameters become constants, batch norm among them. Of the rest, each primitive becomes one or a few ONNX nodes.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax.extend.core import Literal
from onnx import TensorProto, helper, numpy_helper

from errors import UserError

OPSET = 18
BATCH = 'N'
ELEMENTWISE = {
    **{'add': 'Add', 'add_any': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'div': 'Div', 'max': 'Max', 'min': 'Min'},
    **{'exp': 'Exp', 'log': 'Log', 'neg': 'Neg', 'abs': 'Abs', 'sqrt': 'Sqrt', 'tanh': 'Tanh', 'logistic': 'Sigmoid'},
    **{'gt': 'Greater', 'ge': 'GreaterOrEqual', 'lt': 'Less', 'le': 'LessOrEqual', 'eq': 'Equal'},
    **{'and': 'And', 'or': 'Or', 'not': 'Not', 'erf': 'Erf', 'floor': 'Floor', 'sign': 'Sign', 'pow': 'Pow'},
}
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


class Tensor(NamedTuple):
    """A value that depends on the images.

    Attributes:
        name: Of the output of a node.
        shape: With -1 for a dimension that depends on the number of images. A dimension of 1 may stand for a larger
            one, as ONNX broadcasts like NumPy.
    """

    name: str
    shape: tuple[int, ...]


def write(
    function: Callable[[jax.Array], tuple[jax.Array, ...]], shape: tuple[int, ...], outputs: Sequence[str]
) -> bytes:
    """Returns an ONNX model of a function.

    Args:
        function: Maps images, uint8 `[N, *shape]`, to a tuple of arrays.
        shape: `(H, W, C)`.
        outputs: Names of the arrays.

    Raises:
        UserError: The function has a primitive for which nothing is written here.
    """
    (batch,) = jax.export.symbolic_shape(BATCH)
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *shape), np.uint8))
    graph = _Graph()
    results = graph.run(closed.jaxpr, closed.consts, [Tensor('images', (-1, *shape))])
    for name, result in zip(outputs, results, strict=True):
        graph.nodes.append(helper.make_node('Identity', [graph.name(result)], [name]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            'model',
            [helper.make_tensor_value_info('images', TensorProto.UINT8, [BATCH, *shape])],
            [
                helper.make_tensor_value_info(
                    name, TensorProto.FLOAT, [BATCH, *(int(n) for n in variable.aval.shape[1:])]
                )
                for name, variable in zip(outputs, closed.jaxpr.outvars, strict=True)
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid('', OPSET)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Graph:
    """The nodes and constants of a model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names: dict[tuple, str] = {}

    def run(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Returns the outputs of a jaxpr, arrays of NumPy where they do not depend on the images."""
        values = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
        values |= dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Any:
            return np.asarray(atom.val) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            values |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        inner = next((params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in params), None)
        if inner is not None and name not in ('scan', 'while', 'cond'):
            # A function that was compiled or differentiated by itself.
            closed = hasattr(inner, 'consts')
            return self.run(inner.jaxpr if closed else inner, inner.consts if closed else (), inputs)
        shape = tuple(n if isinstance(n, int) else -1 for n in equation.outvars[0].aval.shape)
        if name == 'broadcast_in_dim':
            return [self._broadcast(inputs[0], shape, params['broadcast_dimensions'])]
        if not any(isinstance(value, Tensor) for value in inputs):
            if name in ELEMENTWISE:
                inputs = list(np.broadcast_arrays(*inputs))
            results = equation.primitive.bind(*inputs, **params)
            return [np.asarray(result) for result in (results if equation.primitive.multiple_results else [results])]
        if name in ELEMENTWISE:
            return [self.node(ELEMENTWISE[name], inputs, _broadcast_shape(inputs))]
        if (handler := getattr(self, f'_{name}', None)) is None:
            raise UserError(f"No ONNX is written for JAX's primitive '{name}'. Export to another format.")
        return [handler(inputs, params, shape)]

    def node(self, kind: str, inputs: Sequence[Any], shape: tuple[int, ...], **attributes: Any) -> Tensor:
        """Adds a node and returns its output."""
        result = Tensor(f'{kind}_{len(self.nodes)}', shape)
        self.nodes.append(helper.make_node(kind, [self.name(value) for value in inputs], [result.name], **attributes))
        return result

    def name(self, value: Any) -> str:
        """Returns the name of a value; a constant is added to the model."""
        if isinstance(value, Tensor):
            return value.name
        value = np.asarray(value)
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._names:
            self._names[key] = f'constant_{len(self._names)}'
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), self._names[key]))
        return self._names[key]

    def _broadcast(self, value: Any, shape: tuple[int, ...], dimensions: tuple[int, ...]) -> Any:
        sizes = dict(zip(dimensions, value.shape, strict=True))
        aligned = tuple(sizes.get(i, 1) for i in range(len(shape)))
        if isinstance(value, Tensor):
            return self._reshape_to(value, aligned)
        value = value.reshape(aligned)
        return value if -1 in shape else np.broadcast_to(value, shape)  # with images it is broadcast by the node

    def _reshape_to(self, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        if value.shape == shape:
            return value
        if shape.count(-1) > 1:
            raise UserError('An ONNX model cannot have two dimensions that depend on the number of images.')
        return self.node('Reshape', [value, np.array(shape, np.int64)], shape)

    def _transposed(self, value: Any, order: tuple[int, ...]) -> Any:
        if isinstance(value, np.ndarray):
            return value.transpose(order)
        return self.node('Transpose', [value], tuple(value.shape[i] for i in order), perm=order)

    # --- Primitives

    def _reshape(self, inputs, params, shape):
        return self._reshape_to(inputs[0], shape)

    _squeeze = _expand_dims = _reshape

    def _transpose(self, inputs, params, shape):
        return self._transposed(inputs[0], params['permutation'])

    def _convert_element_type(self, inputs, params, shape):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(params['new_dtype']))
        return self.node('Cast', inputs, inputs[0].shape, to=kind)

    def _stop_gradient(self, inputs, params, shape):
        return inputs[0]

    _copy = _copy_p = _optimization_barrier = _stop_gradient

    def _round(self, inputs, params, shape):  # half to even in both
        return self.node('Round', inputs, shape)

    def _rsqrt(self, inputs, params, shape):
        return self.node('Reciprocal', [self.node('Sqrt', inputs, inputs[0].shape)], inputs[0].shape)

    def _square(self, inputs, params, shape):
        return self.node('Mul', [inputs[0], inputs[0]], inputs[0].shape)

    def _integer_pow(self, inputs, params, shape):
        return self.node('Pow', [inputs[0], np.float32(params['y'])], inputs[0].shape)

    def _ne(self, inputs, params, shape):
        shape = _broadcast_shape(inputs)
        return self.node('Not', [self.node('Equal', inputs, shape)], shape)

    def _select_n(self, inputs, params, shape):
        which, if_false, if_true = inputs
        return self.node('Where', [which, if_true, if_false], _broadcast_shape(inputs))

    def _clamp(self, inputs, params, shape):
        low, value, high = inputs
        return self.node('Clip', [value, low, high], value.shape)

    def _reduce_sum(self, inputs, params, shape):
        return self.node('ReduceSum', [inputs[0], np.array(params['axes'], np.int64)], shape, keepdims=0)

    def _reduce_max(self, inputs, params, shape):
        return self.node('ReduceMax', [inputs[0], np.array(params['axes'], np.int64)], shape, keepdims=0)

    def _dot_general(self, inputs, params, shape):
        (contracted, with_), (batched, of) = params['dimension_numbers']
        letters = iter(string.ascii_lowercase)
        left = [next(letters) for _ in inputs[0].shape]
        right = [next(letters) for _ in inputs[1].shape]
        for i, j in zip((*contracted, *batched), (*with_, *of), strict=True):
            right[j] = left[i]
        result = [left[i] for i in batched]
        result += [letter for i, letter in enumerate(left) if i not in (*contracted, *batched)]
        result += [letter for j, letter in enumerate(right) if j not in (*with_, *of)]
        equation = f'{"".join(left)},{"".join(right)}->{"".join(result)}'
        if equation == 'ab,bd->ad':
            return self.node('MatMul', inputs, shape)
        return self.node('Einsum', inputs, shape, equation=equation)

    def _conv_general_dilated(self, inputs, params, shape):
        if set(params['lhs_dilation']) != {1} or params['batch_group_count'] != 1:
            raise UserError('No ONNX is written for transposed or grouped-batch convolutions.')
        numbers = params['dimension_numbers']
        images = self._transposed(inputs[0], numbers.lhs_spec)
        kernel = self._transposed(inputs[1], numbers.rhs_spec)
        result = self.node(
            'Conv',
            [images, kernel],
            tuple(shape[i] for i in numbers.out_spec),
            strides=params['window_strides'],
            pads=_pads(params['padding']),
            dilations=params['rhs_dilation'],
            group=params['feature_group_count'],
        )
        return self._transposed(result, tuple(numbers.out_spec.index(i) for i in range(4)))

    def _reduce_window_max(self, inputs, params, shape):
        if {*params['base_dilation'], *params['window_dilation'], params['window_dimensions'][3]} != {1}:
            raise UserError('No ONNX is written for dilated pooling or pooling over channels.')
        images = self._transposed(inputs[0], TO_CHANNELS_FIRST)
        result = self.node(
            'MaxPool',
            [images],
            tuple(shape[i] for i in TO_CHANNELS_FIRST),
            kernel_shape=params['window_dimensions'][1:3],
            strides=params['window_strides'][1:3],
            pads=_pads(params['padding'][1:3]),
        )
        return self._transposed(result, TO_CHANNELS_LAST)

    def _pad(self, inputs, params, shape):
        low, high, interior = zip(*params['padding_config'], strict=True)
        if any(interior) or min(*low, *high) < 0:
            raise UserError('No ONNX is written for padding within an array or of less than nothing.')
        return self.node('Pad', [inputs[0], np.array([*low, *high], np.int64), inputs[1]], shape)

    def _concatenate(self, inputs, params, shape):
        return self.node('Concat', inputs, shape, axis=params['dimension'])

    def _slice(self, inputs, params, shape):
        axes = [i for i, n in enumerate(inputs[0].shape) if n != -1]
        start, limit = ([params[key][i] for i in axes] for key in ('start_indices', 'limit_indices'))
        strides = [(params['strides'] or [1] * len(inputs[0].shape))[i] for i in axes]
        return self.node('Slice', [inputs[0], *(np.array(v, np.int64) for v in (start, limit, axes, strides))], shape)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    return [before for before, _ in padding] + [after for _, after in padding]


def _broadcast_shape(inputs: Sequence[Any]) -> tuple[int, ...]:
    rank = max(len(value.shape) for value in inputs)
    aligned = [(1,) * (rank - len(value.shape)) + tuple(value.shape) for value in inputs]
    return tuple(-1 if -1 in sizes else max(sizes) for sizes in zip(*aligned, strict=True))
