"""Typed transforms over pytrees: protocols, tree maths, composition."""

from . import tree as tree
from ._boundary import in_precision as in_precision, trainable as trainable
from ._bucketed import (
    Bucketed as Bucketed,
    bucketed as bucketed,
    BucketedState as BucketedState,
)
from ._checks import (
    check_at_least_one as check_at_least_one,
    check_between as check_between,
    check_finite as check_finite,
    check_fraction as check_fraction,
    check_nonnegative as check_nonnegative,
    check_one_of as check_one_of,
    check_pair as check_pair,
    check_positive as check_positive,
    check_scalar as check_scalar,
    check_whole as check_whole,
)
from ._combine import (
    add_decayed_weights as add_decayed_weights,
    AddDecayedWeights as AddDecayedWeights,
    apply_updates as apply_updates,
    Chain as Chain,
    chain as chain,
    merge_metrics as merge_metrics,
    Scale as Scale,
    scale as scale,
    scale_by_learning_rate as scale_by_learning_rate,
    ScaleState as ScaleState,
)
from ._coordinates import (
    AbstractCoordinateChange as AbstractCoordinateChange,
    AbstractInnerState as AbstractInnerState,
    Masked as Masked,
    masked as masked,
    MaskedState as MaskedState,
)
from ._examples import (
    check_unmasked as check_unmasked,
    checked_examples as checked_examples,
    gathered as gathered,
    is_tracked as is_tracked,
    number_of_examples as number_of_examples,
    per_device as per_device,
    rows_at as rows_at,
    summed_over_devices as summed_over_devices,
    varying_axes as varying_axes,
)
from ._layerwise import (
    Layerwise as Layerwise,
    layerwise as layerwise,
    LayerwiseState as LayerwiseState,
    LeafState as LeafState,
)
from ._optax import (
    as_transform as as_transform,
    FromOptax as FromOptax,
    to_optax as to_optax,
)
from ._schedule import (
    at as at,
    debias as debias,
    increment as increment,
    LinearWarmup as LinearWarmup,
    zero_count as zero_count,
)
from ._state import (
    AbstractState as AbstractState,
    AbstractUnprotected as AbstractUnprotected,
    Extra as Extra,
    GradFn as GradFn,
)
from ._symmetry import (
    ENTRYWISE as ENTRYWISE,
    free_of as free_of,
    ISOMETRIES as ISOMETRIES,
)
from ._transform import (
    AbstractTransform as AbstractTransform,
    name_of as name_of,
    Transform as Transform,
)
from ._types import (
    Count as Count,
    Flag as Flag,
    is_zero as is_zero,
    KeyData as KeyData,
    P as P,
    RealLike as RealLike,
    RealOrSchedule as RealOrSchedule,
    S as S,
    Scalar as Scalar,
    Scalars as Scalars,
    Schedule as Schedule,
    times as times,
    Tree as Tree,
)
