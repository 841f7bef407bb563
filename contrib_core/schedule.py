"""Hyperparameters that change over time, and step counts."""

import math

import jax
import jax.numpy as jnp

from . import tree
from .ranges import is_zero
from .typing import AnyTree, Count, RealLike, RealOrSchedule, Scalar


def value_at(value: RealOrSchedule, count: Count | None, like: AnyTree) -> Scalar:
    """A hyperparameter at step `count`, in the accumulator dtype of `like`.

    The count may be `None` for a hyperparameter that is not a schedule.
    """
    if not callable(value):
        return tree.scalar(value, like)
    # Schedules, such as those of optax, mix integers with floats of several dtypes.
    with jax.numpy_dtype_promotion("standard"):
        return tree.scalar(value(count), like)


def scaled(hyperparameter: RealLike, x: RealLike) -> RealLike:
    """`hyperparameter * x`; 0 for a hyperparameter of 0, even if `x` is infinite."""
    if is_zero(hyperparameter):
        return 0
    return jnp.where(jnp.equal(hyperparameter, 0), 0, hyperparameter * x)


def zero_count() -> Count:
    """The count before the first step."""
    return jnp.zeros((), jnp.int32)


def increment(count: Count) -> Count:
    """The next count; it stays at the largest int32 instead of wrapping around."""
    largest = jnp.iinfo(jnp.int32).max
    return jnp.where(count < largest, count + 1, largest)


def debias(decay: RealLike, count: Count, like: AnyTree) -> Scalar:
    """`1 - decay^count`: the sum of weights after `count` steps of an average from 0.

    The average divided by it is unbiased (Kingma & Ba, arXiv 1412.6980, section 3).
    `expm1` keeps the precision: in float32, `1 - 0.999` has a relative error of 2e-5.
    """
    smallest = 1e-37  # Its powers vanish beside 1, and unlike 0 it has a logarithm.
    if isinstance(decay, int | float):
        log = math.log(max(decay, smallest))
    else:
        log = jnp.log(jnp.maximum(decay, smallest))
    return -jnp.expm1(tree.scalar(log, like) * tree.scalar(count, like))
