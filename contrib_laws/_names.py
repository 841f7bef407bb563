"""The names of laws and of their groups, as types, so that typos are errors."""

from collections.abc import Iterable
from typing import Literal, TypeAlias

from contrib_core import LawName


Group: TypeAlias = Literal["contract", "algebra", "wrapper"]
"""The subject of a law: every transform, the symmetries and estimates of a rule, or the
behaviour of a wrapper."""

ContractName: TypeAlias = Literal[
    "types",
    "constant_state",
    "transformations",
    "purity",
    "finiteness",
    "extras",
    "checkpoints",
    "sharding",
    "precision",
    "composition",
]
"""The name of a law of the contract, which every transform keeps."""

WrapperName: TypeAlias = Literal[
    "neutral",
    "average",
    "scaled_sum",
    "period_one",
    "radius_zero",
    "opaque",
    "monoid",
]
"""The name of a law of wrappers."""

Name: TypeAlias = Literal[ContractName, LawName, WrapperName]
"""The name of any law of this package."""

Selection: TypeAlias = Name | Group | Iterable[Name | Group]
"""Names of laws or of whole groups."""
