"""In what precision networks multiply. Parameters, activations, moments, statistics and losses are float32 in any."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

# {name: (type of the factors of convolutions and products with parameters, JAX's precision of float32 factors)}
PRECISIONS = {
    'float32': (None, 'float32'),
    'tensorfloat32': (None, 'tensorfloat32'),  # a GPU rounds the factors to 10 bits, a CPU does not
    'bfloat16': (jnp.bfloat16, 'float32'),
}
# Each thread has its own: the loop traces in two.
_used = contextvars.ContextVar('precision', default='float32')


@contextlib.contextmanager
def used(name: str) -> Iterator[None]:
    """Traces what is inside in one of PRECISIONS."""
    before = _used.set(name)
    try:
        with jax.default_matmul_precision(PRECISIONS[name][1]):
            yield
    finally:
        _used.reset(before)


def factors(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both in the type in which they are multiplied. The product is for the caller to bring to float32."""
    kind, _ = PRECISIONS[_used.get()]
    return (x, kernel) if kind is None else (x.astype(kind), kernel.astype(kind))


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the product of activations `[N, C_in]` and a kernel `[C_in, C]`, in the type of the activations."""
    a, b = factors(x, kernel)
    return (a @ b).astype(x.dtype)
