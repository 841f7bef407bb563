"""Private training: clipping bounds the effect of one example, and noise hides it."""

from ._accounting import calibrate_noise as calibrate_noise, epsilon as epsilon
from ._clip import ClippedSum as ClippedSum
from ._clipped_grad import (
    ClippedGrad as ClippedGrad,
    value_and_clipped_grad as value_and_clipped_grad,
)
from ._dp_aggregate import (
    differentially_private_aggregate as differentially_private_aggregate,
    DPAggregate as DPAggregate,
    dpsgd as dpsgd,
)
from ._noise import (
    DifferentiallyPrivateAggregateState as DifferentiallyPrivateAggregateState,
    GaussianNoise as GaussianNoise,
)
