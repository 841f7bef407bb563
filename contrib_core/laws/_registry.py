"""All laws, by name."""

from ._algebra import ESTIMATES, SYMMETRIES
from ._composition_laws import C10
from ._finite_laws import C5, C9
from ._guess_law import initial_guess
from ._law import Law
from ._runs_laws import C3, C4, C7
from ._sharding_laws import C8
from ._types_laws import C1, C2, C6
from ._wrapper_laws import WRAPPERS


CONTRACT = (C1, C2, C3, C4, C5, C6, C7, C8, C9, C10)

ALGEBRA = (*SYMMETRIES, *ESTIMATES, initial_guess)

LAWS: dict[str, Law] = {law.name: law for law in (*CONTRACT, *ALGEBRA, *WRAPPERS)}
"""Every law by its name: the contract first."""
