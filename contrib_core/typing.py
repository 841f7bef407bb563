"""The vocabulary of every signature: trees, scalars, counts and schedules."""

from collections.abc import Callable
from typing import Any, TYPE_CHECKING, TypeAlias, TypeVar

from jaxtyping import Array, Bool, Float, Inexact, Int32, PyTree, Real, UInt32


S = TypeVar("S")
"""State of a transform."""

T = TypeVar("T")
"""A tree that the user passes, such as an equinox model."""

if TYPE_CHECKING:
    # Type checkers do not know the trees of jaxtyping, and strict ones complain.
    _AnyTree: TypeAlias = Any
    _Vector: TypeAlias = Any
else:
    _AnyTree, _Vector = PyTree[Any], PyTree[Inexact[Array, "..."]]

AnyTree: TypeAlias = _AnyTree
"""Any pytree, such as an equinox model or a batch."""

Tree: TypeAlias = _Vector
"""A vector: any pytree of real or complex floating-point arrays."""

Mask: TypeAlias = AnyTree | Callable[[Tree], Any]
"""A selection of leaves: a tree of bools that is a prefix of the parameters, or a plain
function from parameters to such a tree."""


# Roles of a state's fields

P: TypeAlias = _Vector
"""A tree shaped like the parameters."""

Scalar: TypeAlias = Float[Array, ""]
"""A real number in the accumulator dtype."""

Scalars: TypeAlias = Float[Array, " n"]
"""Several real numbers in the accumulator dtype."""

Count: TypeAlias = Int32[Array, ""]
"""A step counter."""

Flag: TypeAlias = Bool[Array, ""]
"""A truth value."""

KeyData: TypeAlias = UInt32[Array, " words"]
"""A random key, as plain data that any file can hold."""


# Hyperparameters

RealLike: TypeAlias = float | int | Real[Array, ""]
"""A real number: a Python number is static, a 0-d array is dynamic."""

Schedule: TypeAlias = Callable[[Any], Any]
"""A real number as a function of the step count, which is a `Count`."""

RealOrSchedule: TypeAlias = RealLike | Schedule
"""A real number that may change over time."""
