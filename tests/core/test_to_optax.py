"""Our transforms inside of optax, flax and optimistix."""

import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest
from flax.training.train_state import TrainState
from support.interop import assert_close, grads_at, loop, loss, PARAMS, standard, STEPS

from contrib_algos import adam, dog, prodigy, sgd
from contrib_core import (
    AbstractTransform,
    chain,
    masked,
    scale,
    to_optax,
)
from contrib_wrappers import (
    master_weights,
    schedule_free,
    schedule_free_adamw,
    schedule_free_eval_params,
    schedule_free_sgd,
    split_real_and_imaginary,
)


# Ours there

OURS: dict[str, AbstractTransform] = {
    "sgd": sgd(0.1, 0.9),
    "dog": dog(reps_rel=0.1),
    "prodigy": prodigy(estim_lr0=0.1),
    "schedule_free_adamw": schedule_free_adamw(0.1, warmup_steps=3),
    "wrapped": master_weights(split_real_and_imaginary(masked(adam(0.1), True))),
}

over_ours = pytest.mark.parametrize("opt", OURS.values(), ids=OURS)


@over_ours
def test_in_a_plain_optax_loop(opt):
    theirs = to_optax(opt)
    assert isinstance(theirs, optax.GradientTransformationExtraArgs)

    @jax.jit
    def step(params, state):
        updates, state = theirs.update(grads_at(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, theirs.init(PARAMS)
    for _ in range(STEPS):
        params, state = standard(step, params, state)
    assert_close(params, loop(opt, PARAMS))


@over_ours
def test_in_optax_chain(opt):
    actual = standard(loop, optax.chain(optax.scale(0.5), to_optax(opt)), PARAMS)
    assert_close(actual, loop(chain(scale(0.5), opt), PARAMS))


@over_ours
def test_in_optax_masked(opt):
    actual = standard(loop, optax.masked(to_optax(opt), {"a": True, "b": True}), PARAMS)
    assert_close(actual, loop(opt, PARAMS))
    part = standard(loop, optax.masked(to_optax(opt), {"a": False, "b": True}), PARAMS)
    assert_close(part, loop(masked(opt, {"a": False, "b": True}), PARAMS))


def step_of(theirs: Any) -> Callable[..., Any]:
    """A step of optax whose gradients are `factor` times those of the loss."""

    @jax.jit
    def step(params, state, factor):
        grads = jax.tree.map(lambda x: factor * x, params)
        updates, state = theirs.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@over_ours
def test_in_optax_apply_if_finite(opt):
    """Each gradient comes after one of NaN."""
    theirs = optax.apply_if_finite(to_optax(opt), 3)

    step = step_of(theirs)
    params, state = PARAMS, standard(theirs.init, PARAMS)
    for i in range(2 * STEPS):
        params, state = standard(step, params, state, jnp.nan if i % 2 == 0 else 1.0)
    assert state.total_notfinite == STEPS
    assert_close(params, loop(opt, PARAMS))


@over_ours
def test_in_optax_multi_steps(opt):
    """Two micro-batches a step, whose mean is the gradient."""
    theirs = optax.MultiSteps(to_optax(opt), 2)

    step = step_of(theirs)
    params, state = PARAMS, standard(theirs.init, PARAMS)
    for i in range(2 * STEPS):
        params, state = standard(step, params, state, 0.5 + i % 2)
    assert state.gradient_step == STEPS
    assert_close(params, loop(opt, PARAMS))


@over_ours
def test_in_the_train_state_of_flax(opt):
    module = nn.Dense(2)
    x = jnp.array([[1.0, -1.0, 0.5]])
    params = standard(module.init, jax.random.key(0), x)["params"]

    def loss(params):
        return jnp.sum(jnp.square(jnp.asarray(module.apply({"params": params}, x))))

    @jax.jit
    def train_step(train_state):
        return train_state.apply_gradients(grads=jax.grad(loss)(train_state.params))

    train_state = TrainState.create(
        apply_fn=module.apply, params=params, tx=to_optax(opt)
    )
    update, state, plain = jax.jit(opt.update), opt.init(params), params
    for _ in range(STEPS):
        train_state = standard(train_step, train_state)
        updates, state = update(standard(jax.grad(loss), plain), state, plain)
        plain = jax.tree.map(jnp.add, plain, updates)
    assert train_state.step == STEPS
    assert_close(train_state.params, plain)
    assert not np.allclose(plain["kernel"], params["kernel"])


@over_ours
def test_in_optimistix(opt):
    solver = optimistix.OptaxMinimiser(to_optax(opt), rtol=0.0, atol=0.0)

    def minimise():
        return optimistix.minimise(
            lambda params, args: loss(params),
            solver,
            PARAMS,
            max_steps=STEPS,
            throw=False,
        )

    solution = standard(minimise)
    assert solution.stats["num_steps"] == STEPS
    assert_close(solution.value, loop(opt, PARAMS))


def test_schedule_free_is_evaluated_inside_any_optax_state():
    opt = schedule_free_sgd(0.1)
    theirs = optax.chain(optax.clip(100.0), to_optax(opt))
    params, state = PARAMS, standard(theirs.init, PARAMS)
    for _ in range(STEPS):
        updates, state = standard(theirs.update, grads_at(params), state, params)
        params = standard(optax.apply_updates, params, updates)
    plain, plain_state = PARAMS, opt.init(PARAMS)
    for _ in range(STEPS):
        updates, plain_state = opt.update(grads_at(plain), plain_state, plain)
        plain = jax.tree.map(jnp.add, plain, updates)
    evaluated = schedule_free_eval_params(state, params)
    assert_close(evaluated, opt.eval_params(plain_state, plain))
    assert not np.allclose(evaluated["a"], params["a"])


def test_converting_to_optax_and_back_changes_nothing():
    opt = chain(to_optax(adam(0.1)), to_optax(scale(1.0)))
    assert_close(loop(opt, PARAMS), loop(adam(0.1), PARAMS))


def test_without_optax_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ImportError, match=r'pip install "contrib-algebra\[optax\]"'):
        to_optax(adam(0.1))


def test_transforms_work_without_optax(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    opt = schedule_free(chain(adam(0.1)), 0.1)
    assert_close(loop(opt, PARAMS), loop(opt, PARAMS))
