"""Normal numbers whose tails do not end where those of float32 do."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key


def normal_like(x: Array, keys: Key[Array, "2 4"]) -> Array:
    """In the shape and dtype of `x`; complex ones have variance 1 in both parts."""
    if jnp.iscomplexobj(x):
        return lax.complex(*(_sum_of_four(x.real, part) for part in keys))
    return _sum_of_four(x, keys[0])


def _sum_of_four(x: Array, keys: Key[Array, "4"]) -> Array:
    def add(total: Array, key: Array) -> tuple[Array, None]:
        return total + jax.random.normal(key, x.shape, x.dtype), None

    # One at a time, for memory's sake.
    total, _ = lax.scan(add, jnp.zeros_like(x), keys)
    return total / 2
