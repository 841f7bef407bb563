"""All laws by name."""

from ._law import Law
from .algebra import ALGEBRA
from .contract import CONTRACT
from .wrappers import WRAPPERS


LAWS: dict[str, Law] = {law.name: law for law in (*CONTRACT, *ALGEBRA, *WRAPPERS)}
"""Every law by its name, the contract first."""
