"""Mechanic: what it computes, what it survives, and where it differs from optax."""

import math
import re
from collections.abc import Callable
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
from problems import NUM_STEPS, Problem, PROBLEMS

from contrib_algos import adam, dog, lion, momo, sgd
from contrib_core import (
    AbstractTransform,
    apply_updates,
    as_transform,
    chain,
    Extra,
    masked,
    name_of,
    scale,
    Tree,
    tree,
)
from contrib_core.laws import assert_lawful
from contrib_wrappers import (
    master_weights,
    MechanicState,
    Mechanize,
    mechanize,
    schedule_free,
    split_real_and_imaginary,
)


START = jnp.array([1.0, 2.0, 3.0])

over_problems = pytest.mark.parametrize(
    "problem", PROBLEMS.values(), ids=lambda problem: problem.name
)
over_bases = pytest.mark.parametrize(
    "base", [sgd(1.0), adam(1.0), lion(1.0)], ids=["sgd", "adam", "lion"]
)
over_forms = pytest.mark.parametrize("store_delta", [False, True])


def standard() -> Any:
    """Optax mixes dtypes."""
    return jax.numpy_dtype_promotion("standard")


def descend(
    opt: Any, params: Any, grads: Callable[[Any, Array], Any], num_steps: int
) -> tuple[Any, Any]:
    """Parameters and states after each step, on a leading axis."""

    def step(carry: Any, i: Array) -> Any:
        params, state = carry
        updates, state = opt.update(grads(params, i), state, params)
        carry = apply_updates(params, updates), state
        return carry, carry

    @jax.jit
    def run(params: Any) -> Any:
        start = params, opt.init(params)
        return lax.scan(step, start, jnp.arange(num_steps))[1]

    return run(params)


def last(trajectory: Any) -> Any:
    return jax.tree.map(lambda x: x[-1], trajectory)


def quadratic(x: Array, i: Any) -> Array:
    """The gradient of `sum_of_squares`."""
    del i
    return 2 * x


def sum_of_squares(x: Array) -> Array:
    return jnp.sum(x**2)


# What it computes


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
    """From where that of optax is: where it overshoots, a run doubles the least
    difference in every step, that of optax from itself as well."""
    _, inner = BASES[base]
    theirs = peer.mechanize(inner, *OPTIONS[options])
    ours = mechanize(inner, *OPTIONS[options])

    @jax.jit
    def step(grads: Any, x: Any, state: Any) -> Any:
        found = ours.update(grads, MechanicState(*state), x)
        with standard():
            expected = theirs.update(grads, state, x)
        return tree.add(x, expected[0]), found, expected

    x = jax.tree.map(jnp.asarray, problem.params)
    with standard():
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
    """From the start, by the sum of the base's updates times the scale."""
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
    """A pre-trained model may have been put in place of what `init` saw."""
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
    """Far from the origin and near the start, as they are in float32 at first: that of
    the difference has all digits, the difference of two has two. In 16 bits it is the
    difference itself that is not rounded."""
    rng = np.random.RandomState(0)
    x0, delta, g = rng.standard_normal((3, 2**16))
    x0, x, g = (
        jnp.asarray(leaf, dtype) for leaf in (x0, x0 + total * delta, g - 0.1 * delta)
    )
    opt = mechanize(sgd(1.0), 0.0, s_init=total / 6)
    state = later(opt.init(x0))
    _, state = opt.update(g, state, x)  # Under jit, XLA keeps what it is to round.
    wide = (np.asarray(leaf, np.float64) for leaf in (g, x, x0))
    h = -(lambda g, x, x0: np.dot(g, x - x0))(*wide) / (total + opt.eps)
    np.testing.assert_allclose(np.sqrt(state.v), abs(h), rtol=1e-5)


def later(state: Any) -> Any:
    """As if it had been anchored, and had seen an inner product of 1."""
    state = eqx.tree_at(lambda s: s.count, state, jnp.ones((), jnp.int32))
    return eqx.tree_at(lambda s: s.m, state, jnp.ones(6))


# Defects of optax 0.2.8


@over_forms
def test_optax_0_2_8_stalls_below_the_resolution_and_stored_updates_do_not(store_delta):
    """The metrics tell which: the reward is 0 as long as nothing moves."""

    def run(opt: Any) -> tuple[Any, Any]:
        return last(descend(opt, START, quadratic, 2000))

    with standard():
        theirs, state = run(peer.mechanize(optax.adam(1e-3)))
    np.testing.assert_array_equal(theirs, START)
    opt = mechanize(adam(1e-3), store_delta=store_delta)
    ours, state = run(opt)
    reward = opt.metrics(state)["mechanize/reward"]
    if store_delta:
        assert sum_of_squares(ours) < 1e-2 and reward > 0
    else:
        np.testing.assert_array_equal(ours, START)
        assert reward == 0
    # With the learning rate that the docstring asks for, there is no difference.
    ours, state = run(mechanize(adam(1.0), store_delta=store_delta))
    assert sum_of_squares(ours) < 1e-2
    assert opt.metrics(state)["mechanize/reward"] > 0


@over_forms
@pytest.mark.parametrize("spike", [1e12, 1e30])
@pytest.mark.parametrize("name", ["adam", "lion"])
def test_spike_is_forgotten_where_optax_0_2_8_is_nan(name, spike, store_delta):
    """As soon as the base forgets it: here in some hundreds of steps."""
    signs = jnp.array([1.0, -1.0, 1.0])

    def grads(x: Array, i: Array) -> Array:
        return 2 * x + jnp.where(i == 50, spike * signs, 0)

    def run(opt: Any) -> Array:
        return descend(opt, START, grads, 5000)[0]

    ours, theirs = {
        "adam": (adam(1.0, b2=0.9), optax.adam(1.0, b2=0.9)),
        "lion": (lion(1.0, 0.9, 0.9, 0.0), optax.lion(1.0, 0.9, 0.9, None, 0.0)),
    }[name]
    if spike == 1e30:
        with standard():
            assert np.isnan(run(peer.mechanize(theirs))[-1]).all()
    found = run(mechanize(ours, store_delta=store_delta))
    assert np.isfinite(found).all()
    # At first it goes back to the start, because the scale is small.
    assert sum_of_squares(found[100]) > 10 and sum_of_squares(found[-1]) < 0.2


@over_forms
def test_mixed_precision_trains_where_optax_0_2_8_refuses_it(store_delta: bool):
    params = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.bfloat16)}

    def run(opt: Any) -> tuple[Any, Any]:
        return last(descend(opt, params, lambda x, i: x, 400))

    with standard(), pytest.raises(TypeError, match="the same dtypes"):
        run(peer.mechanize(optax.sgd(1.0)))
    moved, state = run(mechanize(sgd(1.0), s_init=1e-2, store_delta=store_delta))
    assert moved["a"].dtype == jnp.float32 and moved["b"].dtype == jnp.bfloat16
    assert np.abs(moved["a"]).max() < 0.1 and np.abs(np.float32(moved["b"])).max() < 0.1
    statistics = state.r, state.m, state.v, state.s
    assert {(x.shape, str(x.dtype)) for x in statistics} == {((6,), "float32")}


def test_statistics_of_16_bits_are_float32_where_those_of_optax_0_2_8_are_not():
    params = jnp.ones(3, jnp.bfloat16)
    theirs: Any = peer.mechanize(optax.sgd(1.0))
    assert theirs.init(params).v.dtype == jnp.bfloat16
    state: Any = mechanize(sgd(1.0), store_delta=True).init(params)
    dtypes = {str(x.dtype) for x in (state.r, state.m, state.v, state.s, state.delta)}
    assert dtypes == {"float32"} and state.x0.dtype == jnp.bfloat16


def test_first_step_can_be_donated_where_optax_0_2_8_gives_a_buffer_twice():
    def first_step(opt: Any) -> Any:
        def step(params, state):
            updates, state = opt.update(jnp.ones(3), state, params)
            return apply_updates(params, updates), state

        params = 2 * START
        donated = jax.jit(step, donate_argnums=(0, 1))
        return jax.block_until_ready(donated(params, opt.init(params)))

    with standard(), pytest.raises(RuntimeError, match="donate the same buffer twice"):
        first_step(peer.mechanize(optax.sgd(1.0)))
    moved, _ = first_step(mechanize(sgd(1.0)))
    assert (moved < 2 * START).all()


# What it survives


@over_bases
@over_forms
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_gradients_of_one_size_for_ever(size, store_delta, base):
    opt = mechanize(base, store_delta=store_delta)
    signs = jnp.array([1.0, -1.0, 1.0])
    params, states = descend(opt, START, lambda x, i: size * signs, 50)
    for x in jax.tree.leaves(eqx.filter((params, states), eqx.is_inexact_array)):
        assert np.isfinite(x).all()


def test_products_that_overflow_both_ways_count_as_a_loss():
    """1e30 at a distance of 1e12, forwards and backwards: no number, but large."""
    opt = mechanize(scale(0.0))
    state, far = later(opt.init(jnp.zeros(2))), jnp.array([1e12, 1e12])
    updates, new = opt.update(jnp.array([1e30, -1e30]), state, far)
    assert np.isfinite(updates).all()
    np.testing.assert_allclose(new.r, -state.s, rtol=1e-5)  # Clipped at m = 1.
    np.testing.assert_allclose(jnp.sum(new.s), opt.s_init, rtol=1e-4)


def test_rewards_that_overflow_stay_as_large_as_can_be_squared():
    """A gain of 2**48 at a scale of 1e30, on the way that it had always gone."""
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
    """Whose norm the decay is divided by."""
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


# Around and inside of others

WRAPPERS: dict[str, Callable[[AbstractTransform], AbstractTransform]] = {
    "bare": lambda t: t,
    "chain": lambda t: chain(scale(1.0), t),
    "masked": lambda t: masked(t, True),
    "split": split_real_and_imaginary,
    "master_weights": master_weights,
    "schedule_free": lambda t: schedule_free(t, 1.0, base_at="z"),
}


@pytest.mark.one_in(5)
@over_bases
@over_forms
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_trains(wrapper: str, store_delta: bool, base: AbstractTransform):
    opt = WRAPPERS[wrapper](mechanize(base, store_delta=store_delta))
    dtype = {"split": "complex64", "master_weights": "bfloat16"}.get(wrapper, "float32")
    params = {"a": START.astype(dtype), "b": -jnp.ones((), dtype)}
    x, state = last(descend(opt, params, lambda x, i: x, 500))
    point = opt.eval_params(state, x)
    assert tree.norm(point) < 0.2 * tree.norm(params)
    assert opt.metrics(state)["mechanize/step_size"] > 1e-3


@over_bases
def test_raw_models(base: AbstractTransform):
    model = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (32, 2))
    opt = mechanize(base)

    def loss(model: Any) -> Array:
        outputs = jax.vmap(model)(inputs)[:, 0]
        return jnp.mean((outputs - jnp.sin(inputs[:, 0])) ** 2)

    @eqx.filter_jit
    def step(model: Any, state: Any) -> tuple[Any, Any]:
        updates, state = opt.update(eqx.filter_grad(loss)(model), state, model)
        return eqx.apply_updates(model, updates), state

    first, state = loss(model), opt.init(model)
    for _ in range(300):
        model, state = step(model, state)
    assert loss(opt.eval_params(state, model)) < 0.3 * first


class Recording(AbstractTransform[Any]):
    """Descends by `value`, remembers what it was given, and is evaluated at twice the
    parameters."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"value", "grad_fn", "key"})

    def start(self, params: Tree) -> Any:
        return jnp.zeros(()), params, params, jax.random.key(0)

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        seen = extra.value, params, extra.grad_fn(params), extra.key
        return tree.scale(-extra.value, grads), seen

    def eval_point(self, state: Any, params: Tree) -> Tree:
        return tree.scale(2, params)

    def metrics(self, state: Any) -> dict[str, Array]:
        return {"mechanize/step_size": state[0], "recording/value": state[0]}


@over_forms
def test_the_base_sees_all_that_there_is(store_delta: bool):
    opt = mechanize(Recording(), s_init=0.5, num_betas=1, store_delta=store_delta)
    assert opt.needs == {"params", "iterates", "value", "grad_fn", "key"}
    key = jax.random.key(1)
    updates, state = opt.update(
        jnp.ones(3),
        opt.init(START),
        START,
        value=3.0,
        grad_fn=lambda x: 7 * x,
        key=key,
    )
    np.testing.assert_allclose(updates, -1.5 * jnp.ones(3), rtol=1e-6)
    value, params, grads, seen_key = state.base_optimizer_state
    assert value == 3 and seen_key == key
    np.testing.assert_array_equal(params, START)
    np.testing.assert_array_equal(grads, 7 * START)
    np.testing.assert_array_equal(opt.eval_params(state, START), 2 * START)
    metrics = {name: float(x) for name, x in opt.metrics(state).items()}
    assert metrics == {
        "mechanize/step_size": pytest.approx(0.5),
        "mechanize/reward": 0,
        "base/mechanize/step_size": 3,
        "recording/value": 3,
    }


def test_polyak_steps_and_distances_of_the_base():
    def gap(x: Array, i: Any) -> Array:
        return x - 0.5

    opt = mechanize(dog(), store_delta=True)
    x, state = last(descend(opt, START, gap, 500))
    assert np.abs(x - 0.5).max() < 0.1
    # It is shown the parameters that are trained.
    distances = opt.metrics(state)["dog/distance"], jnp.linalg.norm(x - START)
    assert distances[0] >= 0.99 * distances[1]

    opt, x = mechanize(momo(1.0)), START
    state, step = opt.init(x), jax.jit(opt.update)
    for _ in range(300):
        updates, state = step(gap(x, 0), state, x, value=jnp.sum((x - 0.5) ** 2) / 2)
        x = x + updates
    assert np.abs(x - 0.5).max() < 0.1


class Hidden(AbstractTransform[None]):
    """Recovers points of its own from the parameters."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"params", "iterates"})

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return grads, None


@pytest.mark.parametrize(
    "base", [Hidden(), chain(scale(1.0), Hidden()), mechanize(sgd(1.0))]
)
def test_bases_with_points_of_their_own_are_refused(base: AbstractTransform):
    name = re.escape(name_of(base))
    with pytest.raises(ValueError, match=rf"Mechanize\({name}\).*base_at="):
        mechanize(base)


def test_what_a_base_of_optax_requires_is_named():
    opt = mechanize(peer.momo())
    with pytest.raises(ValueError, match="needs `value`: call .*params, value=loss"):
        opt.update(START, opt.init(START), START)


def test_bases_of_optax():
    opt = mechanize(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    assert opt.base_optimizer.needs == frozenset()
    x, _ = last(descend(opt, START, quadratic, 400))
    assert sum_of_squares(x) < 0.1


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

# With a first scale at which decay can be seen.
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
def test_claims(opt: Mechanize):
    """What it claims holds, and of what it does not claim there is a counterexample."""
    assert_lawful(opt, laws=["algebra", "wrapper"])


def test_the_law_of_mechanic():
    assert_lawful(mechanize, declared="mechanic", laws="wrapper")


def test_the_docstring_says_what_16_bits_need():
    assert "contrib_wrappers.master_weights" in (Mechanize.__doc__ or "")
    assert as_transform(mechanize(sgd(1.0))).needs >= {"params", "iterates"}
