"""First steps without a gradient or a learning rate only delay training."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from support.descent import descend, sum_of_squares

from contrib_algos import cocob, dadapt_adamw, dog, dowg, momo, momo_adam, prodigy


NULL_STEPS = 3


def null_then(rate: float) -> Callable[[Any], Array]:
    return lambda count: jnp.where(count < NULL_STEPS, 0.0, rate)


@pytest.mark.parametrize(
    "make",
    [
        dog,
        lambda rate=1.0: dog(rate, init_learning_rate=1e-3),
        lambda rate=1.0: dog(rate, eps=0.0),
        prodigy,
        lambda rate=1.0: prodigy(rate, safeguard_warmup=True, growth_rate=2.0),
        lambda rate=1.0: dowg(rate, init_estim_sq_dist=1e-4, eps=0.0),
        dadapt_adamw,
        lambda rate=1.0: dadapt_adamw(rate, eps=0.0, use_bias_correction=False),
        lambda rate=1.0: cocob(rate, eps=0.0),
        lambda rate=0.1: momo(rate, adapt_lower_bound=True),
        lambda rate=0.3: momo_adam(rate, eps=0.0),
    ],
    ids=[
        "dog",
        "dog-init_learning_rate",
        "dog-eps-0",
        "prodigy",
        "prodigy-options",
        "dowg-eps-0",
        "dadapt_adamw",
        "dadapt_adamw-options",
        "cocob-eps-0",
        "momo",
        "momo_adam",
    ],
)
@pytest.mark.parametrize("null", ["gradient", "learning_rate"])
def test_null_first_steps_only_delay_training(make, null):
    start = jnp.array([1.0, 2.0, 3.0])

    def grads(x, i):
        return jnp.where((null == "gradient") & (i < NULL_STEPS), 0.0, 2 * x)

    opt = make(null_then(1.0)) if null == "learning_rate" else make()
    params, states = descend(opt, start, grads, 500)
    inexact = eqx.filter((params, states), eqx.is_inexact_array)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(inexact))
    np.testing.assert_array_equal(params[:NULL_STEPS], [start] * NULL_STEPS)
    assert not np.array_equal(params[NULL_STEPS], start)
    assert sum_of_squares(params[-1]) < 1e-2


def test_init_learning_rate_is_used_until_the_parameters_have_moved():
    start = jnp.array([1.0, 2.0, 3.0])
    opt = dog(init_learning_rate=1e-3)
    params, states = descend(
        opt, start, lambda x, i: jnp.where(i < NULL_STEPS, 0.0, 2 * x), 6
    )
    np.testing.assert_allclose(params[NULL_STEPS], start - 2e-3 * start, rtol=1e-6)
    np.testing.assert_array_equal(states.first_step, [1, 1, 1, 1, 0, 0])
