"""Objects that type checkers must refuse: a wrong type in any line is an error."""

from typing import assert_type, Literal, overload

import optax

from contrib_algos import adam, DPAggregate, dpsgd, GaussianNoise
from contrib_core import chain, LawName, Need, scale, Transform


@overload
def is_transform(x: Transform) -> Literal[True]: ...
@overload
def is_transform(x: object) -> bool: ...
def is_transform(x: object) -> bool:
    """Whether `masked`, `schedule_free` and all other wrappers accept it."""
    return isinstance(x, Transform)


assert_type(is_transform(adam(0.1)), Literal[True])
assert_type(is_transform(optax.sgd(0.1)), Literal[True])
assert_type(is_transform(chain(adam(0.1), scale(0.5))), Literal[True])
assert_type(is_transform(dpsgd(0.1, 1.0, 1.0, 42)), bool)
assert_type(is_transform(DPAggregate(1.0, 1.0, 42)), bool)
assert_type(is_transform(GaussianNoise(1.0, 42)), bool)
assert_type(is_transform(chain(GaussianNoise(1.0, 42), adam(0.1))), bool)
assert_type(is_transform(adam), bool)


@overload
def is_name(x: LawName | Need) -> Literal[True]: ...
@overload
def is_name(x: str) -> bool: ...
def is_name(x: str) -> bool:
    """Whether a law or a need has this name."""
    return bool(x)


assert_type(is_name("rotation"), Literal[True])
assert_type(is_name("params"), Literal[True])
assert_type(is_name("rotations"), bool)
assert_type(is_name("parms"), bool)
