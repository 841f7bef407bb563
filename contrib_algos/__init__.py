"""Optimisation rules, each built from the primitives of `contrib_core` alone."""

from ._adam import (
    Adam as Adam,
    adam as adam,
    AdamState as AdamState,
    adamw as adamw,
    RMS as RMS,
    RMSState as RMSState,
)
from ._dog import DoG as DoG, dog as dog, DoGState as DoGState
from ._lion import Lion as Lion, lion as lion, LionState as LionState
from ._normalize import Normalize as Normalize, normalize as normalize
from ._prodigy import (
    Prodigy as Prodigy,
    prodigy as prodigy,
    ProdigyState as ProdigyState,
)
from ._sgd import Momentum as Momentum, MomentumState as MomentumState, sgd as sgd
