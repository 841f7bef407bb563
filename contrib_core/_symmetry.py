"""Laws that rules claim, in groups that many of them claim together."""

from typing import Any

from ._types import is_zero


ISOMETRIES = frozenset(
    {"translation", "rotation", "permutation", "partition", "complex"}
)
"""Of what knows nothing of coordinates but their geometry."""

ENTRYWISE = frozenset({"translation", "permutation", "partition"})
"""Of what does to each coordinate the same, and sees no other."""


def free_of(hyperparameter: Any, *laws: str) -> frozenset[str]:
    """Laws that hold if a hyperparameter is 0, which only a Python number is known to
    be: none if it is anything else."""
    return frozenset(laws if is_zero(hyperparameter) else ())
