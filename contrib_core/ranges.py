"""Ranges of hyperparameters, declared in the annotations of fields."""

import contextlib
import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias, Union

import equinox as eqx
import jax
import numpy as np

from .typing import RealLike, RealOrSchedule, Schedule


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a hyperparameter may have, as part of its annotation.

    **Arguments:**

    - `text`: the range in words, which follow "must be" in an error.
    - `holds`: whether a number is in the range; false for NaN.

    A hyperparameter that is annotated as `int` must be a Python or NumPy integer.
    """

    text: str
    holds: Callable[[Any], Any]

    def __repr__(self) -> str:
        return self.text


_ANY = Range("a number", lambda x: x == x)
_FRACTION = Range("in [0, 1)", lambda x: (x >= 0) & (x < 1))
_NON_NEGATIVE = Range("at least 0", lambda x: x >= 0)
_POSITIVE = Range("above 0", lambda x: x > 0)
_FROM_ONE = Range("at least 1", lambda x: x >= 1)

Number: TypeAlias = Annotated[RealLike, _ANY]
"""Any real number but NaN."""

NumberOrSchedule: TypeAlias = Annotated[RealOrSchedule, _ANY]
"""Any real number but NaN, or a schedule."""

Fraction: TypeAlias = Annotated[RealLike, _FRACTION]
"""A number in [0, 1)."""

NonNegative: TypeAlias = Annotated[RealLike, _NON_NEGATIVE]
"""A number, at least 0."""

Rate: TypeAlias = Annotated[RealOrSchedule, _NON_NEGATIVE]
"""A number, at least 0, or a schedule."""

Positive: TypeAlias = Annotated[RealLike, _POSITIVE]
"""A number above 0."""

AtLeastOne: TypeAlias = Annotated[RealLike, _FROM_ONE]
"""A number, at least 1."""

Natural: TypeAlias = Annotated[int, _FROM_ONE]
"""A whole number, at least 1."""

NaturalOrZero: TypeAlias = Annotated[int, _NON_NEGATIVE]
"""A whole number, at least 0."""

FIRST_GUESS = "first guess"
"""The mark of a [`contrib_core.ranges.Guess`][]."""

Guess: TypeAlias = Annotated[Positive, FIRST_GUESS]
"""A first guess of a distance, above 0. The result should not depend on it."""

GuessOrZero: TypeAlias = Annotated[NonNegative, FIRST_GUESS]
"""A first guess of a distance, which may be 0."""


def is_zero(x: Any) -> bool:
    """Whether `x` is known to be 0. Only a Python number can be."""
    return isinstance(x, int | float) and bool(x == 0)


def static(default: Any) -> Any:
    """A static field, which is no leaf: JAX recompiles for each of its values."""
    return eqx.field(default=default, static=True)


def enforce_ranges(owner: eqx.Module) -> None:
    """Checks the fields of `owner` whose annotations have a `Range` or a `Literal`.

    Call it from `__check_init__`, which runs after the converters. Python numbers are
    checked at once. Arrays may be traced, so `eqx.error_if` checks them at run time. A
    schedule is not checked; it passes where the annotation allows one.

    **Raises:** `ValueError` that names the class, the field and the range.
    """
    kinds = {f.name: f.type for f in dataclasses.fields(owner)}
    if any(isinstance(kind, str) for kind in kinds.values()):
        with contextlib.suppress(NameError):  # Imported for type checkers only.
            kinds |= typing.get_type_hints(type(owner), include_extras=True)
    for f in dataclasses.fields(owner):
        where = f"{type(owner).__name__}: `{f.name}` must be"
        value = in_range(where, kinds[f.name], getattr(owner, f.name))
        # `eqx.error_if` works only if its result is used, and equinox freezes `owner`.
        object.__setattr__(owner, f.name, value)


def in_range(where: str, annotation: Any, value: Any) -> Any:
    """`value`, checked against the `Range` or `Literal` in `annotation`.

    **Raises:** `ValueError` that begins with `where`.
    """
    parts, origin = typing.get_args(annotation), typing.get_origin(annotation)
    if range_ := _range_of(annotation):
        return _checked_number(where, annotation.__origin__, range_, value)
    if origin is Literal and value not in parts:
        raise ValueError(f"{where} {' or '.join(map(repr, parts))}; got {value!r}.")
    if origin is tuple and parts and (range_ := _range_of(parts[0])):
        is_sequence = isinstance(value, tuple | list)
        if is_sequence and ... in parts:
            parts = parts[:1] * len(value)
        if not is_sequence or len(value) != len(parts):
            number = "two" if len(parts) == 2 else len(parts)
            raise ValueError(f"{where} {number} numbers {range_.text}; got {value!r}.")
        return tuple(in_range(where, *pair) for pair in zip(parts, value, strict=True))
    if origin in (Union, types.UnionType):
        return _in_union(where, parts, value)
    return value


def _in_union(where: str, parts: tuple[Any, ...], value: Any) -> Any:
    kinds = [part for part in parts if isinstance(part, type)]
    is_schedule = Schedule in parts and callable(value)
    checked = [part for part in parts if part not in (*kinds, Schedule)]
    if not checked or is_schedule or isinstance(value, tuple(kinds)):
        return value
    for part in checked[1:]:
        with contextlib.suppress(ValueError):
            return in_range(where, part, value)
    return in_range(where, checked[0], value)


def _range_of(annotation: Any) -> Range | None:
    marks = getattr(annotation, "__metadata__", ())
    return next((mark for mark in marks if isinstance(mark, Range)), None)


_NUMBERS = (int, float, np.number, np.ndarray, jax.Array)


def _checked_number(where: str, kind: Any, range_: Range, x: Any) -> Any:
    words = f"a whole number, {range_.text}" if kind is int else range_.text
    if callable(x) and not isinstance(x, type):
        if Schedule in typing.get_args(kind):
            return x
        raise ValueError(f"{where} {words}, and not a schedule; got {x}.")
    is_number = isinstance(x, (int, np.integer) if kind is int else _NUMBERS)
    if not is_number or np.iscomplexobj(x):
        raise ValueError(f"{where} {words}; got {x!r}.")
    if np.ndim(x):
        raise ValueError(
            f"{where} one number; got shape {np.shape(x)}. For several, use "
            "`eqx.filter_vmap`."
        )
    if isinstance(x, jax.Array):
        # NaN alone is not worth a check in the compiled program: it shows by itself.
        is_any = range_ is _ANY
        return x if is_any else eqx.error_if(x, ~range_.holds(x), f"{where} {words}.")
    if not range_.holds(x):
        raise ValueError(f"{where} {words}; got {x!r}.")
    return x
