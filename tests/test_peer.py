"""What is fixed here that is broken in `optax.contrib` 0.2.8.

Each test runs both: it fails if ours has the defect, and if optax lost it, so that the
documentation can be brought up to date.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jaxtyping import Array
from optax import contrib as peer
from problems import references

from contrib_algos import cocob, dadapt_adamw, dog, momo, momo_adam, prodigy, sgd
from contrib_core import apply_updates
from contrib_wrappers import (
    schedule_free,
    schedule_free_eval_params,
    schedule_free_sgd,
    split_real_and_imaginary,
)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


START = jnp.array([1.0, 2.0, 3.0])


def run(
    opt: Any, grads: Callable[[Any, Any], Any], num_steps: int, params: Any = START
) -> tuple[Any, Any]:
    """The parameters after each step, and the last state; not by `lax.scan`, which
    refuses states that drift."""

    @jax.jit
    def step(params, state, i):
        updates, state = opt.update(grads(params, i), state, params)
        return optax.apply_updates(params, updates), state

    state, points = opt.init(params), []
    for i in range(num_steps):
        params, state = step(params, state, i)
        points.append(params)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *points), state


def zero_at_first(x: Array, i: Array) -> Array:
    return jnp.where(i == 0, 0.0, 2 * x)


def gradient(x: Array, i: Array) -> Array:
    del i
    return 2 * x


def from_zero(count: Any) -> Array:
    return jnp.minimum(1.0, count / 3)


def test_prodigy_survives_a_zero_first_gradient_where_optax_0_2_8_is_nan():
    theirs, _ = run(peer.prodigy(), zero_at_first, 300)
    assert np.isnan(theirs).all()
    ours, _ = run(prodigy(), zero_at_first, 300)
    assert np.isfinite(ours).all() and jnp.sum(ours[-1] ** 2) < 0.1


def test_prodigy_survives_warmup_from_0_where_optax_0_2_8_is_nan():
    theirs, _ = run(peer.prodigy(from_zero), gradient, 300)
    assert np.isnan(theirs).all()
    ours, _ = run(prodigy(from_zero), gradient, 300)
    assert np.isfinite(ours).all() and jnp.sum(ours[-1] ** 2) < 0.1


def test_dog_starts_after_a_zero_first_gradient_where_optax_0_2_8_is_frozen():
    theirs, _ = run(peer.dog(init_step=("learning_rate", 1e-3)), zero_at_first, 300)
    np.testing.assert_array_equal(theirs[-1], START)
    ours, _ = run(dog(init_learning_rate=1e-3), zero_at_first, 300)
    assert jnp.sum(ours[-1] ** 2) < 0.1


def test_dog_starts_after_warmup_from_0_where_optax_0_2_8_is_frozen():
    init_step = ("learning_rate", 1e-3)
    theirs, _ = run(peer.dog(from_zero, init_step), gradient, 300)
    np.testing.assert_array_equal(theirs[-1], START)
    ours, _ = run(dog(from_zero, init_learning_rate=1e-3), gradient, 300)
    assert jnp.sum(ours[-1] ** 2) < 0.1


def test_dog_takes_a_null_step_at_0_over_0_where_optax_0_2_8_is_nan():
    theirs, _ = run(peer.dog(eps=0.0), zero_at_first, 300)
    assert np.isnan(theirs).all()
    ours, _ = run(dog(eps=0.0), zero_at_first, 300)
    np.testing.assert_array_equal(ours[0], START)
    assert jnp.sum(ours[-1] ** 2) < 0.1


def test_dog_sums_unit_gradients_in_bfloat16_where_optax_0_2_8_stops_at_256():
    def unit_gradient(x, i):
        return jnp.full_like(x, 0.5)

    start = jnp.zeros(4, jnp.bfloat16)
    _, (_, theirs, _) = run(peer.dog(), unit_gradient, 1000, start)
    assert theirs.sum_sq_norm_grads == 256
    _, ours = run(dog(), unit_gradient, 1000, start)
    np.testing.assert_allclose(ours.sum_sq_norm_grads, 1000, rtol=1e-6)


def test_schedule_free_weighs_evenly_in_bfloat16_where_optax_0_2_8_stops_at_256():
    start = jnp.zeros(4, jnp.bfloat16)
    _, theirs = run(peer.schedule_free_sgd(1.0), gradient, 400, start)
    assert theirs.weight_sum == 256 and theirs.b1.dtype == jnp.bfloat16
    _, ours = run(schedule_free_sgd(1.0), gradient, 400, start)
    assert ours.weight_sum == 400 and ours.b1 == jnp.float32(0.9)


@pytest.mark.parametrize(
    "ours, theirs", [(dog, peer.dog), (prodigy, peer.prodigy)], ids=["dog", "prodigy"]
)
def test_first_step_can_be_donated_where_optax_0_2_8_gives_a_buffer_twice(ours, theirs):
    def first_step(opt):
        def step(params, state):
            updates, state = opt.update(jnp.ones(3), state, params)
            return optax.apply_updates(params, updates), state

        params = 2 * START
        donated = jax.jit(step, donate_argnums=(0, 1))
        return jax.block_until_ready(donated(params, opt.init(params)))

    with pytest.raises(RuntimeError, match="donate the same buffer twice"):
        first_step(theirs())
    moved, _ = first_step(ours())
    assert np.isfinite(moved).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "reference",
    [r for r in references() if {"warmup_steps"} <= set(r.kwargs) and "sgd" in r.rule],
    ids=lambda reference: reference.id,
)
def test_schedule_free_warmup_is_official_where_optax_0_2_8_is_a_step_off(reference):
    problem = reference.problem

    def error(opt, eval_params):
        step = jax.jit(opt.update)
        params = jax.tree.map(jnp.asarray, problem.params)
        state, trained, evaluated = opt.init(params), [], []
        for i in range(reference.steps[-1]):
            _, grads = problem.value_and_grad(params, i)
            updates, state = step(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            if i + 1 in reference.steps:
                trained.append(params)
                evaluated.append(eval_params(state, params))
        trained, evaluated = (
            jax.tree.map(lambda *leaves: np.stack(leaves), *points)
            for points in (trained, evaluated)
        )
        return max(reference.error(trained), reference.error(evaluated, evaluated=True))

    theirs = peer.schedule_free_sgd(**reference.kwargs)
    assert error(theirs, peer.schedule_free_eval_params) > 1e-2
    ours = schedule_free_sgd(**reference.kwargs)
    assert error(ours, schedule_free_eval_params) < 1e-10


def test_schedule_free_first_warmup_step_moves_where_that_of_optax_0_2_8_is_null():
    theirs, _ = run(peer.schedule_free_sgd(0.5, 10), gradient, 1)
    np.testing.assert_allclose(theirs[0], START, rtol=1e-6)
    ours, _ = run(schedule_free_sgd(0.5, 10), gradient, 1)
    np.testing.assert_allclose(ours[0], START - 0.05 * 2 * START, rtol=1e-6)


def test_schedule_free_b1_may_be_0_where_optax_0_2_8_is_nan():
    theirs, _ = run(peer.schedule_free_sgd(0.1, b1=0.0), gradient, 3)
    assert np.isnan(theirs).all()
    ours, _ = run(schedule_free_sgd(0.1, b1=0.0), gradient, 3)
    plain, _ = run(sgd(0.1), gradient, 3)
    np.testing.assert_allclose(ours, plain, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_schedule_free_state_dtype_never_narrows_where_that_of_optax_0_2_8_does():
    params = {"wide": jnp.ones(3), "complex": jnp.full(3, 1 + 1j, jnp.complex64)}
    dtype = jnp.float32
    theirs: Any = peer.schedule_free(optax.sgd(0.1), 0.1, state_dtype=dtype)
    ours = schedule_free(sgd(0.1), 0.1, state_dtype=dtype)
    real = {"wide": params["wide"]}
    assert theirs.init(real).z["wide"].dtype == jnp.float32
    z = ours.init(params).z
    assert z["wide"].dtype == jnp.float64 and z["complex"].dtype == jnp.complex64


@pytest.mark.parametrize(
    "ours, theirs", [(dog, peer.dog), (prodigy, peer.prodigy)], ids=["dog", "prodigy"]
)
def test_mixed_precision_scans_where_the_state_of_optax_0_2_8_drifts(ours, theirs):
    params = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.bfloat16)}

    def scan(opt: Any) -> Any:
        def step(carry, _):
            params, state = carry
            updates, state = opt.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params_, _), _ = lax.scan(step, (params, opt.init(params)), None, length=3)
        return params_

    with pytest.raises(TypeError, match="carry input and carry output must have equal"):
        scan(theirs())
    moved = scan(ours())
    assert moved["a"].dtype == jnp.float32 and moved["b"].dtype == jnp.bfloat16
    assert (moved["a"] < 1).all()


def test_split_keeps_real_parts_beside_infinities_where_optax_0_2_8_makes_nan():
    params = jnp.ones(1, jnp.complex64)
    grads = lax.complex(jnp.array([3.0]), jnp.array([jnp.inf]))

    def update(opt: Any) -> Any:
        return opt.update(grads, opt.init(params), params)[0]

    theirs = update(peer.split_real_and_imaginary(optax.sgd(1.0)))
    assert np.isnan(theirs.real).all()
    ours = update(split_real_and_imaginary(sgd(1.0)))
    np.testing.assert_array_equal(ours.real, [-3.0])
    np.testing.assert_array_equal(ours.imag, [-jnp.inf])


def test_split_passes_extras_where_optax_0_2_8_does_not_take_them():
    params = jnp.ones(1, jnp.complex64)

    def by_value(updates, state, params=None, **extra):
        return jax.tree.map(lambda u: extra["value"] * u, updates), state

    inner = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), by_value
    )
    theirs: Any = peer.split_real_and_imaginary(inner)
    with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
        theirs.update(params, theirs.init(params), params, value=2.0)
    ours = split_real_and_imaginary(inner)
    updates, _ = ours.update(params, ours.init(params), params, value=2.0)
    np.testing.assert_array_equal(updates, 2 * params)


def test_split_momo_is_momo_of_pairs_where_optax_0_2_8_does_not_take_the_value():
    z = jnp.array([3 + 4j, -1j], jnp.complex64)
    target = jnp.array([1 - 2j, 0.5], jnp.complex64)
    theirs: Any = peer.split_real_and_imaginary(peer.momo(1.0))
    with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
        theirs.update(z, theirs.init(z), z, value=1.0)
    pair = z.real, z.imag
    split, plain = split_real_and_imaginary(momo(1.0)), momo(1.0)
    state, state_of_pair = split.init(z), plain.init(pair)

    @jax.jit
    def step(z, state, pair, state_of_pair):
        g = z - target
        value = 0.5 * jnp.sum(jnp.abs(g) ** 2)
        updates, state = split.update(g, state, z, value=value)
        of_pair, state_of_pair = plain.update(
            (g.real, g.imag), state_of_pair, pair, value=value
        )
        return z + updates, state, apply_updates(pair, of_pair), state_of_pair

    for _ in range(200):
        z, state, pair, state_of_pair = step(z, state, pair, state_of_pair)
        np.testing.assert_allclose(z, pair[0] + 1j * pair[1], rtol=1e-5)
    assert split.metrics(state) == plain.metrics(state_of_pair)
    assert jnp.abs(z - target).max() < 0.01


# D-Adaptation, COCOB, MoMo


@pytest.mark.parametrize("null", ["gradient", "learning rate"])
def test_dadapt_adamw_survives_a_null_first_step_where_optax_0_2_8_is_nan(null):
    rate = from_zero if null == "learning rate" else 1.0
    grads = zero_at_first if null == "gradient" else gradient
    theirs, _ = run(peer.dadapt_adamw(rate), grads, 300)
    assert np.isnan(theirs[1:]).all()
    ours, _ = run(dadapt_adamw(rate), grads, 300)
    assert np.isfinite(ours).all() and jnp.sum(ours[-1] ** 2) < 0.1


def test_cocob_leaves_alone_what_has_no_gradient_in_float16_where_optax_0_2_8_is_nan():
    def first_only(x, i):
        return (x * jnp.array([1.0, 0.0, 0.0])).astype(x.dtype)

    start = START.astype(jnp.float16)
    theirs, _ = run(peer.cocob(), first_only, 20, start)
    assert np.isnan(theirs[:, 1:]).all()
    ours, _ = run(cocob(), first_only, 20, start)
    np.testing.assert_array_equal(ours[:, 1:], [start[1:]] * 20)
    assert np.isfinite(ours).all() and ours[-1, 0] < start[0]


def test_cocob_bets_in_the_plane_where_optax_0_2_8_orders_complex_numbers():
    start = jnp.array([3 + 4j, -1j], jnp.complex64)
    theirs, _ = run(peer.cocob(), gradient, 500, start)
    assert not np.all(np.abs(theirs[-1]) < 1)  # NaN, or wherever it went.
    ours, _ = run(cocob(), gradient, 500, start)
    assert np.all(np.abs(ours[-1]) < 0.1)


def run_with_value(opt: Any, factor: float, num_steps: int) -> tuple[Any, Any]:
    """As `run`, on the squared norm times `factor`, for rules that need its value."""

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(lambda x: factor * jnp.sum(x**2))(params)
        updates, state = opt.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params, state, points = START, opt.init(START), []
    for _ in range(num_steps):
        params, state = step(params, state)
        points.append(params)
    return jnp.stack(points), state


def test_momo_trains_on_a_loss_of_1e_minus_9_where_optax_0_2_8_stands_still():
    stuck, _ = run_with_value(peer.momo(1e12), 1e-9, 100)
    np.testing.assert_array_equal(stuck, [START] * 100)
    points, _ = run_with_value(momo(math.inf), 1e-9, 100)
    scaled, _ = run_with_value(momo(math.inf), 1.0, 100)
    assert jnp.sum(points[-1] ** 2) < 1e-2
    np.testing.assert_allclose(points, scaled, rtol=1e-3, atol=1e-4)


def test_momo_adam_trains_on_a_loss_of_1e_minus_17_where_optax_0_2_8_stands_still():
    stuck, _ = run_with_value(peer.momo_adam(0.1, eps=1e-30), 1e-17, 100)
    np.testing.assert_array_equal(stuck, [START] * 100)
    points, _ = run_with_value(momo_adam(0.1, eps=0.0), 1e-17, 100)
    assert jnp.sum(points[-1] ** 2) < 0.1


@pytest.mark.parametrize(
    "ours, theirs",
    [(momo, peer.momo), (momo_adam, peer.momo_adam)],
    ids=["momo", "momo_adam"],
)
def test_momo_divides_its_whole_step_by_decay_where_optax_0_2_8_forgets_a_part(
    ours, theirs
):
    """With decay 1 and learning rate 1, the paper's `(x - τ d / D) / 2`, half of it."""

    def first_step(opt):
        points, state = run_with_value(opt, 1.0, 1)
        return points[0] - START, state

    step, state = first_step(ours(1.0, weight_decay=1.0))
    direction = 2 * START if ours is momo else 0.1 * jnp.ones(3)
    paper = (START - state.step_size * direction) / 2 - START
    np.testing.assert_allclose(step, paper, rtol=1e-5)
    other, _ = first_step(theirs(1.0, weight_decay=1.0))
    forgotten = state.step_size * direction / 2
    np.testing.assert_allclose(other, paper - forgotten, rtol=1e-5)


def test_momo_learns_no_bound_of_a_zero_gradient_where_optax_0_2_8_takes_the_loss():
    params = jnp.ones(3)

    def bound(opt):
        state = opt.init(params)
        _, state = opt.update(jnp.zeros(3), state, params, value=jnp.float32(7.0))
        return float(state.lb)

    assert bound(peer.momo(adapt_lower_bound=True)) == 7.0
    assert bound(momo(adapt_lower_bound=True)) == 0.0


def test_momo_adam_compiles_linearly_where_optax_0_2_8_copies_sums_into_every_leaf():
    def size(opt: Any, leaves: int) -> int:
        params = {str(i): jax.ShapeDtypeStruct((4,), "float32") for i in range(leaves)}
        state = jax.eval_shape(lambda: opt.init(jax.tree.map(_zeros, params)))
        value = jax.ShapeDtypeStruct((), "float32")
        update = jax.jit(lambda g, s, p, v: opt.update(g, s, p, value=v))
        compiled: Any = update.lower(params, state, params, value).compile()
        return compiled.as_text().count(" = ")

    def growth(opt: Any) -> float:
        return size(opt, 40) / size(opt, 4)

    assert growth(peer.momo_adam()) > 12
    assert growth(momo_adam()) < 10.5


def _zeros(x: Any) -> Array:
    return jnp.zeros(x.shape, x.dtype)


def test_momo_with_a_learned_bound_survives_warmup_where_optax_0_2_8_is_frozen():
    def rate(count):
        return 0.1 * from_zero(count)

    theirs, _ = run_with_value(peer.momo(rate, adapt_lower_bound=True), 1.0, 200)
    np.testing.assert_array_equal(theirs, [START] * 200)
    ours, _ = run_with_value(momo(rate, adapt_lower_bound=True), 1.0, 200)
    assert jnp.sum(ours[-1] ** 2) < 0.5  # Of 14.
