"""Hyperparameters that change over time, step counts, and what is computed of them."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from . import tree
from ._checks import check_positive
from ._types import Count, RealLike, RealOrSchedule, Scalar


def at(value: RealOrSchedule, count: Count | None, like: PyTree[Any]) -> Scalar:
    """A hyperparameter at step `count`, in the accumulator dtype of `like`.

    The count may be `None` for a hyperparameter that is not a schedule.
    """
    return tree.scalar(_now(value, count), like)


def _now(value: RealOrSchedule, count: Count | None) -> RealLike:
    if not callable(value):
        return value
    # Schedules mix integers, floats and dtypes, those of optax among them.
    with jax.numpy_dtype_promotion("standard"):
        return value(count)


def zero_count() -> Count:
    """The count before the first step."""
    return jnp.zeros((), jnp.int32)


def increment(count: Count) -> Count:
    """The next count; it stays at the largest int32 instead of wrapping around."""
    largest = jnp.iinfo(jnp.int32).max
    return jnp.where(count < largest, count + 1, largest)


def debias(decay: RealLike, count: Count, like: PyTree) -> Scalar:
    """`1 - decay^count`: the weight that an average from 0 has gathered after `count`
    steps, by which it is divided to be unbiased (Adam, arXiv 1412.6980, section 3).

    By `expm1`, since `1 - 0.999` in float32 is off by 2e-5.
    """
    smallest = 1e-37  # Its powers vanish beside 1, and unlike 0 it has a logarithm.
    if isinstance(decay, int | float):
        log = math.log(max(decay, smallest))
    else:
        log = jnp.log(jnp.maximum(decay, smallest))
    return -jnp.expm1(tree.scalar(log, like) * tree.scalar(count, like))


class LinearWarmup(eqx.Module):
    """`peak min(1, (count + 1) / steps)`: no step is null, and step `steps` is the
    first at the peak.

    **Arguments:**

    - `peak`: the learning rate after the warm-up, or a schedule of it.
    - `steps`: the length of the warm-up, above 0.

    **Raises:** `ValueError` if `steps` is not above 0.
    """

    peak: RealOrSchedule
    steps: RealLike

    def __post_init__(self):
        check_positive(self, "steps")

    def __call__(self, count: Count) -> Scalar:
        """The learning rate at step `count`, in the default float dtype."""
        dtype = jnp.result_type(float)
        # Added as a float: the largest count plus one is a negative int32.
        fraction = (jnp.asarray(count, dtype) + 1) / jnp.asarray(self.steps, dtype)
        return jnp.asarray(_now(self.peak, count), dtype) * jnp.minimum(1, fraction)
