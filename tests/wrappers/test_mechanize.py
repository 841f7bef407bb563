"""Mechanic: its steps, extreme inputs, and its hyperparameters."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jaxtyping import Array
from optax import contrib as peer
from support.descent import descend, last, standard_promotion, sum_of_squares
from support.mechanic import over_bases, over_forms, START
from support.problems import NUM_STEPS, Problem, PROBLEMS

from contrib_algos import adam, lion, momo, sgd
from contrib_core import AbstractTransform, Extra, scale, tree
from contrib_laws import assert_lawful
from contrib_wrappers import MechanicState, Mechanize, mechanize


over_problems = pytest.mark.parametrize(
    "problem", PROBLEMS.values(), ids=lambda problem: problem.name
)

# Steps

BASES: dict[str, tuple[AbstractTransform, Any]] = {
    "sgd": (sgd(1.0), optax.sgd(1.0)),
    "momentum": (sgd(0.3, 0.9), optax.sgd(0.3, 0.9)),
    "adam": (adam(1.0), optax.adam(1.0)),
    "lion": (lion(0.5), optax.lion(0.5)),
}

OPTIONS: dict[str, tuple[Any, ...]] = {
    "default": (),
    "weight_decay": (0.5,),
    "without-decay": (0.0,),
    "nondefault": (0.1, 1e-4, 1e-3, 3),
    "one-beta": (0.01, 1e-8, 1e-2, 1),
}

PAIRS = [
    *((base, options) for base in BASES for options in ("default", "nondefault")),
    *(("adam", options) for options in ("weight_decay", "without-decay", "one-beta")),
]


@pytest.mark.one_in(3)
@pytest.mark.usefixtures("x64")
@over_problems
@pytest.mark.parametrize("base, options", PAIRS)
def test_every_step_is_that_of_optax(base: str, options: str, problem: Problem):
    """Each step starts where optax is. Where Mechanic overshoots, a run doubles the
    least difference in every step, also between two runs of optax."""
    _, inner = BASES[base]
    theirs = peer.mechanize(inner, *OPTIONS[options])
    ours = mechanize(inner, *OPTIONS[options])

    @jax.jit
    def step(grads: Any, x: Any, state: Any) -> Any:
        found = ours.update(grads, MechanicState(*state), x)
        with standard_promotion():
            expected = theirs.update(grads, state, x)
        return tree.add(x, expected[0]), found, expected

    x = jax.tree.map(jnp.asarray, problem.params)
    with standard_promotion():
        state = theirs.init(x)
    points, steps = [], []
    for i in range(NUM_STEPS):
        _, grads = problem.value_and_grad(x, i)
        x, *both = step(grads, x, state)
        state = both[1][1]
        points.append(x)
        steps.append(
            [(u, {name: getattr(s, name) for name in "rmvs"}) for u, s in both]
        )
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], problem.params)
    (u, found), (expected_u, expected) = stacked(steps)
    moved = tree.max_abs(tree.sub(stacked(points), start))
    assert moved > 0.1 and tree.max_abs(tree.sub(u, expected_u)) <= 1e-12 * moved
    for name in "rmvs":
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-9, err_msg=f"{name} at a step"
        )


def stacked(steps: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)


def by_the_book(
    state: Any, x: Any, g: Any, decay: float, eps: float, s_init: float, num_betas: int
) -> dict[str, Any]:
    """A step of gradient descent in NumPy, with the sum of updates stored."""
    r, m, v, s, x0, delta = (
        jax.tree.map(np.asarray, getattr(state, name))
        for name in ("r", "m", "v", "s", "x0", "delta")
    )
    betas = 1 - 0.1 ** np.arange(1, num_betas + 1)

    def dot(a: Any, b: Any) -> float:
        return sum(np.sum(a[k] * b[k]) for k in a)

    c = decay * s.sum() * np.sqrt(dot(g, g)) / (np.sqrt(dot(x, x)) + eps)
    h = -dot({k: g[k] + c * x[k] for k in g}, delta)
    r = betas * r + np.clip(h, -m, m) * s
    m = np.maximum(betas * m, abs(h) + eps)
    v = betas**2 * v + h**2
    s = (s_init / num_betas * m + np.maximum(r, 0)) / (np.sqrt(v) + eps)
    delta = {k: delta[k] - g[k] for k in g}
    new_x = {k: x0[k] + s.sum() * delta[k] for k in g}
    return {"r": r, "m": m, "v": v, "s": s, "delta": delta, "x": new_x}


@pytest.mark.usefixtures("x64")
@over_problems
@pytest.mark.parametrize("options", [(0.01, 1e-8, 1e-6, 6), (0.5, 1e-3, 1e-2, 3)])
def test_stored_sum_of_updates(options: tuple[Any, ...], problem: Problem):
    opt = mechanize(sgd(1.0), *options, store_delta=True)
    step = jax.jit(opt.update)
    x = jax.tree.map(jnp.asarray, problem.params)
    state = opt.init(x)
    found, expected = [], []
    for i in range(NUM_STEPS):
        _, grads = problem.value_and_grad(x, i)
        expected.append(by_the_book(state, x, grads, *options))
        updates, state = step(grads, state, x)
        x = {name: x[name] + updates[name] for name in x}
        parts = {name: getattr(state, name) for name in ("r", "m", "v", "s", "delta")}
        found.append(parts | {"x": x})
    steps = stacked(found), stacked(expected)
    for name in steps[0]:
        for a, b in zip(*(jax.tree.leaves(s[name]) for s in steps), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=name)
    assert tree.max_abs(tree.sub(x, state.x0)) > 0.1


@over_bases
@over_forms
def test_the_parameters_are_on_the_line(store_delta: bool, base: AbstractTransform):
    """They are the start plus the scale times the sum of the base's updates."""
    opt = mechanize(base, s_init=1e-2, store_delta=store_delta)

    def step(carry, _):
        x, state, delta = carry
        u, _ = base.step(2 * x, state.base_optimizer_state, x, Extra())
        total = jnp.sum(state.s)
        kept = 1.0 if store_delta else total / (total + opt.eps)
        delta = kept * delta + u
        updates, state = opt.update(2 * x, state, x)
        carry = x + updates, state, delta
        return carry, (x + updates, START + jnp.sum(state.s) * delta)

    carry = START, opt.init(START), jnp.zeros(3)
    _, (found, expected) = jax.jit(lambda c: lax.scan(step, c, length=60))(carry)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(found[-1] - START).max() > 0.1


@over_forms
def test_the_start_is_where_the_first_step_is_taken(store_delta: bool):
    """A pre-trained model may have replaced the parameters that `init` saw."""
    opt = mechanize(sgd(1.0), s_init=1e-2, store_delta=store_delta)
    state = jax.jit(opt.init)(jnp.zeros(3))
    step = jax.jit(opt.update)
    updates, state = step(2 * START, state, START)
    np.testing.assert_array_equal(state.x0, START)
    moved = START + updates
    np.testing.assert_allclose(moved, START - 1e-2 * 2 * START, rtol=1e-5)
    _, state = step(2 * moved, state, moved)
    np.testing.assert_array_equal(state.x0, START)


@pytest.mark.parametrize(
    "dtype, total", [("float32", 1e-6), ("float32", 1e-4), ("bfloat16", 1.0)]
)
def test_inner_products_do_not_cancel(dtype: str, total: float):
    """Far from the origin and near the start, the inner product with a difference has
    all digits, and the difference of two inner products has two. In 16 bits the
    difference itself is not rounded."""
    rng = np.random.RandomState(0)
    x0, delta, g = rng.standard_normal((3, 2**16))
    x0, x, g = (
        jnp.asarray(leaf, dtype) for leaf in (x0, x0 + total * delta, g - 0.1 * delta)
    )
    opt = mechanize(sgd(1.0), 0.0, s_init=total / 6)
    state = later(opt.init(x0))
    _, state = opt.update(g, state, x)  # Under jit, XLA skips some rounding.
    wide = (np.asarray(leaf, np.float64) for leaf in (g, x, x0))
    h = -(lambda g, x, x0: np.dot(g, x - x0))(*wide) / (total + opt.eps)
    np.testing.assert_allclose(np.sqrt(state.v), abs(h), rtol=1e-5)


def later(state: Any) -> Any:
    """A later state: its start is fixed, and it has seen an inner product of 1."""
    state = eqx.tree_at(lambda s: s.count, state, jnp.ones((), jnp.int32))
    return eqx.tree_at(lambda s: s.m, state, jnp.ones(6))


# Extreme inputs


@over_bases
@over_forms
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_constant_gradients_of_any_size_stay_finite(size, store_delta, base):
    opt = mechanize(base, store_delta=store_delta)
    signs = jnp.array([1.0, -1.0, 1.0])
    params, states = descend(opt, START, lambda x, i: size * signs, 50)
    for x in jax.tree.leaves(eqx.filter((params, states), eqx.is_inexact_array)):
        assert np.isfinite(x).all()


def test_products_that_overflow_both_ways_count_as_a_loss():
    """Gradients of 1e30 and -1e30 at a distance of 1e12: the sum is NaN."""
    opt = mechanize(scale(0.0))
    state, far = later(opt.init(jnp.zeros(2))), jnp.array([1e12, 1e12])
    updates, new = opt.update(jnp.array([1e30, -1e30]), state, far)
    assert np.isfinite(updates).all()
    np.testing.assert_allclose(new.r, -state.s, rtol=1e-5)  # Clipped at m = 1.
    np.testing.assert_allclose(jnp.sum(new.s), opt.s_init, rtol=1e-4)


def test_rewards_that_overflow_stay_as_large_as_can_be_squared():
    """A gain of 2**48 at a scale of 1e30, in the direction of all earlier steps."""
    opt = mechanize(scale(0.0), weight_decay=0.0)
    state = later(opt.init(jnp.zeros(2)))
    large = tuple(jnp.full_like(state.r, x) for x in (1e38, 2.0**48, 1e30))
    state = eqx.tree_at(lambda state: (state.r, state.m, state.s), state, large)
    updates, new = opt.update(jnp.full(2, -1e20), state, jnp.full(2, 1e31))
    assert all(np.isfinite(x).all() for x in (updates, new.m, new.v, new.s))
    np.testing.assert_allclose(new.r, 2.0**48)


def test_decay_does_not_hide_gains_of_gradients_whose_squares_overflow():
    opt = mechanize(scale(0.0))
    state, ahead = later(opt.init(jnp.zeros(2))), jnp.ones(2)
    _, new = opt.update(jnp.full(2, -1e25), state, ahead)
    np.testing.assert_allclose(new.r, state.s, rtol=1e-5)


@over_bases
def test_parameters_of_zero(base: AbstractTransform):
    """Decay divides by the norm of the parameters, which is 0 here."""
    opt = mechanize(base, weight_decay=0.5)
    x, state = last(descend(opt, jnp.zeros(3), lambda x, i: x - 0.5, 400))
    assert np.abs(x - 0.5).max() < 0.1
    assert np.isfinite(jnp.stack([state.r, state.m, state.v, state.s])).all()


def test_empty_trees_and_leaves():
    for params in ({}, {"a": None}, {"a": jnp.zeros((0, 2)), "b": jnp.ones(())}):
        opt = mechanize(sgd(1.0))
        state = opt.init(params)
        updates, state = opt.update(params, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert np.isfinite(state.s).all()


# Hyperparameters

VALUES: dict[str, float] = {"weight_decay": 0.25, "eps": 0.125, "s_init": 0.0625}


@eqx.filter_jit
def final_loss(values: dict[str, Any], **options: Any) -> Array:
    opt = mechanize(adam(0.5), **values, **options)
    start = jnp.asarray([1.0, 2.0, 3.0])
    x, _ = descend(opt, start, lambda x, i: x - 0.3, 8)
    return sum_of_squares(x[-1])


def test_arrays_of_any_type_are_as_numbers():
    expected = final_loss(VALUES)
    for typed in (jnp.float32, jnp.bfloat16, jnp.asarray):
        actual = final_loss({k: typed(v) for k, v in VALUES.items()})
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("name", VALUES)
def test_a_sweep_is_the_loop_over_its_values(name: str):
    values = VALUES[name] * jnp.array([1.0, 0.5, 0.25])

    def run(value: Array) -> Array:
        return final_loss(VALUES | {name: value})

    swept = eqx.filter_vmap(run)(values)
    np.testing.assert_allclose(swept, [run(v) for v in values], rtol=1e-5)
    assert len(set(np.asarray(swept).tolist())) == 3


@pytest.mark.usefixtures("x64")
@over_forms
def test_losses_are_differentiable_in_every_hyperparameter(store_delta: bool):
    def loss(values: dict[str, Any]) -> Array:
        return final_loss(values, store_delta=store_delta)

    arrays = {k: jnp.asarray(v) for k, v in VALUES.items()}
    derivatives, step = eqx.filter_jit(jax.grad(loss))(arrays), 1e-6
    for k, value in arrays.items():
        difference = loss(arrays | {k: value + step}) - loss(arrays | {k: value - step})
        np.testing.assert_allclose(
            derivatives[k], difference / (2 * step), rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize(
    "name, value",
    [
        ("weight_decay", -0.1),
        ("eps", 0.0),
        ("s_init", 0.0),
        ("s_init", math.nan),
        ("num_betas", 0),
        ("num_betas", 2.5),
    ],
)
def test_numbers_out_of_range_are_refused(unchecked, name: str, value: Any):
    with pytest.raises(ValueError, match=f"Mechanize: `{name}` must be"):
        mechanize(sgd(1.0), **{name: value})


# Laws

# A first scale that is large enough to show decay.
VISIBLE: dict[str, Any] = {"weight_decay": 0.5, "s_init": 0.1}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "opt",
    [
        mechanize(sgd(0.1), **VISIBLE),
        mechanize(adam(0.1), **VISIBLE),
        mechanize(lion(0.1, weight_decay=0.0), 0.0),
        mechanize(momo(math.inf), 0.0),
        mechanize(adam(1.0), 0.0, num_betas=1),
    ],
    ids=["sgd-decay", "adam-decay", "lion", "polyak", "one-beta"],
)
def test_claims_are_true_and_complete(opt: Mechanize):
    """Every claimed law holds, and every other law has a counterexample."""
    assert_lawful(opt, laws=["algebra", "wrapper"])


def test_the_law_of_mechanic():
    assert_lawful(mechanize, declared="scaled_sum", laws="wrapper")


def test_the_docstring_says_what_16_bits_need():
    assert "contrib_wrappers.master_weights" in (Mechanize.__doc__ or "")
    opt = mechanize(sgd(1.0))
    assert opt.needs == {"params"} and opt.owns_iterates
