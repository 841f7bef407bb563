"""The evaluation point of a schedule-free model, from its state alone."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.descent import after_two_steps

from contrib_algos import adam
from contrib_core import AbstractTransform, chain, masked, scale, to_optax
from contrib_wrappers import (
    master_weights,
    schedule_free_eval_params,
    schedule_free_sgd,
    split_real_and_imaginary,
)


KEY = jax.random.key(0)

SCHEDULE_FREE = schedule_free_sgd(0.1)
NESTED: dict[str, Callable[[AbstractTransform], AbstractTransform]] = {
    "bare": lambda t: t,
    "chain": lambda t: chain(scale(1.0), t),
    "masked": lambda t: masked(t, {"a": True, "b": True}),
    "split": split_real_and_imaginary,
    "master_weights": master_weights,
    "all": lambda t: chain(scale(1.0), masked(split_real_and_imaginary(t), True)),
}


@pytest.mark.parametrize("name", NESTED)
def test_eval_params_from_any_state_that_contains_a_schedule_free_one(name):
    params = {"a": jnp.arange(3.0), "b": jnp.array([1 + 2j, 3 - 1j])}
    bare_state, bare_params = after_two_steps(SCHEDULE_FREE, params)
    z = jax.tree.map(lambda y, z: (y - 0.1 * z) / 0.9, bare_params, bare_state.z)
    opt = NESTED[name](SCHEDULE_FREE)
    state, params = after_two_steps(opt, params)
    for evaluated in (
        schedule_free_eval_params(state, params),
        opt.eval_params(state, params),
        schedule_free_eval_params((optax.EmptyState(), {"opt": state}), params),
    ):
        for leaf, expected in zip(
            jax.tree.leaves(evaluated), jax.tree.leaves(z), strict=True
        ):
            assert leaf.dtype == expected.dtype
            np.testing.assert_allclose(leaf, expected, rtol=1e-5)


def test_eval_params_inside_optax_chain():
    params = {"a": jnp.arange(3.0), "b": jnp.ones(2)}
    expected = SCHEDULE_FREE.eval_params(*after_two_steps(SCHEDULE_FREE, params))
    opt = optax.chain(optax.scale(1.0), to_optax(SCHEDULE_FREE))
    evaluated = schedule_free_eval_params(*after_two_steps(opt, params))
    for name in params:
        np.testing.assert_allclose(evaluated[name], expected[name], rtol=1e-6)


def test_eval_params_outside_a_mask_are_the_parameters():
    params = {"a": jnp.arange(3.0), "b": jnp.ones(2)}
    opt = masked(SCHEDULE_FREE, {"a": True, "b": False})
    state, params = after_two_steps(opt, params)
    evaluated = schedule_free_eval_params(state, params)
    np.testing.assert_array_equal(evaluated["b"], params["b"])
    assert not np.allclose(evaluated["a"], params["a"])


def test_eval_params_of_a_raw_model():
    model = eqx.nn.MLP(2, 2, 4, 1, key=KEY)
    state, model = after_two_steps(SCHEDULE_FREE, model)
    evaluated = schedule_free_eval_params(state, model)
    assert evaluated.activation is model.activation
    expected = SCHEDULE_FREE.eval_params(state, model)
    assert eqx.tree_equal(evaluated, expected, rtol=1e-6)
    assert not eqx.tree_equal(evaluated, model, rtol=1e-3)
    assert evaluated(jnp.ones(2)).shape == (2,)


def test_eval_params_need_exactly_one_schedule_free_state():
    params = jnp.ones(3)
    with pytest.raises(ValueError, match="must contain one.*found 0.*eval_params"):
        schedule_free_eval_params(adam(0.1).init(params), params)
    two = chain(SCHEDULE_FREE, scale(1.0), SCHEDULE_FREE)
    with pytest.raises(ValueError, match="found 2"):
        schedule_free_eval_params(two.init(params), params)
