"""Range checks for hyperparameters, to be called from `__post_init__`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax


def check_fraction(owner: eqx.Module, *names: str) -> None:
    """Each named field, or each number in it, must lie in [0, 1)."""
    _check(owner, names, "in [0, 1)", lambda x: (x >= 0) & (x < 1))


def check_nonnegative(owner: eqx.Module, *names: str) -> None:
    """Each named field must be at least 0."""
    _check(owner, names, "at least 0", lambda x: x >= 0)


def check_positive(owner: eqx.Module, *names: str) -> None:
    """Each named field must be above 0."""
    _check(owner, names, "above 0", lambda x: x > 0)


def check_at_least_one(owner: eqx.Module, *names: str) -> None:
    """Each named field must be at least 1."""
    _check(owner, names, "at least 1", lambda x: x >= 1)


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
            if not holds(x):
                raise ValueError(f"{message}; got {x}.")
            return x

        value = jax.tree.map(leaf, getattr(owner, name), is_leaf=callable)
        setattr(owner, name, value)
