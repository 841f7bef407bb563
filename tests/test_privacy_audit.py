"""What an attacker learns from private gradients, and what attacks would reveal.

The attacker knows every example but one, the canary, and tells from what a mechanism
returns whether the canary was there. How often the attacker is right bounds epsilon
from below, and no such bound may be above what `contrib_algos.epsilon` claims. Broken
mechanisms show that the attack is strong enough: it must refute the claim for each of
them. Where a defect is too rare or too small for 400,000 runs to show it, or does no
harm to privacy, another check must find it.
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
from jaxtyping import Array, Bool, Key
from scipy.stats import beta

from contrib_algos import (
    _clip,
    _clipped_grad,
    DPAggregate,
    epsilon,
    GaussianNoise,
    value_and_clipped_grad,
)
from contrib_core import tree


RUNS = 400_000  # With the canary, and as many without it.
MISTAKE = 1e-4  # The probability that any bound of one audit is wrong.
# Where epsilon is audited, as it is claimed at every delta; and the part of the claim
# that an attack on the right code must reach, lest one that finds nothing be taken for
# privacy. At 1e-5, attacks that come near the claim succeed once in 20,000 runs, which
# is too rare. At 0.1 little is lost, and noise that is 10 % less is found.
REACH = {1e-5: 0.45, 1e-2: 0.85, 0.1: 0.92}
SIGMA = 1.0


# What is attacked


@dataclass(frozen=True)
class Scenario:
    """Examples that are known, and one that is to be found out.

    The others are short enough not to be clipped. In every second step the gradient of
    the canary has the other sign, for attackers may choose it.
    """

    canary: Any
    others: Any
    bound: float
    steps: int = 1
    dtype: Any = jnp.float32  # Of what is not complex.

    def batches(self) -> list[Any]:
        """The rows of each step, of which the canary is the last."""

        def leaf(canary: np.ndarray, others: np.ndarray) -> Array:
            rows = np.concatenate([others, canary[None]])
            dtype = jnp.complex64 if np.iscomplexobj(rows) else self.dtype
            return jnp.asarray(rows, dtype)

        canaries = [
            jax.tree.map(lambda x: (-1) ** step * x, self.canary)
            for step in range(self.steps)
        ]
        return [jax.tree.map(leaf, canary, self.others) for canary in canaries]


# A canary with equal norms in both leaves, against an example that is opposed to it and
# just not clipped.
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
    # An entry that is not a number, beside one that must not be seen.
    "nan": Scenario({"a": np.array([np.nan, 1e6])}, {"a": np.full((3, 2), 0.1)}, 1.0),
    # Three times the bound, though in float16 the squares of its entries are 0.
    "small": Scenario(
        {"a": np.full(4, 1.5e-4)}, {"a": np.full((3, 4), 1e-5)}, 1e-4, dtype=jnp.float16
    ),
    # The others add up to 1027.5, in bfloat16 to 1024; and 1028.5 would be 1032.
    "many": Scenario(
        {"a": np.array([1e6, 0])}, {"a": np.tile([0.5, 0], (2055, 1))}, bound=1.0
    ),
}

Mechanism: TypeAlias = Callable[[Scenario, Key[Array, ""], Bool[Array, ""]], list[Any]]
"""What the steps of a scenario return, with the canary or without it."""


def aggregate(
    scenario: Scenario, key: Key[Array, ""], is_in: Bool[Array, ""]
) -> list[Any]:
    """By `DPAggregate`, with a row of zeros in the place of a missing canary."""
    batches = scenario.batches()

    def leaf(rows: Array) -> Array:
        return rows.at[-1].set(jnp.where(is_in, rows[-1], 0))

    rule = DPAggregate(scenario.bound, SIGMA, key)
    return _updates(rule, jax.tree.map(leaf, batches), _params(batches))


def clipped_grad(
    scenario: Scenario, key: Key[Array, ""], is_in: Bool[Array, ""]
) -> list[Any]:
    """By `value_and_clipped_grad` and `GaussianNoise`, with a mask that hides a missing
    canary."""
    batches = scenario.batches()
    params = _params(batches)
    mask = jnp.ones(len(jax.tree.leaves(batches)[0]), bool).at[-1].set(is_in)
    sums = value_and_clipped_grad(_linear, scenario.bound, microbatch_size=1000)
    clipped = [sums(params, batch, mask) for batch in batches]
    return _updates(GaussianNoise(SIGMA, key), clipped, params)


MECHANISMS: dict[str, Mechanism] = {
    "aggregate": aggregate,
    "clipped_grad": clipped_grad,
}


def _params(batches: list[Any]) -> Any:
    return jax.tree.map(lambda rows: jnp.zeros_like(rows[0]), batches[0])


def _linear(params: Any, example: Any) -> Array:
    """A loss whose gradient is the example."""
    parts = jax.tree.map(lambda w, x: jnp.sum(w * x).real, params, example)
    return ft.reduce(jnp.add, jax.tree.leaves(parts))


def _updates(rule: Any, batches: list[Any], params: Any) -> list[Any]:
    state, updates = rule.init(params), []
    for batch in batches:
        update, state = rule.update(batch, state, params)
        updates.append(update)
    return updates


# The attack


def outputs(
    mechanism: Mechanism, scenario: Scenario, runs: int = RUNS
) -> tuple[np.ndarray, np.ndarray]:
    """What each run returns with the canary, and without it.

    Rows of real coordinates, which are the noise in units of its standard deviation
    where there is no canary: of the sum, less what all know of it.
    """
    batches = scenario.batches()
    others = jax.tree.map(lambda rows: rows[:-1].sum(0), batches)
    number = len(jax.tree.leaves(batches)[0])
    scale = number / (SIGMA * scenario.bound)

    # Compiled with fewer optimisations, which take longer than the runs they are for.
    @ft.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    @ft.partial(jax.vmap, in_axes=(0, None))
    def run(key: Key[Array, ""], is_in: Bool[Array, ""]) -> Array:
        means = _coordinates(mechanism(scenario, key, is_in))
        noise = scale * (means - _coordinates(others) / number)
        # As users of optax get rid of NaN.
        return jnp.nan_to_num(noise)

    # No run with the canary has the key of one without it.
    inside, outside = jax.random.split(jax.random.key(0), (2, runs))
    return (
        np.asarray(run(inside, jnp.array(True)), np.float64),
        np.asarray(run(outside, jnp.array(False)), np.float64),
    )


def _coordinates(x: Any) -> Array:
    """A tree as a vector of float32, with two coordinates for a complex number."""
    parts = []
    for leaf in jax.tree.leaves(x):
        parts += [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    return jnp.concatenate([part.astype(jnp.float32).ravel() for part in parts])


@dataclass(frozen=True)
class Audit:
    """Lower bounds on epsilon, and what is claimed, at each delta."""

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

    A test finds a hypothesis, of which there are two, if a statistic is above or below
    a threshold. One half of the runs chooses the best test of each hypothesis for each
    delta. The other half says how often it is right, and how often it is wrong.
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
    """What the attacker looks at, having seen some runs of both kinds."""
    shift = inside.mean(0) - outside.mean(0)
    spread = np.cov(inside.T) + np.cov(outside.T)
    # Where noise cancels, only rounding is left, and it may be 0.
    weights = np.linalg.solve(spread + 1e-12 * np.eye(len(spread)), shift)

    def projection(y: np.ndarray) -> np.ndarray:
        """On the direction of the canary."""
        return y @ shift

    def discriminant(y: np.ndarray) -> np.ndarray:
        """The linear function that tells best, such as a difference of two entries
        that have the same noise."""
        return y @ weights

    def length(y: np.ndarray) -> np.ndarray:
        return np.square(y).sum(1)

    best = np.argmax(np.abs(shift))
    seen = np.concatenate([[-np.inf], np.unique(outside[:2000, best]), [np.inf]])

    def distance(y: np.ndarray) -> np.ndarray:
        """From what an entry was without the canary: 0 if noise has few values."""
        entry = y[:, best]
        above = np.searchsorted(seen, entry)
        return np.minimum(seen[above] - entry, entry - seen[above - 1])

    return [projection, discriminant, length, distance]


def _rates(
    right: np.ndarray, wrong: np.ndarray, runs: int
) -> tuple[np.ndarray, np.ndarray]:
    """A lower bound on the probability to be right, and an upper one on that to be
    wrong, after Clopper and Pearson."""
    # Two for each of the two hypotheses, and each delta, are all that is relied on.
    level = MISTAKE / (4 * len(REACH))
    lower = beta.ppf(level, np.maximum(right, 1), runs - right + 1)
    upper = beta.isf(level, wrong + 1, np.maximum(runs - wrong, 1))
    return np.where(right == 0, 0, lower), np.where(wrong == runs, 1, upper)


def _epsilon(right: np.ndarray, wrong: np.ndarray, delta: float) -> np.ndarray:
    """The least epsilon with `right <= exp(epsilon) * wrong + delta`, at least 0."""
    return np.log(np.maximum((right - delta) / wrong, 1))


# Exact checks, of what an audit cannot see


def check_far_noise():
    """No noise is impossible below 10 standard deviations."""

    def largest(key: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        # What there is of float32, which has no number between 1 - 6e-8 and 1.
        return jnp.full(shape, 5.4, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", largest)
        _, noise = outputs(aggregate, SCENARIOS["long"], runs=1)
    assert noise.min() > 10


def check_absence():
    """An example that adds nothing changes nothing, bit by bit."""
    for mechanism in MECHANISMS.values():
        run = jax.jit(ft.partial(mechanism, SCENARIOS["nan"], jax.random.key(0)))
        inside, outside = run(jnp.array(True)), run(jnp.array(False))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, inside, outside))


def check_norms():
    """What is added for an example has at most the norm 1, and not much less."""
    grads = 3 * jax.random.normal(jax.random.key(0), (10_000, 1, 3))
    clipped = value_and_clipped_grad(_linear, 1.0)
    sums = jax.jit(jax.vmap(lambda g: clipped(jnp.zeros(3), g).sum))(grads)
    norms, lengths = (
        np.linalg.norm(np.asarray(x, np.float64), axis=1) for x in (sums, grads[:, 0])
    )
    assert norms.max() <= 1
    assert (norms / np.minimum(lengths, 1)).min() > 1 - 2e-6


def check_sensitivity():
    """One example among 4096 changes their sum by at most the norm 1."""
    key, other = jax.random.split(jax.random.key(0))
    others = 1 + jax.random.normal(key, (4095, 3))
    clipped = value_and_clipped_grad(_linear, 1.0, microbatch_size=512)

    @jax.jit
    @ft.partial(jax.vmap, in_axes=(0, None))
    def run(canary: Array, is_in: Array) -> Any:
        batch = jnp.concatenate([others, 100 * canary[None]])
        mask = jnp.ones(4096, bool).at[-1].set(is_in)
        result = clipped(jnp.zeros(3), batch, mask)
        return result.sum, result.rest

    canaries = jax.random.normal(other, (16, 3))
    inside, outside = (
        sum(np.asarray(part, np.float64) for part in run(canaries, jnp.array(is_in)))
        for is_in in (True, False)
    )
    assert np.linalg.norm(inside - outside, axis=1).max() <= 1


CHECKS = [check_far_noise, check_absence, check_norms, check_sensitivity]


# What must be found


@dataclass(frozen=True)
class Mutant:
    """`apply` breaks the code, which `check` must find; without one, an audit of
    `mechanism` in `scenario`: as a claim that is refuted, or if there is `excess`
    noise, as one that is not nearly reached."""

    apply: Callable[[pytest.MonkeyPatch], None]
    scenario: str = "long"
    mechanism: str = "aggregate"
    excess: bool = False
    check: Callable[[], None] | None = None


MUTANTS: dict[str, Mutant] = {}


def mutant(**how: Any) -> Callable[..., Any]:
    """Registers the decorated function as a mutant that must be found."""

    def register(apply: Callable[[pytest.MonkeyPatch], None]) -> Callable[..., None]:
        MUTANTS[apply.__name__] = Mutant(apply, **how)
        return apply

    return register


def _step_sees(
    patch: pytest.MonkeyPatch, field: str, change: Callable[..., Any]
) -> None:
    """Has `GaussianNoise.step` see another value of a field of the rule, the clipped
    sum or the state: what `change` makes of these three."""
    step = GaussianNoise.step

    def broken(self: Any, grads: Any, state: Any, params: Any, extra: Any) -> Any:
        value = change(self, grads, state)
        rule, clipped, state = (
            _with(x, field, value) if hasattr(x, field) else x
            for x in (self, grads, state)
        )
        return step(rule, clipped, state, params, extra)

    patch.setattr(GaussianNoise, "step", broken)


def _with(x: Any, field: str, value: Any) -> Any:
    return eqx.tree_at(
        lambda x: getattr(x, field), x, value, is_leaf=lambda x: x is None
    )


# Noise


@mutant()
def noise_is_a_tenth_less(patch: pytest.MonkeyPatch):
    """Its standard deviation is 0.9 times what is claimed."""
    _step_sees(
        patch,
        "noise_multiplier",
        lambda rule, clipped, state: 0.9 * rule.noise_multiplier,
    )


@mutant()
def noise_forgets_the_bound(patch: pytest.MonkeyPatch):
    """Its standard deviation is sigma, and not sigma times the bound."""
    _step_sees(
        patch,
        "l2_norm_clip",
        lambda rule, clipped, state: jnp.ones_like(clipped.l2_norm_clip),
    )


@mutant()
def noise_is_divided_twice(patch: pytest.MonkeyPatch):
    """That of the mean is added to the sum, which is then divided."""
    _step_sees(
        patch,
        "noise_multiplier",
        lambda rule, clipped, state: rule.noise_multiplier / len(clipped.norms),
    )


@mutant(excess=True)
def noise_is_added_to_the_mean(patch: pytest.MonkeyPatch):
    """That of the sum, so that it is private and of no use."""
    _step_sees(
        patch,
        "noise_multiplier",
        lambda rule, clipped, state: rule.noise_multiplier * len(clipped.norms),
    )


@mutant()
def noise_ignores_the_key(patch: pytest.MonkeyPatch):
    """It is that of a key which everybody knows, in every run."""
    _step_sees(
        patch, "rng_key", lambda rule, clipped, state: jnp.zeros_like(state.rng_key)
    )


@mutant(scenario="steps")
def steps_share_noise(patch: pytest.MonkeyPatch):
    """The key does not depend on the step, so that differences have no noise."""
    _step_sees(patch, "count", lambda rule, clipped, state: jnp.zeros_like(state.count))


@mutant()
def leaves_share_noise(patch: pytest.MonkeyPatch):
    """The key does not depend on the leaf, so that differences have no noise."""
    normal_like = tree.normal_like
    patch.setattr(
        tree,
        "normal_like",
        lambda x, key: jax.tree.map(lambda leaf: normal_like(leaf, key), x),
    )


@mutant()
def scalars_get_no_noise(patch: pytest.MonkeyPatch):
    """As biases are left out of weight decay."""
    normal_like = tree.normal_like

    def broken(x: Any, key: Any) -> Any:
        z = normal_like(x, key)
        return jax.tree.map(lambda z: z if z.ndim else jnp.zeros_like(z), z)

    patch.setattr(tree, "normal_like", broken)


@mutant(scenario="complex")
def complex_noise_has_half_the_variance(patch: pytest.MonkeyPatch):
    """As `jax.random.normal` has it, whose complex numbers have variance 1."""
    normal_like = tree.normal_like
    patch.setattr(
        tree, "normal_like", lambda x, key: tree.scale(0.5**0.5, normal_like(x, key))
    )


@mutant()
def noise_is_bfloat16(patch: pytest.MonkeyPatch):
    """It has few values, which a sum with a canary does not have."""
    _draw_with(
        patch,
        lambda key, x: jax.random.normal(key, x.shape, jnp.bfloat16).astype(x.dtype),
    )


@mutant(check=check_far_noise)
def noise_ends(patch: pytest.MonkeyPatch):
    """It is one normal number of float32: at 5.4 sigma, once in 1e7 draws."""
    _draw_with(patch, lambda key, x: jax.random.normal(key, x.shape, x.dtype))


def _draw_with(patch: pytest.MonkeyPatch, draw: Callable[..., Array]) -> None:
    def normal_like(x: Any, key: Any) -> Any:
        leaves, structure = jax.tree.flatten(x)
        keys = jax.random.split(key, len(leaves))
        return structure.unflatten(map(draw, keys, leaves))

    patch.setattr(tree, "normal_like", normal_like)


# What depends on who is there


@mutant(mechanism="clipped_grad")
def mean_is_of_those_kept(patch: pytest.MonkeyPatch):
    """It is divided by a number that is not public."""
    _step_sees(
        patch,
        "normalize_by",
        lambda rule, clipped, state: jnp.count_nonzero(clipped.norms),
    )


@mutant(check=check_absence)
def key_depends_on_the_mask(patch: pytest.MonkeyPatch):
    """It counts those kept, which who does not have the key cannot see."""
    _step_sees(
        patch,
        "count",
        lambda rule, clipped, state: state.count + jnp.count_nonzero(clipped.norms),
    )


# Clipping


@mutant(mechanism="clipped_grad")
def nothing_is_clipped(patch: pytest.MonkeyPatch):
    """One example may add any number."""
    clip = _clip.clip
    patch.setattr(_clip, "clip", lambda g, bound, keep=True: clip(g, 1e30, keep))


@mutant(mechanism="clipped_grad")
def leaves_are_clipped_apart(patch: pytest.MonkeyPatch):
    """The norm of an example is the bound times the root of the number of leaves."""
    clip = _clip.clip

    def broken(g: Any, bound: Any, keep: Any = True) -> Any:
        clipped = jax.tree.map(lambda leaf: clip(leaf, bound, keep)[0], g)
        return clipped, clip(g, bound, keep)[1]

    patch.setattr(_clip, "clip", broken)


@mutant(mechanism="clipped_grad")
def the_sum_is_clipped(patch: pytest.MonkeyPatch):
    """Instead of each example, so that one may turn it around."""
    right = _clip.clipped_rows

    def broken(grads: Any, bound: Any, mask: Any = None) -> Any:
        mask = jnp.ones(len(jax.tree.leaves(grads)[0]), bool) if mask is None else mask
        kept, norms = right(grads, 1e30, mask)
        clipped, _ = _clip.clip(jax.tree.map(lambda rows: rows.sum(0), kept), bound)
        rows = jax.tree.map(
            lambda x, rows: jnp.zeros_like(rows).at[0].set(x), clipped, kept
        )
        return rows, norms

    for module in (_clip, _clipped_grad):
        patch.setattr(module, "clipped_rows", broken)


@mutant(mechanism="clipped_grad", scenario="nan")
def nan_is_not_clipped(patch: pytest.MonkeyPatch):
    """No comparison with the norm is true, and users make 0 of NaN."""

    def factor(g: Any, bound: Any) -> Any:
        norm = tree.norm(g)
        return jnp.where(norm > bound, bound / norm, 1)

    _clip_with(patch, factor)


@mutant(scenario="small")
def norm_is_float16(patch: pytest.MonkeyPatch):
    """It is 0 for short examples, so that these are not clipped."""

    def factor(g: Any, bound: Any) -> Any:
        # What is below the normal numbers is 0, as on many devices.
        squares = lax.reduce_precision(_coordinates(g) ** 2, 5, 10)
        return jnp.minimum(1, bound / jnp.sqrt(squares.sum()))

    _clip_with(patch, factor)


@mutant(check=check_norms)
def clip_has_no_margin(patch: pytest.MonkeyPatch):
    """Rounding makes the norm of an example more than the bound, by 1e-7."""
    _clip_with(patch, lambda g, bound: jnp.minimum(1, bound / tree.norm(g)))


def _clip_with(patch: pytest.MonkeyPatch, factor: Callable[..., Any]) -> None:
    def clip(g: Any, bound: Any, keep: Any = True) -> Any:
        g = tree.widen(g)
        clipped = tree.where(jnp.asarray(keep), tree.scale(factor(g, bound), g), 0)
        return clipped, jnp.where(keep, tree.norm(g), 0)

    patch.setattr(_clip, "clip", clip)


# Sums


@mutant(scenario="many")
def the_sum_is_bfloat16(patch: pytest.MonkeyPatch):
    """One example may change how it is rounded."""
    _round_with(patch, lambda x: lax.reduce_precision(x, 8, 7))


@mutant(check=check_sensitivity)
def the_sum_has_no_rest(patch: pytest.MonkeyPatch):
    """It is rounded in float32, by 1e-4 of the bound."""
    _round_with(patch, lambda x: x)


def _round_with(patch: pytest.MonkeyPatch, fn: Callable[..., Array]) -> None:
    def sum_rows(rows: Any) -> Any:
        return tree.twice(jax.tree.map(lambda x: fn(x.sum(0)), rows))

    def add_pairs(x: Any, y: Any) -> Any:
        return tree.twice(jax.tree.map(lambda a, b: fn(a + b), x[0], y[0]))

    patch.setattr(tree, "sum_rows", sum_rows)
    patch.setattr(tree, "add_pairs", add_pairs)


# Tests


def _sample(names: Any, *sample: str) -> list[Any]:
    """All of them, of which those not in the sample are thorough."""
    return [
        pytest.param(name, marks=() if name in sample else pytest.mark.thorough)
        for name in names
    ]


# Where the canary adds nothing there is nothing to be found, as `check_absence` shows.
SEEN = [name for name in SCENARIOS if name != "nan"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("scenario", _sample(SEEN, "long"))
def test_no_attack_refutes_the_claim(scenario: str, mechanism: str):
    result = audit(MECHANISMS[mechanism], SCENARIOS[scenario])
    assert not result.refuted, result
    assert result.tight, result


@pytest.mark.parametrize("check", CHECKS)
def test_exact_checks_hold(check: Callable[[], None]):
    check()


@pytest.mark.parametrize(
    "name",
    _sample(
        MUTANTS,
        *("noise_is_a_tenth_less", "nan_is_not_clipped"),
        *(name for name, case in MUTANTS.items() if case.check),
    ),
)
def test_mutant_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    case = MUTANTS[name]
    case.apply(monkeypatch)
    if case.check:
        with pytest.raises(AssertionError):
            case.check()
        return
    result = audit(MECHANISMS[case.mechanism], SCENARIOS[case.scenario])
    assert result.refuted != case.excess, result
    assert result.tight != case.excess, result
