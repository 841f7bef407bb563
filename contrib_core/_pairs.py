"""Numbers in twice their precision: a sum, and what rounding took from it."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def sum(x: tuple[Array, Array], axis: int) -> tuple[Array, Array]:
    """The sum along an axis, right to two units in the last place."""
    zero = jnp.zeros((), x[0].dtype)
    # Of n entries the rests add up to n ulp at most, and what is rounded of them to the
    # square of that, which is an ulp for 2¹² of float32.
    few = x[0].shape[axis] <= 2**12
    return lax.reduce(x, (zero, zero), _add_roughly if few else add, (axis,))


def add(x: tuple[Any, Any], y: tuple[Any, Any]) -> tuple[Any, Any]:
    """`x + y`, of which the rest is less than the last place of the sum."""
    total, rest = _add_roughly(x, y)
    normalized = total + rest
    return normalized, rest - (normalized - total)


def _add_roughly(x: tuple[Any, Any], y: tuple[Any, Any]) -> tuple[Any, Any]:
    (a, b), (c, d) = x, y
    total = a + c
    # What rounding took, exactly: Knuth, The Art of Computer Programming 2, 4.2.2,
    # theorem B.
    added = total - a
    return total, (a - (total - added)) + (c - added) + (b + d)
