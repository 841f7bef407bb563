"""Hyperparameters as arrays: their types, traces, derivatives and sweeps."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from support.descent import descend, sum_of_squares, tabulated

from contrib_algos import (
    adam,
    adamw,
    cocob,
    dadapt_adamw,
    dog,
    dowg,
    LinearWarmup,
    lion,
    momo,
    momo_adam,
    prodigy,
    sgd,
)
from contrib_core import AbstractTransform, scale, scale_by_learning_rate
from contrib_wrappers import (
    average,
    mechanize,
    sam,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
)


def test_an_eps_of_0_may_be_an_array():
    grads, params = jnp.array([1.0, 0.0, 2.0]), jnp.arange(3.0)
    for make in (adam, cocob, dadapt_adamw, momo_adam, prodigy):

        def update(eps: Any, make: Any = make) -> Array:
            opt = make(1.0, eps=eps)
            return opt.update(grads, opt.init(params), params, value=1.0)[0]

        expected = update(0.0)
        assert expected[1] == 0 and np.abs(expected[::2]).min() > 0
        found = jax.vmap(update)(jnp.array([1.0, 0.0]))[1]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# Every hyperparameter, at a value that bfloat16 represents.
HYPERPARAMETERS: dict[str, tuple[Callable[..., AbstractTransform], dict[str, float]]]

HYPERPARAMETERS = {
    "sgd": (
        lambda **kw: sgd(nesterov=True, **kw),
        {"learning_rate": 0.5, "momentum": 0.75},
    ),
    "adamw": (
        adamw,
        {
            "learning_rate": 0.5,
            "b1": 0.75,
            "b2": 0.875,
            "eps": 0.125,
            "weight_decay": 0.25,
        },
    ),
    "lion": (
        lion,
        {"learning_rate": 0.5, "b1": 0.75, "b2": 0.875, "weight_decay": 0.25},
    ),
    "scale": (scale, {"factor": 0.5}),
    "dog": (
        dog,
        {
            "learning_rate": 0.5,
            "reps_rel": 0.125,
            "eps": 0.25,
            "init_learning_rate": 0.5,
            "weight_decay": 0.25,
        },
    ),
    "dog-reps_rel": (dog, {"reps_rel": 0.125}),
    "prodigy": (
        lambda b1, b2, **kw: prodigy(betas=(b1, b2), **kw),
        {
            "learning_rate": 0.5,
            "b1": 0.75,
            "b2": 0.875,
            "beta3": 0.5,
            "eps": 0.125,
            "estim_lr0": 0.125,
            "estim_lr_coef": 0.5,
            "weight_decay": 0.25,
            "growth_rate": 2.0,  # Tests scale it down, and it must stay above 1.
        },
    ),
    "dowg": (
        dowg,
        {
            "learning_rate": 0.5,
            "init_estim_sq_dist": 0.125,
            "eps": 0.25,
            "weight_decay": 0.25,
        },
    ),
    "dadapt_adamw": (
        lambda b1, b2, **kw: dadapt_adamw(betas=(b1, b2), **kw),
        {
            "learning_rate": 0.5,
            "b1": 0.75,
            "b2": 0.875,
            "eps": 0.125,
            "estim_lr0": 0.125,
            "weight_decay": 0.25,
        },
    ),
    "cocob": (
        cocob,
        {"learning_rate": 0.5, "alpha": 4.0, "eps": 0.25, "weight_decay": 0.25},
    ),
    "momo": (
        lambda **kw: momo(adapt_lower_bound=True, **kw),
        {
            "learning_rate": 0.5,
            "beta": 0.75,
            "lower_bound": 0.125,
            "weight_decay": 0.25,
        },
    ),
    "momo_adam": (
        momo_adam,
        {
            "learning_rate": 0.5,
            "b1": 0.75,
            "b2": 0.875,
            "eps": 0.125,
            "lower_bound": 0.125,
            "weight_decay": 0.25,
        },
    ),
    "mechanize": (
        lambda **kw: mechanize(sgd(1.0), **kw),
        {"weight_decay": 0.25, "eps": 0.125, "s_init": 0.125},
    ),
    "prodigy-beta3": (
        lambda b2: prodigy(betas=(0.5, b2), estim_lr0=0.125),
        {"b2": 0.875},
    ),
    "schedule_free_sgd": (
        schedule_free_sgd,
        {
            "learning_rate": 0.5,
            "warmup_steps": 4.5,
            "b1": 0.75,
            "weight_decay": 0.25,
            "weight_lr_power": 1.5,
        },
    ),
    "schedule_free_adamw": (
        schedule_free_adamw,
        {
            "learning_rate": 0.5,
            "warmup_steps": 4.5,
            "b1": 0.75,
            "b2": 0.875,
            "eps": 0.125,
            "weight_decay": 0.25,
            "weight_lr_power": 1.5,
        },
    ),
}


def quadratic_grads(params: Any, i: Array) -> Any:
    del i
    return jax.tree.map(lambda x: 2 * x - 1, params)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_hyperparameters_may_be_arrays_of_any_dtype(name):
    """`lax.scan` compiles the steps, and refuses a state that drifts."""
    make, values = HYPERPARAMETERS[name]
    params = {"a": jnp.arange(3, dtype=jnp.float32), "b": jnp.ones(2, jnp.bfloat16)}
    expected, _ = descend(make(**values), params, quadratic_grads, 4)
    for typed in (jnp.float64, jnp.bfloat16):
        arrays = {k: typed(v) for k, v in values.items()}
        actual, _ = descend(make(**arrays), params, quadratic_grads, 4)
        np.testing.assert_allclose(actual["a"], expected["a"], rtol=1e-5)
        np.testing.assert_allclose(
            actual["b"].astype(jnp.float32),
            expected["b"].astype(jnp.float32),
            rtol=2**-7,
        )
        assert actual["a"].dtype == jnp.float32 and actual["b"].dtype == jnp.bfloat16


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "float64": lambda count: jnp.asarray(2.0, jnp.float64) / (count + 2),
    "bfloat16": lambda count: jnp.where(
        count < 2, jnp.ones((), jnp.bfloat16), jnp.full((), 0.5, jnp.bfloat16)
    ),
    "int32": lambda count: jnp.where(count < 2, 1, 2).astype(jnp.int32),
    "int64": lambda count: jnp.where(count < 2, 1, 2).astype(jnp.int64),
    "number": lambda count: 1,
    "module": LinearWarmup(1.0, 3),
}


@pytest.mark.one_in(7)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    "make",
    [
        *(adam, cocob, dadapt_adamw, dog, dowg, momo, momo_adam, prodigy),
        schedule_free_sgd,
        lambda lr: schedule_free(sgd(lr), lr),
        lambda lr: mechanize(sgd(lr), s_init=0.01),
        lambda lr: sam(sgd(lr), scale_by_learning_rate(0.05)),
        lambda lr: average(sgd(0.1), lambda count: jnp.minimum(1, lr(count - 1))),
    ],
    ids=[
        *("adam", "cocob", "dadapt_adamw", "dog", "dowg", "momo", "momo_adam"),
        *("prodigy", "schedule_free_sgd", "schedule_free", "mechanize", "sam"),
        "average",
    ],
)
def test_schedules_may_return_any_type(make, name):
    """The state does not drift, and the schedule's values are used."""
    with jax.numpy_dtype_promotion("standard"):
        values = [float(SCHEDULES[name](jnp.int32(k))) for k in range(4)]

    def schedule(count):
        with jax.numpy_dtype_promotion("standard"):
            return SCHEDULES[name](count)

    params = jnp.arange(3, dtype=jnp.float32)
    actual, _ = descend(make(schedule), params, quadratic_grads, 4)
    expected, _ = descend(make(tabulated(np.array(values))), params, quadratic_grads, 4)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_another_value_of_an_array_does_not_retrace(name):
    make, values = HYPERPARAMETERS[name]
    params = jnp.arange(3.0)
    num_traces = 0

    @eqx.filter_jit
    def step(opt, state, params):
        nonlocal num_traces
        num_traces += 1
        return opt.update(2 * params, state, params, value=1.0)

    outputs = []
    for factor in (1.0, 0.75):
        opt = make(**{k: jnp.asarray(factor * v) for k, v in values.items()})
        outputs.append(step(opt, opt.init(params), params)[0])
    assert num_traces == 1
    assert not np.array_equal(*outputs)


def final_loss(opt: AbstractTransform) -> Array:
    params, _ = descend(opt, jnp.array([1.0, 2.0, -1.0]), quadratic_grads, 6)
    return sum_of_squares(params[-1])


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_losses_are_differentiable_in_every_hyperparameter(name):
    make, values = HYPERPARAMETERS[name]

    def loss(values):
        return final_loss(make(**values))

    arrays = {k: jnp.asarray(v) for k, v in values.items()}
    derivatives = jax.jit(jax.jacfwd(loss))(arrays)
    reverse = jax.jit(jax.grad(loss))(arrays)
    step = 1e-6
    compiled = jax.jit(loss)
    for k, value in arrays.items():
        above = compiled(arrays | {k: value + step})
        below = compiled(arrays | {k: value - step})
        difference = (above - below) / (2 * step)
        np.testing.assert_allclose(derivatives[k], difference, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(reverse[k], difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_a_sweep_is_the_loop_over_its_values(name):
    make, values = HYPERPARAMETERS[name]
    factors = jnp.array([1.0, 0.9, 0.8])

    def run(factor):
        return final_loss(make(**{k: factor * v for k, v in values.items()}))

    swept = eqx.filter_jit(eqx.filter_vmap(run))(factors)
    looped = jnp.stack([run(factor) for factor in factors])
    np.testing.assert_allclose(swept, looped, rtol=1e-5)
    assert len(set(np.asarray(swept).tolist())) > 1


def test_a_sweep_over_the_field_of_an_optimiser():
    """An ensemble of optimisers is made first; `eqx.filter_vmap` maps over it."""
    opts = eqx.filter_vmap(lambda lr: adamw(lr))(jnp.array([0.1, 0.01]))
    axes = jax.tree.map(eqx.if_array(0), opts)
    swept = eqx.filter_vmap(final_loss, in_axes=(axes,))(opts)
    np.testing.assert_allclose(
        swept, [final_loss(adamw(0.1)), final_loss(adamw(0.01))], rtol=1e-5
    )
