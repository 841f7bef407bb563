"""The laws that rules declare: symmetries, and how estimates of a distance behave."""

from .._law import Law
from ._estimates import (
    bounded_growth as bounded_growth,
    ESTIMATES,
    monotone as monotone,
)
from ._initial_guess import initial_guess as initial_guess
from ._symmetries import (
    complex_pairs as complex_pairs,
    gradient_scale as gradient_scale,
    partition as partition,
    permutation as permutation,
    rotation as rotation,
    SYMMETRIES,
    translation as translation,
    units as units,
)


ALGEBRA: tuple[Law, ...] = (*SYMMETRIES, *ESTIMATES, initial_guess)
"""All laws of this package, in the order of reports."""
