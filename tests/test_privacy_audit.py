"""What an attacker learns from private gradients, and what the attack would reveal.

The attacker knows every example but one, the canary, and tells from what a mechanism
returns whether the canary was there. How often the attacker is right bounds epsilon
from below, and no such bound may be above what `contrib_algos.epsilon` claims. Broken
mechanisms show that the attack is strong enough: it must refute the claim for each of
them, or an exact check must, where the difference is too rare or too small for it.
"""

import functools as ft
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array, Key
from scipy.stats import beta

from contrib_algos import (
    _clip,
    _clipped_grad,
    _dp_aggregate,
    _noise,
    DPAggregate,
    epsilon,
    GaussianNoise,
    value_and_clipped_grad,
)
from contrib_core import tree


RUNS = 400_000  # With the canary, and as many without it.
MISTAKE = 1e-4  # The probability that any one bound of an audit is wrong.
# At 1e-5, where epsilon is usually stated, the best attack is right once in 20,000
# runs, so that few runs show little of it. At 0.1 they show nearly all. What is claimed
# is claimed at every delta; the second numbers are the parts of it that an attack on
# the right code must reach.
REACH = {1e-5: 0.6, 1e-2: 0.85, 0.1: 0.95}
SIGMA = 1.0


# What is attacked


@dataclass(frozen=True)
class Scenario:
    """Examples that are known, and one that is to be found out.

    `others` are short enough not to be clipped. At every second step the gradient of
    the canary has the other sign, as an attacker may choose it.
    """

    canary: Any
    others: Any
    bound: float
    steps: int = 1
    dtype: Any = jnp.float32
    # Whether the right code adds anything of the canary, which the attack must find.
    counts: bool = True

    def claim(self, delta: float) -> float:
        return _claim(self.steps, delta)

    @property
    def rows(self) -> int:
        return len(jax.tree.leaves(self.others)[0]) + 1

    def examples(self, step: int, is_in: bool) -> Any:
        """All rows, of which the canary is the last, or those of the others."""
        sign = (-1) ** step

        def leaf(canary: Any, others: Any) -> Array:
            rows = np.concatenate([others, sign * np.asarray(canary)[None]])
            dtype = jnp.complex64 if np.iscomplexobj(rows) else self.dtype
            return jnp.asarray(rows if is_in else others, dtype)

        return jax.tree.map(leaf, self.canary, self.others)


@ft.cache
def _claim(steps: int, delta: float) -> float:
    return epsilon(
        steps=steps, sampling_prob=1.0, noise_multiplier=SIGMA, delta=delta
    )


def _long(steps: int = 1) -> Scenario:
    """A canary of norm 1e6 with as much in each leaf, against an example that is
    opposed to it, of just less than the bound."""
    bound = 2.0
    direction = {
        "a": np.full(2, 1 / 6**0.5),
        "b": np.full((), 1 / 3**0.5),
        "c": np.array([1 + 1j, 0]) / 6**0.5,
    }
    canary = jax.tree.map(lambda d: 1e6 * d, direction)
    others = jax.tree.map(lambda d: -0.999 * bound * d[None], direction)
    return Scenario(canary, others, bound, steps)


SCENARIOS = {
    "long": _long(),
    "steps": _long(steps=2),
    # An entry that is not finite, beside one that is to be seen.
    "nan": Scenario(
        {"a": np.array([np.nan, 1e6]), "b": np.zeros(1)},
        {"a": np.full((3, 2), 0.1), "b": np.zeros((3, 1))},
        bound=1.0,
        counts=False,
    ),
    # In float16, the squares of its entries are 0.
    "small": Scenario(
        {"a": np.full(4, 1.5e-4), "b": np.full(4, 1.5e-4)},
        {"a": np.zeros((3, 4)), "b": np.full((3, 4), 1e-5)},
        bound=1e-4,
        dtype=jnp.float16,
    ),
    # A sum of others that bfloat16 rounds down to 1024, and with 1 more up to 1032.
    "many": Scenario(
        {"a": np.array([1e6]), "b": np.zeros(1)},
        {"a": np.full((2055, 1), 0.5), "b": np.zeros((2055, 1))},
        bound=1.0,
    ),
}

Mechanism: TypeAlias = Callable[[Scenario, Key[Array, ""], bool], list[Any]]
"""What all may see of the steps of a scenario, with the canary or without it."""


def aggregate(scenario: Scenario, key: Key[Array, ""], is_in: bool) -> list[Any]:
    """By `DPAggregate`; without the canary, there is a row less."""
    rule = DPAggregate(scenario.bound, SIGMA, key, normalize_by=scenario.rows)
    batches = [scenario.examples(step, is_in) for step in range(scenario.steps)]
    return _updates(rule, batches)


def clipped_grad(scenario: Scenario, key: Key[Array, ""], is_in: bool) -> list[Any]:
    """By `value_and_clipped_grad` and `GaussianNoise`; without the canary, its row is
    masked."""
    rule = GaussianNoise(SIGMA, key)
    sums = value_and_clipped_grad(_linear, scenario.bound, microbatch_size=4096)
    mask = jnp.arange(scenario.rows) < scenario.rows - (not is_in)
    batches = [scenario.examples(step, True) for step in range(scenario.steps)]
    params = _params(batches[0])
    return _updates(rule, [sums(params, batch, mask) for batch in batches], params)


MECHANISMS: dict[str, Mechanism] = {"aggregate": aggregate, "clipped": clipped_grad}


def _linear(params: Any, example: Any) -> Array:
    """A loss whose gradient is the example."""
    parts = jax.tree.map(lambda w, x: jnp.sum(w * x).real, params, example)
    return ft.reduce(jnp.add, jax.tree.leaves(parts))


def _params(batch: Any) -> Any:
    return jax.tree.map(lambda rows: jnp.zeros(rows.shape[1:], rows.dtype), batch)


def _updates(rule: Any, batches: list[Any], params: Any = None) -> list[Any]:
    params = _params(batches[0]) if params is None else params
    state, updates = rule.init(params), []
    for batch in batches:
        update, state = rule.update(batch, state, params)
        updates.append(update)
    return updates


# The attack


def outputs(
    mechanism: Mechanism, scenario: Scenario, is_in: bool, runs: int = RUNS
) -> np.ndarray:
    """What each run returns, in units of its noise, less what the others add.

    Rows of real coordinates, which are standard normal numbers without the canary.
    """

    def run(key: Key[Array, ""]) -> Array:
        return _ravel(mechanism(scenario, key, is_in))

    # No run with the canary has the key of one without it.
    keys = jax.random.split(jax.random.key(int(is_in)), runs)
    means = np.asarray(jax.jit(jax.vmap(run))(keys), np.float64)
    known = _ravel(
        [
            jax.tree.map(lambda x: jnp.sum(x, 0), scenario.examples(step, False))
            for step in range(scenario.steps)
        ]
    )
    noise = means * scenario.rows - np.asarray(known, np.float64)
    # As users of optax remove what is not finite.
    return np.nan_to_num(noise / (SIGMA * scenario.bound))


def _ravel(x: Any) -> Array:
    """The real coordinates of a tree, in float32."""
    parts = [part for leaf in jax.tree.leaves(x) for part in (leaf.real, leaf.imag)]
    return jnp.concatenate([part.astype(jnp.float32).ravel() for part in parts])


Statistic: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""A number for each row."""


def statistics(inside: np.ndarray, outside: np.ndarray) -> list[Statistic]:
    """What the attacker compares with a threshold; chosen by the runs that are given.

    The projection on the mean difference, which is that on the canary where its
    coordinates all count; the linear function that tells best, such as a difference
    that cancels noise; the length; and the distance from the numbers of bfloat16.
    """
    shift = inside.mean(0) - outside.mean(0)
    spread = np.cov(outside.T) + np.cov(inside.T)
    spread += 1e-9 * np.trace(spread) * np.eye(len(spread))
    weights = np.linalg.solve(spread, shift)

    def off_grid(y: np.ndarray) -> np.ndarray:
        return np.abs(y - y.astype(jnp.bfloat16).astype(np.float64)).max(1)

    return [
        lambda y: y @ shift,
        lambda y: y @ weights,
        lambda y: np.square(y).sum(1),
        off_grid,
    ]


def lower_bounds(inside: np.ndarray, outside: np.ndarray) -> dict[float, float]:
    """A lower bound on epsilon at each delta of `REACH`.

    One half of the runs chooses a statistic, its sign and a threshold, for each delta
    and for each of the two hypotheses that may be the one to find. The other half says
    how often such a test is right, and how often it is a false alarm.
    """
    half = len(inside) // 2
    functions = statistics(inside[:half], outside[:half])
    tests = []
    for function in functions:
        values = np.stack([function(inside), function(outside)])
        for signed in (values, -values):
            chooses, says = np.sort(signed[:, :half]), np.sort(signed[:, half:])
            thresholds = _thresholds(chooses)
            tests.append((_counts(chooses, thresholds), _counts(says, thresholds)))
    chosen, said = (np.concatenate(counts, 1) for counts in zip(*tests, strict=True))
    bounds = dict.fromkeys(REACH, 0.0)
    for first in (slice(None), slice(None, None, -1)):
        for delta in REACH:
            best = np.argmax(_epsilon(chosen[first], half, delta))
            bound = _epsilon(said[first, best], half, delta)
            bounds[delta] = max(bounds[delta], float(bound))
    return bounds


def _thresholds(values: np.ndarray) -> np.ndarray:
    """Some of all values, the more of them the rarer what is above."""
    ordered = np.sort(values, axis=None)
    ranks = np.unique(np.geomspace(1, ordered.size, 200).astype(int))
    return ordered[-ranks]


def _counts(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many of the sorted values reach each threshold, for each row of these."""
    below = [np.searchsorted(row, thresholds) for row in values]
    return values.shape[1] - np.stack(below)


def _epsilon(counts: np.ndarray, runs: int, delta: float) -> np.ndarray:
    """The bound that follows from the numbers of right answers and of false alarms,
    after Clopper and Pearson."""
    # Of an audit, as many bounds are evaluated: two for each delta and hypothesis.
    level = MISTAKE / (4 * len(REACH))
    right, wrong = counts
    power = np.where(
        right == 0, 0.0, beta.ppf(level, np.maximum(right, 1), runs - right + 1)
    )
    alarms = np.where(
        wrong == runs, 1.0, beta.isf(level, wrong + 1, np.maximum(runs - wrong, 1))
    )
    return np.log(np.maximum(power - delta, 1e-300) / alarms)
