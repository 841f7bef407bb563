"""All laws, by name."""

from ._algebra import ESTIMATES, SYMMETRIES
from ._composition_law import C10
from ._finite_law import C5
from ._guess_law import initial_guess
from ._iterate_laws import average, mechanic
from ._law import Law
from ._precision_law import C9
from ._resume_law import C7
from ._runs_laws import C3, C4
from ._sam_laws import sam_modes, sam_period, sam_radius
from ._sharding_law import C8
from ._types_laws import C1, C2, C6
from ._wrapper_laws import monoid, neutral


CONTRACT = (C1, C2, C3, C4, C5, C6, C7, C8, C9, C10)

ALGEBRA = (*SYMMETRIES, *ESTIMATES, initial_guess)

WRAPPERS = (neutral, average, mechanic, sam_period, sam_radius, sam_modes, monoid)

LAWS: dict[str, Law] = {law.name: law for law in (*CONTRACT, *ALGEBRA, *WRAPPERS)}
"""Every law by its name: the contract first."""
