"""The laws of wrappers: neutral wrappers, wrappers with their own points, wrappers
with an adversary, and chains."""

from .._law import Law
from ._adversary import (
    opaque as opaque,
    period_one as period_one,
    radius_zero as radius_zero,
)
from ._average import average as average
from ._monoid import monoid as monoid
from ._neutral import neutral as neutral
from ._scaled_sum import scaled_sum as scaled_sum


WRAPPERS: tuple[Law, ...] = (
    neutral,
    average,
    scaled_sum,
    period_one,
    radius_zero,
    opaque,
    monoid,
)
"""All laws of this package, in the order of reports."""
