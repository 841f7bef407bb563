"""Optimisation rules, each built from the primitives of `contrib_core` alone."""

from ._adam import (
    Adam as Adam,
    adam as adam,
    AdamState as AdamState,
    adamw as adamw,
)
from ._cocob import COCOB as COCOB, cocob as cocob, COCOBState as COCOBState
from ._dadapt_adamw import (
    dadapt_adamw as dadapt_adamw,
    DAdaptAdamW as DAdaptAdamW,
    DAdaptAdamWState as DAdaptAdamWState,
)
from ._dog import DoG as DoG, dog as dog, DoGState as DoGState
from ._dowg import DoWG as DoWG, dowg as dowg, DoWGState as DoWGState
from ._lion import Lion as Lion, lion as lion, LionState as LionState
from ._momo import Momo as Momo, momo as momo, MomoState as MomoState
from ._momo_adam import (
    momo_adam as momo_adam,
    MomoAdam as MomoAdam,
    MomoAdamState as MomoAdamState,
)
from ._normalize import Normalize as Normalize, normalize as normalize
from ._prodigy import (
    Prodigy as Prodigy,
    prodigy as prodigy,
    ProdigyState as ProdigyState,
)
from ._rms import RMS as RMS, RMSState as RMSState
from ._sgd import Momentum as Momentum, MomentumState as MomentumState, sgd as sgd
from ._warmup import LinearWarmup as LinearWarmup
from .privacy import (
    calibrate_noise as calibrate_noise,
    ClippedGrad as ClippedGrad,
    ClippedSum as ClippedSum,
    differentially_private_aggregate as differentially_private_aggregate,
    DifferentiallyPrivateAggregateState as DifferentiallyPrivateAggregateState,
    DPAggregate as DPAggregate,
    dpsgd as dpsgd,
    epsilon as epsilon,
    GaussianNoise as GaussianNoise,
    value_and_clipped_grad as value_and_clipped_grad,
)
