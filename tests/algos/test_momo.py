"""MoMo and MoMo-Adam: the bound on the loss, decay and infinite learning rates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.descent import descend, twice

from contrib_algos import momo, momo_adam


def test_a_polyak_step_without_a_learning_rate_refuses_decay():
    for rule in (momo, momo_adam):
        with pytest.raises(ValueError, match="must then be finite"):
            rule(math.inf, weight_decay=0.1)
        rule(math.inf, weight_decay=0.0)


@pytest.mark.parametrize("rule", [momo, momo_adam])
@pytest.mark.parametrize("weight_decay", [0.1, jnp.array(0.0)])
@pytest.mark.parametrize("rate", [jnp.array(math.inf), lambda count: jnp.inf])
def test_infinite_rates_that_are_traced_do_no_harm(rule, weight_decay, rate):
    points, states = descend(
        rule(rate, weight_decay=weight_decay), jnp.arange(3.0), twice, 5
    )
    assert np.isfinite(points).all() and np.isfinite(states.step_size).all()
    assert np.abs(points[-1]).max() < 1  # It decays to the origin.


@pytest.mark.parametrize("rule", [momo, momo_adam])
def test_null_steps_do_not_halve_a_learned_bound(rule):
    def rate(count):
        return jnp.where(count == 0, 0.1, 0.0)

    opt, x = rule(rate, adapt_lower_bound=True), jnp.arange(1, 4.0)
    _, state = opt.update(2 * x, opt.init(x), x, value=14.0)
    assert state.lb > 1
    _, new_state = opt.update(2 * x, state, x, value=1e-3)  # Far below the bound.
    assert new_state.lb == state.lb


@pytest.mark.parametrize("rule, name", [(momo, "momo"), (momo_adam, "momo_adam")])
def test_a_learned_bound_is_above_the_given_one_and_below_the_losses(rule, name):
    opt = rule(0.1, lower_bound=-5.0, adapt_lower_bound=True)
    params, states = descend(opt, jnp.array([1.0, 2.0, 3.0]), twice, 100)
    assert np.all((states.lb >= -5) & (states.lb <= 14))
    assert len(np.unique(states.lb)) > 10
    metrics = opt.metrics(jax.tree.map(lambda x: x[-1], states))
    assert metrics[f"{name}/lower_bound"] == states.lb[-1]


def test_the_first_momentum_of_momo_is_the_gradient_for_any_beta():
    params, states = descend(momo(beta=0.99), jnp.array([1.0, 2.0]), twice, 1)
    np.testing.assert_array_equal(states.exp_avg[0], [2.0, 4.0])
    # f = 5, and the step takes its linearisation to 0.
    np.testing.assert_allclose(states.step_size[0], 5 / 20, rtol=1e-6)
    np.testing.assert_allclose(params[0], [0.5, 1.0], rtol=1e-6)
