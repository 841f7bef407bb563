"""Range checks for hyperparameters, to be called from `__post_init__`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np


def check_fraction(owner: eqx.Module, *names: str) -> None:
    """Each named field, or each number in it, must lie in [0, 1)."""
    _check(owner, names, "in [0, 1)", lambda x: (x >= 0) & (x < 1))


def check_nonnegative(owner: eqx.Module, *names: str) -> None:
    """Each named field must be at least 0."""
    _check(owner, names, "at least 0", lambda x: x >= 0)


def check_positive(owner: eqx.Module, *names: str) -> None:
    """Each named field must be above 0."""
    _check(owner, names, "above 0", lambda x: x > 0)


def check_finite(owner: eqx.Module, *names: str) -> None:
    """Each named field must be finite, as a float32."""
    largest = float(np.finfo(np.float32).max)
    _check(owner, names, "finite", lambda x: abs(x) <= largest)


def check_between(owner: eqx.Module, low: float, high: float, *names: str) -> None:
    """Each named field must be at least `low` and at most `high`."""
    range_ = f"between {low} and {high}"
    _check(owner, names, range_, lambda x: (x >= low) & (x <= high))


def check_scalar(owner: eqx.Module, *names: str) -> None:
    """Each named field must be one number: no array of several, and not `None`."""
    for name in names:
        if (x := getattr(owner, name)) is None or np.ndim(x):
            got = "None" if x is None else f"shape {np.shape(x)}"
            raise ValueError(
                f"{type(owner).__name__}: `{name}` must be one number; got {got}. For "
                "several, use `eqx.filter_vmap`."
            )


def check_at_least_one(owner: eqx.Module, *names: str) -> None:
    """Each named field must be at least 1."""
    _check(owner, names, "at least 1", lambda x: x >= 1)


def check_pair(owner: eqx.Module, name: str) -> None:
    """The named field must be a pair of numbers, each in [0, 1)."""
    pair = getattr(owner, name)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            f"{type(owner).__name__}: `{name}` must be two numbers in [0, 1); "
            f"got {pair!r}."
        )
    check_fraction(owner, name)


def check_one_of(owner: eqx.Module, name: str, *choices: str) -> None:
    """The named field must be one of `choices`."""
    if (x := getattr(owner, name)) not in choices:
        raise ValueError(
            f"{type(owner).__name__}: `{name}` must be "
            f"{' or '.join(map(repr, choices))}; got {x!r}."
        )


def check_whole(owner: eqx.Module, *names: str, least: int = 1) -> None:
    """Each named field must be a whole number, at least `least`."""
    for name in names:
        x = getattr(owner, name)
        if not isinstance(x, int | np.integer) or x < least:
            raise ValueError(
                f"{type(owner).__name__}: `{name}` must be a whole number, at least "
                f"{least}; got {x!r}."
            )


def _check(
    owner: eqx.Module,
    names: tuple[str, ...],
    range_: str,
    holds: Callable[[Any], Any],
) -> None:
    """Raises `ValueError` for static values at once; arrays are checked where their
    value is known, by `eqx.error_if`. `None` passes, and so does a schedule of the
    learning rate: nothing else may be a function."""
    for name in names:
        message = f"{type(owner).__name__}: `{name}` must be {range_}"

        def leaf(x: Any, name: str = name, message: str = message) -> Any:
            if callable(x) and name == "learning_rate":
                return x
            if callable(x):
                raise ValueError(f"{message}, and not a schedule; got {x}.")
            if eqx.is_array(x):
                return eqx.error_if(x, ~holds(x), f"{message}.")
            if not isinstance(x, int | float | np.number | np.ndarray) or not holds(x):
                raise ValueError(f"{message}; got {x!r}.")
            return x

        value = jax.tree.map(leaf, getattr(owner, name), is_leaf=callable)
        setattr(owner, name, value)
