"""Defects of schedule-free in `optax.contrib` 0.2.8, and that ours do not have them.

Each test runs both. It fails if ours has the defect. It also fails if a new version of
optax has lost it, so that the documentation can be brought up to date.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib as peer
from support.peer import gradient, run, START
from support.problems import references

from contrib_algos import sgd
from contrib_wrappers import schedule_free, schedule_free_eval_params, schedule_free_sgd


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_schedule_free_weighs_evenly_in_bfloat16_where_optax_0_2_8_stops_at_256():
    start = jnp.zeros(4, jnp.bfloat16)
    _, theirs = run(peer.schedule_free_sgd(1.0), gradient, 400, start)
    assert theirs.weight_sum == 256 and theirs.b1.dtype == jnp.bfloat16
    _, ours = run(schedule_free_sgd(1.0), gradient, 400, start)
    assert ours.weight_sum == 400 and ours.b1 == jnp.float32(0.9)


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
