"""What an attacker learns from private gradients, and what attacks would reveal.

The attacker knows every example but one, the canary, and tells from what a mechanism
returns whether the canary was there. How often the attacker is right bounds epsilon
from below, and no such bound may be above what `contrib_algos.epsilon` claims. Broken
mechanisms show that the attack is strong enough: it must refute the claim for each of
them. Where a defect is too rare or too small for 400,000 runs to show, an exact check
must find it instead.
"""

import functools as ft
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array, Bool, Key
from scipy.stats import beta

from contrib_algos import (
    _clip,
    _clipped_grad,
    _dp_aggregate,
    DPAggregate,
    epsilon,
    GaussianNoise,
    value_and_clipped_grad,
)
from contrib_core import tree


RUNS = 400_000  # With the canary, and as many without it.
MISTAKE = 1e-4  # The probability that any bound of one audit is wrong.
# Each delta, and the part of the epsilon that is claimed at it that an attack on the
# right code must reach, lest an attack that finds nothing be taken for privacy. At 1e-5
# the best attack is right once in thousands of runs, of which these have few. At 0.1
# they show nearly all, and so a difference of 10 % in the noise.
REACH = {1e-5: 0.5, 1e-2: 0.85, 0.1: 0.93}
SIGMA = 1.0


# What is attacked


@dataclass(frozen=True)
class Scenario:
    """Examples that are known, and one that is to be found out.

    The others are short enough not to be clipped. In every second step the gradient of
    the canary has the other sign: an attacker may choose them.
    """

    canary: Any
    others: Any
    bound: float
    steps: int = 1
    dtype: Any = jnp.float32
    counts: bool = True  # Whether the right code adds anything for the canary.

    def batch(self, step: int) -> Any:
        """The rows of all examples, of which the canary is the last."""

        def leaf(canary: np.ndarray, others: np.ndarray) -> Array:
            rows = np.concatenate([others, (-1) ** step * canary[None]])
            return jnp.asarray(rows, np.result_type(rows, self.dtype).name)

        return jax.tree.map(leaf, self.canary, self.others)

    def claim(self, delta: float) -> float:
        return _claim(self.steps, delta)


@ft.cache
def _claim(steps: int, delta: float) -> float:
    return epsilon(steps=steps, sampling_prob=1.0, noise_multiplier=SIGMA, delta=delta)
