"""Wrappers: transforms that contain other transforms."""

from ._average import (
    Average as Average,
    average as average,
    AverageState as AverageState,
    Exponential as Exponential,
    exponential as exponential,
    polynomial_decay as polynomial_decay,
    PolynomialDecay as PolynomialDecay,
    uniform as uniform,
)
from ._bucketed import (
    Bucketed as Bucketed,
    bucketed as bucketed,
    BucketedState as BucketedState,
)
from ._layerwise import (
    Layerwise as Layerwise,
    layerwise as layerwise,
    LayerwiseState as LayerwiseState,
    LeafState as LeafState,
)
from ._master_weights import (
    master_weights as master_weights,
    MasterWeights as MasterWeights,
    MasterWeightsState as MasterWeightsState,
)
from ._mechanize import (
    MechanicState as MechanicState,
    Mechanize as Mechanize,
    mechanize as mechanize,
)
from ._recipes import (
    schedule_free_adamw as schedule_free_adamw,
    schedule_free_sgd as schedule_free_sgd,
)
from ._sam import SAM as SAM, sam as sam, SAMState as SAMState
from ._schedule_free import (
    schedule_free as schedule_free,
    schedule_free_eval_params as schedule_free_eval_params,
    ScheduleFree as ScheduleFree,
    ScheduleFreeState as ScheduleFreeState,
)
from ._split import (
    RealAndImaginary as RealAndImaginary,
    split_real_and_imaginary as split_real_and_imaginary,
    SplitRealAndImaginary as SplitRealAndImaginary,
    SplitRealAndImaginaryState as SplitRealAndImaginaryState,
)
