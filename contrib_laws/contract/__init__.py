"""The contract: the laws that every transform keeps."""

from .._law import Law
from ._checkpoints import checkpoints as checkpoints
from ._composition import composition as composition
from ._constant_state import constant_state as constant_state
from ._extras import extras as extras
from ._finiteness import finiteness as finiteness
from ._precision import precision as precision
from ._purity import purity as purity
from ._sharding import provide_devices as provide_devices, sharding as sharding
from ._transformations import transformations as transformations
from ._types import types as types


CONTRACT: tuple[Law, ...] = (
    types,
    constant_state,
    transformations,
    purity,
    finiteness,
    extras,
    checkpoints,
    sharding,
    precision,
    composition,
)
"""All laws of the contract, in the order of reports."""
