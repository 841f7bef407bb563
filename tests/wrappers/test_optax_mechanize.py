"""Defects of Mechanic in `optax.contrib` 0.2.8, and that ours do not have them.

Each test runs both. It fails if ours has the defect. It also fails if a new version of
optax has lost it, so that the documentation can be brought up to date.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array
from optax import contrib as peer
from support.descent import descend, last, standard_promotion, sum_of_squares, twice
from support.mechanic import over_forms, START

from contrib_algos import adam, lion, sgd
from contrib_core import apply_updates
from contrib_wrappers import mechanize


@over_forms
def test_optax_0_2_8_stalls_below_the_resolution_and_stored_updates_do_not(store_delta):
    """The metric `reward` tells them apart: it is 0 as long as nothing moves."""

    def run(opt: Any) -> tuple[Any, Any]:
        return last(descend(opt, START, twice, 2000))

    with standard_promotion():
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
def test_a_spike_is_forgotten_where_optax_0_2_8_is_nan(name, spike, store_delta):
    """The base forgets it after some hundreds of steps, and Mechanic with it."""
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
        with standard_promotion():
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

    with standard_promotion(), pytest.raises(TypeError, match="the same dtypes"):
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

    with (
        standard_promotion(),
        pytest.raises(RuntimeError, match="donate the same buffer twice"),
    ):
        first_step(peer.mechanize(optax.sgd(1.0)))
    moved, _ = first_step(mechanize(sgd(1.0)))
    assert (moved < 2 * START).all()
