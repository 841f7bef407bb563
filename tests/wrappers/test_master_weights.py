"""Wide copies of parameters of 16 bits."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from support.descent import descend, last, twice

from contrib_algos import dog, prodigy, sgd
from contrib_core import chain, scale
from contrib_wrappers import master_weights, schedule_free


MATRIX = jnp.asarray(np.linspace(0.5, 1, 8))

SOLUTION = jnp.asarray(np.linspace(-1, 1, 8) + 0.3)


def least_squares(x: Array) -> Array:
    return jnp.sum((MATRIX * (x.astype(jnp.float32) - SOLUTION)) ** 2)


def least_squares_grads(x: Array, i: Array) -> Array:
    del i
    return (2 * MATRIX**2 * (x.astype(jnp.float32) - SOLUTION)).astype(x.dtype)


@pytest.mark.parametrize("rule", [prodigy(), dog()], ids=["prodigy", "dog"])
def test_bfloat16_trains_on_master_weights_and_not_without(rule):
    # Away from 0, where bfloat16 resolves steps of 1e-6.
    start = SOLUTION.astype(jnp.bfloat16) + jnp.ones(8, jnp.bfloat16)
    before = least_squares(start)
    alone, _ = last(descend(rule, start, least_squares_grads, 300))
    wrapped, _ = last(descend(master_weights(rule), start, least_squares_grads, 300))
    assert least_squares(alone) > 0.9 * before
    assert least_squares(wrapped) < 1e-3 * before


def test_rounding_never_accumulates_in_master_weights():
    """Steps of a thousandth of the resolution arrive, rounded once."""
    start = jnp.array([1.0, 3.0, -2.0], jnp.bfloat16)
    size = jnp.array([1e-5, 2e-5, -1e-5], jnp.bfloat16)
    opt = master_weights(scale(1.0))
    params, states = descend(opt, start, lambda x, i: size, 3000)
    moved = np.float64(start) + np.arange(1, 3001)[:, None] * np.float64(size)
    np.testing.assert_allclose(states.master, moved, rtol=1e-3)
    rounded = states.master.astype(jnp.bfloat16)
    np.testing.assert_array_equal(params, rounded)
    assert np.abs(params[-1] - start).min() > 0.025


def test_master_weights_do_not_copy_wide_leaves():
    params = {"narrow": jnp.ones(3, jnp.float16), "wide": jnp.ones(3)}
    opt = master_weights(sgd(0.1))
    state = opt.init(params)
    _, new_state = opt.update(params, state, params)
    for master in (state.master, new_state.master):
        assert master["wide"] is None
        assert master["narrow"].dtype == jnp.float32


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: chain(inner, scale(2.0)),
        lambda inner: schedule_free(inner, 0.1),
    ],
    ids=["scaled", "schedule_free"],
)
def test_master_weights_follow_parameters_that_something_else_moves(wrap):
    """The copy must not drift away from them: bfloat16 does what float32 does."""
    opt = wrap(master_weights(sgd(0.1)))
    start = jnp.array([1.0, 2.0, 3.0])
    wide, _ = descend(opt, start, twice, 60)
    narrow, _ = descend(opt, start.astype(jnp.bfloat16), twice, 60)
    gap = np.abs(np.asarray(narrow, np.float32) - np.asarray(wide)).max()
    assert gap < 0.02


def test_master_weights_start_anew_from_restored_parameters():
    opt = master_weights(sgd(0.1))
    params = jnp.ones(2, jnp.bfloat16)
    _, state = opt.update(params, opt.init(params), params)
    restored = jnp.array([5.0, -3.0], jnp.bfloat16)
    updates, _ = opt.update(jnp.zeros_like(params), state, restored)
    np.testing.assert_array_equal(np.asarray(updates, np.float32), 0)
