"""The needs of a transform, and the laws that it claims."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from .ranges import is_zero


Need: TypeAlias = Literal["params", "value", "grad_fn", "key"]
"""An argument of `update`."""

Needs: TypeAlias = frozenset[Need]
"""The arguments that `update` cannot do without."""

PARAMS: Needs = frozenset(("params",))
"""The needs of a transform that sees the parameters."""

LawName: TypeAlias = Literal[
    "translation",
    "gradient_scale",
    "units",
    "rotation",
    "permutation",
    "partition",
    "complex",
    "monotone",
    "bounded_growth",
    "initial_guess",
    "neutral",
    "average",
]
"""A law that a transform may claim, beyond the contract that all keep."""

Laws: TypeAlias = frozenset[LawName]
"""The laws that a transform claims."""

Terms: TypeAlias = Mapping[str, Mapping[str, str]]
"""For the name of a law: a map from the terms of its formula to names of fields."""

ISOMETRIES: Laws = frozenset(
    ("translation", "rotation", "permutation", "partition", "complex")
)
"""The laws of a transform that sees only the geometry of the coordinates."""

ENTRYWISE: Laws = frozenset(("translation", "permutation", "partition"))
"""The laws of a transform that applies one function to each coordinate separately."""


ESTIMATE: Laws = frozenset(("monotone", "initial_guess"))
"""The laws of an estimate of the distance to the solution that only grows."""

BOUNDED_ESTIMATE: Laws = ESTIMATE | frozenset(("bounded_growth",))
"""The laws of such an estimate that at most doubles in one step."""


def claim(*laws: LawName) -> Laws:
    """These laws, as a set."""
    return frozenset(laws)


def laws_if_zero(hyperparameter: Any, *laws: LawName) -> Laws:
    """`laws` if `hyperparameter` is known to be 0, and otherwise none.

    Only a Python number can be known to be 0: an array may be traced.
    """
    return frozenset(laws if is_zero(hyperparameter) else ())
