"""Typed transforms over pytrees: protocols, tree maths, composition."""

from . import ranges as ranges, tree as tree
from ._boundary import (
    check_gradients as check_gradients,
    in_precision as in_precision,
    narrowed_to as narrowed_to,
    trainable as trainable,
)
from ._combine import (
    add_decayed_weights as add_decayed_weights,
    AddDecayedWeights as AddDecayedWeights,
    apply_updates as apply_updates,
    Chain as Chain,
    chain as chain,
    ChainedMechanism as ChainedMechanism,
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
from ._errors import Caller as Caller, name_of as name_of, spot as spot
from ._mechanism import (
    AbstractMechanism as AbstractMechanism,
    AbstractMechanismInput as AbstractMechanismInput,
)
from ._optax import (
    as_transform as as_transform,
    FromOptax as FromOptax,
    to_optax as to_optax,
)
from ._stage import AbstractStage as AbstractStage
from ._state import AbstractState as AbstractState, Extra as Extra, GradFn as GradFn
from ._transform import (
    AbstractTransform as AbstractTransform,
    AnyTransform as AnyTransform,
    Transform as Transform,
)
from .claims import (
    BOUNDED_ESTIMATE as BOUNDED_ESTIMATE,
    claim as claim,
    ENTRYWISE as ENTRYWISE,
    ESTIMATE as ESTIMATE,
    ISOMETRIES as ISOMETRIES,
    LawName as LawName,
    Laws as Laws,
    laws_if_zero as laws_if_zero,
    Need as Need,
    Needs as Needs,
    PARAMS as PARAMS,
    Terms as Terms,
)
from .schedule import (
    debias as debias,
    increment as increment,
    scaled as scaled,
    value_at as value_at,
    zero_count as zero_count,
)
from .typing import (
    AnyTree as AnyTree,
    Count as Count,
    Flag as Flag,
    KeyData as KeyData,
    Mask as Mask,
    P as P,
    RealLike as RealLike,
    RealOrSchedule as RealOrSchedule,
    S as S,
    Scalar as Scalar,
    Scalars as Scalars,
    Schedule as Schedule,
    T as T,
    Tree as Tree,
)
