"""Defects of rules in `optax.contrib` 0.2.8, and that ours do not have them.

Each test runs both. It fails if ours has the defect. It also fails if a new version of
optax has lost it, so that the documentation can be brought up to date.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jaxtyping import Array
from optax import contrib as peer
from support.peer import from_zero, gradient, run, run_with_value, START, zero_at_first

from contrib_algos import cocob, dadapt_adamw, dog, momo, momo_adam, prodigy


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


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


@pytest.mark.parametrize("null", ["gradient", "learning rate"])
def test_dadapt_adamw_survives_a_null_first_step_where_optax_0_2_8_is_nan(null):
    rate = from_zero if null == "learning rate" else 1.0
    grads = zero_at_first if null == "gradient" else gradient
    theirs, _ = run(peer.dadapt_adamw(rate), grads, 300)
    assert np.isnan(theirs[1:]).all()
    ours, _ = run(dadapt_adamw(rate), grads, 300)
    assert np.isfinite(ours).all() and jnp.sum(ours[-1] ** 2) < 0.1


def test_cocob_in_float16_skips_zero_gradients_where_optax_0_2_8_is_nan():
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
    assert not np.all(np.abs(theirs[-1]) < 1)  # NaN, or far away.
    ours, _ = run(cocob(), gradient, 500, start)
    assert np.all(np.abs(ours[-1]) < 0.1)


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
    """With decay 1 and learning rate 1, the paper steps to `(x - τ d / D) / 2`."""

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


def test_momo_learns_no_bound_from_a_zero_gradient_where_optax_0_2_8_takes_the_loss():
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
    assert jnp.sum(ours[-1] ** 2) < 0.5  # It starts at 14.
