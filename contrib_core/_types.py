"""The vocabulary of every signature: trees, scalars, counts and schedules."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int32, PyTree, Real, UInt32


P = TypeVar("P")
"""Role of a state's field: a tree shaped like the parameters."""

S = TypeVar("S")
"""State of a transform."""

Tree: TypeAlias = PyTree[Inexact[Array, "..."]]
"""A vector: any pytree of real or complex floating-point arrays."""

Scalar: TypeAlias = Float[Array, ""]
"""Role of a state's field: a real number in the accumulator dtype."""

Scalars: TypeAlias = Float[Array, " n"]
"""Role of a state's field: several real numbers in the accumulator dtype."""

Count: TypeAlias = Int32[Array, ""]
"""Role of a state's field: a step counter."""

KeyData: TypeAlias = UInt32[Array, " words"]
"""Role of a state's field: a random key, as plain data that any file can hold."""

Flag: TypeAlias = Bool[Array, ""]
"""Role of a state's field: something that is true or false."""

RealLike: TypeAlias = float | int | Real[Array, ""]
"""A hyperparameter: a Python number is static, a 0-d array is dynamic."""

Schedule: TypeAlias = Callable[[Any], Any]
"""A hyperparameter as a function of the step count: of a `Count`, a real number."""

RealOrSchedule: TypeAlias = RealLike | Schedule
"""A hyperparameter that may change over time."""


def is_zero(x: Any) -> bool:
    """Whether a hyperparameter is known to be 0, as only a Python number is: then what
    it multiplies can be left out."""
    return isinstance(x, int | float) and x == 0


def times(hyperparameter: RealLike, x: RealLike) -> RealLike:
    """`hyperparameter * x`, and 0 where the former is 0, whatever `x` is; a Python 0
    where that is known."""
    if is_zero(hyperparameter):
        return 0
    return jnp.where(jnp.equal(hyperparameter, 0), 0, hyperparameter * x)
