"""An attack on private gradients, and the bound on epsilon that follows from it.

The attacker knows every example but one, the canary, and tells from what a mechanism
returns whether the canary was there. How often the attacker is right bounds epsilon
from below, and no such bound may be above what `contrib_algos.epsilon` claims.
"""

import functools as ft
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key
from scipy.stats import beta

from contrib_algos import DPAggregate, epsilon, GaussianNoise, value_and_clipped_grad


RUNS = 400_000  # With the canary, and as many without it.

MISTAKE = 1e-4  # The probability that any bound of one audit is wrong.

# The deltas at which epsilon is audited, each with the part of the claimed epsilon that
# an attack on correct code must reach: otherwise a weak attack would pass for privacy.
# At 1e-5, attacks that come near the claim succeed once in 20,000 runs, which is too
# rare. At 0.1 little is lost, and noise that is 10 % too small is found.
REACH = {1e-5: 0.45, 1e-2: 0.85, 0.1: 0.92}

SIGMA = 1.0

# Mechanisms under attack


@dataclass(frozen=True)
class Scenario:
    """Examples that the attacker knows, and one that is to be found out: the canary.

    The other examples are short enough not to be clipped. In every second step the
    canary's gradient has the other sign, because attackers may choose it.
    """

    canary: Any
    others: Any
    bound: float
    steps: int = 1
    dtype: Any = jnp.float32  # The dtype of real leaves.

    def batches(self) -> list[Any]:
        """The rows of each step; the canary is the last row."""

        def leaf(canary: np.ndarray, others: np.ndarray) -> Array:
            rows = np.concatenate([others, canary[None]])
            dtype = jnp.complex64 if np.iscomplexobj(rows) else self.dtype
            return jnp.asarray(rows, dtype)

        canaries = [
            jax.tree.map(lambda x: (-1) ** step * x, self.canary)
            for step in range(self.steps)
        ]
        return [jax.tree.map(leaf, canary, self.others) for canary in canaries]


# A canary with equal norms in both leaves. The known example points the other way, and
# is just short enough not to be clipped.
_DIRECTION = {"a": np.full(2, 0.5), "b": np.full((), 0.5**0.5)}

_LONG = ft.partial(
    Scenario,
    jax.tree.map(lambda d: np.multiply(1e6, d), _DIRECTION),
    jax.tree.map(lambda d: np.multiply(-2.99, d[None]), _DIRECTION),
    bound=3.0,
)

SCENARIOS = {
    "long": _LONG(),
    "steps": _LONG(steps=2),
    "complex": Scenario(
        {"a": np.array([1e6 + 1e6j])}, {"a": np.full((3, 1), 0.5j)}, 2.0
    ),
    # NaN, beside an entry that must not show.
    "nan": Scenario({"a": np.array([np.nan, 1e6])}, {"a": np.full((3, 2), 0.1)}, 1.0),
    # The canary has three times the bound, but the squares of its entries are 0 in
    # float16.
    "small": Scenario(
        {"a": np.full(4, 1.5e-4)}, {"a": np.full((3, 4), 1e-5)}, 1e-4, dtype=jnp.float16
    ),
    # The others add up to 1027.5, in bfloat16 to 1024; and 1028.5 would be 1032.
    "many": Scenario(
        {"a": np.array([1e6, 0])}, {"a": np.tile([0.5, 0], (2055, 1))}, bound=1.0
    ),
}

Mechanism: TypeAlias = Callable[[Scenario, Key[Array, ""], Bool[Array, ""]], list[Any]]

"""Returns the outputs of all steps of a scenario, with the canary or without it."""


def aggregate(
    scenario: Scenario, key: Key[Array, ""], is_in: Bool[Array, ""]
) -> list[Any]:
    """Uses `DPAggregate`; a row of zeros stands for a missing canary."""
    batches = scenario.batches()

    def leaf(rows: Array) -> Array:
        return rows.at[-1].set(jnp.where(is_in, rows[-1], 0))

    rule = DPAggregate(scenario.bound, SIGMA, key)
    return _updates(rule, jax.tree.map(leaf, batches), _params(batches))


def clipped_grad(
    scenario: Scenario, key: Key[Array, ""], is_in: Bool[Array, ""]
) -> list[Any]:
    """Uses `value_and_clipped_grad` and `GaussianNoise`; a mask hides a missing
    canary."""
    batches = scenario.batches()
    params = _params(batches)
    mask = jnp.ones(len(jax.tree.leaves(batches)[0]), bool).at[-1].set(is_in)
    sums = value_and_clipped_grad(linear, scenario.bound, microbatch_size=1000)
    clipped = [sums(params, batch, mask) for batch in batches]
    return _updates(GaussianNoise(SIGMA, key), clipped, params)


MECHANISMS: dict[str, Mechanism] = {
    "aggregate": aggregate,
    "clipped_grad": clipped_grad,
}


def _params(batches: list[Any]) -> Any:
    return jax.tree.map(lambda rows: jnp.zeros_like(rows[0]), batches[0])


def linear(params: Any, example: Any) -> Array:
    """A loss whose gradient is the example."""
    parts = jax.tree.map(lambda w, x: jnp.sum(w * x).real, params, example)
    return ft.reduce(jnp.add, jax.tree.leaves(parts))


def _updates(rule: Any, batches: list[Any], params: Any) -> list[Any]:
    state, updates = rule.init(params), []
    for batch in batches:
        update, state = rule.update(batch, state, params)
        updates.append(update)
    return updates


def outputs(
    mechanism: Mechanism, scenario: Scenario, runs: int = RUNS
) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of all runs, with the canary and without it.

    A row has the real coordinates of one run: its sum less the known examples, in units
    of the standard deviation of the noise. Without the canary, a row is noise alone.
    """
    batches = scenario.batches()
    others = jax.tree.map(lambda rows: rows[:-1].sum(0), batches)
    number = len(jax.tree.leaves(batches)[0])
    scale = number / (SIGMA * scenario.bound)

    # All optimisations of the compiler would take longer than the runs.
    @ft.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    @ft.partial(jax.vmap, in_axes=(0, None))
    def run(key: Key[Array, ""], is_in: Bool[Array, ""]) -> Array:
        means = coordinates(mechanism(scenario, key, is_in))
        noise = scale * (means - coordinates(others) / number)
        # Users of optax remove NaN like this.
        return jnp.nan_to_num(noise)

    # Runs with and without the canary never share a key.
    inside, outside = jax.random.split(jax.random.key(0), (2, runs))
    return (
        np.asarray(run(inside, jnp.array(True)), np.float64),
        np.asarray(run(outside, jnp.array(False)), np.float64),
    )


def coordinates(x: Any) -> Array:
    """A tree as a vector of float32, with two coordinates for a complex number."""
    parts = []
    for leaf in jax.tree.leaves(x):
        parts += [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    return jnp.concatenate([part.astype(jnp.float32).ravel() for part in parts])


@dataclass(frozen=True)
class Audit:
    """Lower bounds on epsilon, and the claimed epsilon, at each delta."""

    bounds: dict[float, float]
    claims: dict[float, float]

    @property
    def refuted(self) -> bool:
        """Whether a bound is above the claim."""
        return any(self.bounds[delta] > self.claims[delta] for delta in REACH)

    @property
    def tight(self) -> bool:
        """Whether every bound is about as near to the claim as it can be."""
        return all(
            self.bounds[delta] >= part * self.claims[delta]
            for delta, part in REACH.items()
        )


def audit(mechanism: Mechanism, scenario: Scenario) -> Audit:
    bounds = lower_bounds(*outputs(mechanism, scenario))
    return Audit(bounds, {delta: _claim(scenario.steps, delta) for delta in REACH})


@ft.cache
def _claim(steps: int, delta: float) -> float:
    return epsilon(steps=steps, sampling_prob=1.0, noise_multiplier=SIGMA, delta=delta)


def lower_bounds(inside: np.ndarray, outside: np.ndarray) -> dict[float, float]:
    """A lower bound on epsilon at each delta of `REACH`.

    A test accepts one of two hypotheses if a statistic is above or below a threshold.
    One half of the runs selects the best test of each hypothesis for each delta. The
    other half counts how often that test is right, and how often it is wrong.
    """
    half = len(inside) // 2
    ranks = np.geomspace(1, half, 100).astype(int)  # Dense where events are rare.
    signed, thresholds, counts = [], [], []
    for statistic in statistics(inside[:half], outside[:half]):
        values = np.stack([statistic(inside), statistic(outside)])
        rows = np.sort(values[:, :half])
        for y, ordered in ((values, rows), (-values, -rows[:, ::-1])):
            signed.append(y)
            thresholds.append(ordered[:, -ranks].ravel())
            below = [np.searchsorted(row, thresholds[-1]) for row in ordered]
            counts.append(half - np.stack(below))
    numbers = np.stack(counts, 1)
    bounds = dict.fromkeys(REACH, 0.0)
    for found, other in ((0, 1), (1, 0)):
        right, wrong = _rates(numbers[found], numbers[other], half)
        for delta in REACH:
            guesses = _epsilon(right, wrong, delta)
            test, rank = np.unravel_index(np.argmax(guesses), guesses.shape)
            is_found = signed[test][:, half:] >= thresholds[test][rank]
            final = np.count_nonzero(is_found, 1)
            rates = _rates(final[[found]], final[[other]], half)
            bounds[delta] = max(bounds[delta], _epsilon(rates[0], rates[1], delta)[0])
    return bounds


Statistic: TypeAlias = Callable[[np.ndarray], np.ndarray]

"""A number for each row."""


def statistics(inside: np.ndarray, outside: np.ndarray) -> list[Statistic]:
    """The statistics that an attacker computes after seeing some runs of both kinds."""
    shift = inside.mean(0) - outside.mean(0)
    spread = np.cov(inside.T) + np.cov(outside.T)
    # Where noise cancels, only rounding is left, and it may be 0.
    weights = np.linalg.solve(spread + 1e-12 * np.eye(len(spread)), shift)

    def projection(y: np.ndarray) -> np.ndarray:
        """The projection on the direction of the canary."""
        return y @ shift

    def discriminant(y: np.ndarray) -> np.ndarray:
        """The linear function that separates best, such as a difference of two
        entries with the same noise."""
        return y @ weights

    def length(y: np.ndarray) -> np.ndarray:
        return np.square(y).sum(1)

    best = np.argmax(np.abs(shift))
    seen = np.concatenate([[-np.inf], np.unique(outside[:2000, best]), [np.inf]])

    def distance(y: np.ndarray) -> np.ndarray:
        """The distance from values seen without the canary; 0 for coarse noise."""
        entry = y[:, best]
        above = np.searchsorted(seen, entry)
        return np.minimum(seen[above] - entry, entry - seen[above - 1])

    return [projection, discriminant, length, distance]


def _rates(
    right: np.ndarray, wrong: np.ndarray, runs: int
) -> tuple[np.ndarray, np.ndarray]:
    """A lower bound on the probability of being right, and an upper bound on the
    probability of being wrong, after Clopper and Pearson."""
    # An audit relies on two bounds for each of two hypotheses and each delta.
    level = MISTAKE / (4 * len(REACH))
    lower = beta.ppf(level, np.maximum(right, 1), runs - right + 1)
    upper = beta.isf(level, wrong + 1, np.maximum(runs - wrong, 1))
    return np.where(right == 0, 0, lower), np.where(wrong == runs, 1, upper)


def _epsilon(right: np.ndarray, wrong: np.ndarray, delta: float) -> np.ndarray:
    """The least epsilon with `right <= exp(epsilon) * wrong + delta`, at least 0."""
    return np.log(np.maximum((right - delta) / wrong, 1))
