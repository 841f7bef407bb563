"""Numbers in twice their precision, as pairs: a sum and its rounding error."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def sum(x: tuple[Array, Array], axis: int) -> tuple[Array, Array]:
    """The sum along an axis, with an error of at most two units in the last place."""
    zero = jnp.zeros((), x[0].dtype)
    # The rests of n entries add up to at most n ulp. The rounding errors of that sum
    # add up to at most (n ulp)², which is one ulp for 2¹² entries in float32.
    few = x[0].shape[axis] <= 2**12
    return lax.reduce(x, (zero, zero), _add_roughly if few else add, (axis,))


def add(x: tuple[Any, Any], y: tuple[Any, Any]) -> tuple[Any, Any]:
    """`x + y`, with a rest smaller than the last place of the sum."""
    total, rest = _add_roughly(x, y)
    normalized = total + rest
    return normalized, rest - (normalized - total)


def _add_roughly(x: tuple[Any, Any], y: tuple[Any, Any]) -> tuple[Any, Any]:
    (a, b), (c, d) = x, y
    total = a + c
    # The exact rounding error: Knuth, The Art of Computer Programming 2, 4.2.2,
    # theorem B.
    added = total - a
    return total, (a - (total - added)) + (c - added) + (b + d)
