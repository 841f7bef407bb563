"""Warm-up: a learning rate that grows to its peak."""

import equinox as eqx
import jax.numpy as jnp

from contrib_core import tree
from contrib_core.ranges import enforce_ranges, Positive, Rate
from contrib_core.schedule import value_at
from contrib_core.typing import Count, Scalar


class LinearWarmup(eqx.Module):
    """`peak * min(1, (count + 1) / steps)`: the rate is never 0 while it warms up, and
    the first step at the peak is number `steps`, counted from 1.

    **Arguments:**

    - `peak`: the learning rate after the warm-up, or a schedule of it.
    - `steps`: the number of steps of the warm-up, above 0.

    **Raises:** `ValueError` for a negative `peak`, and for `steps` not above 0.
    """

    peak: Rate
    steps: Positive

    def __check_init__(self):
        enforce_ranges(self)

    def __call__(self, count: Count) -> Scalar:
        """The learning rate at step `count`, in the default float dtype."""
        like = jnp.zeros(())
        # Added as a float, because the largest count plus one is a negative int32.
        fraction = (tree.scalar(count, like) + 1) / tree.scalar(self.steps, like)
        return value_at(self.peak, count, like) * jnp.minimum(1, fraction)
