"""DoG and DoWG: the first step, and options of one of them."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.descent import descend, last

from contrib_algos import DoG, dog, dowg


def test_sum_of_squares_of_3000_unit_steps_in_bfloat16():
    start = jnp.zeros(4, jnp.bfloat16)
    _, state = last(descend(dog(), start, lambda x, i: jnp.full_like(x, 0.5), 3000))
    np.testing.assert_allclose(state.sum_sq_norm_grads, 3000, rtol=1e-6)


def test_dowg_refuses_to_have_no_first_guess():
    with pytest.raises(ValueError, match=r"DoWG\(init_estim_sq_dist=1e-4, eps=0\)"):
        dowg(eps=0.0)


def test_init_learning_rate_is_not_used_again_back_at_the_start():
    opt = DoG(init_learning_rate=0.1)
    start = jnp.zeros(2)
    state = opt.init(start)
    _, state = opt.update(jnp.ones(2), state, start)
    assert opt.metrics(state)["dog/step_size"] == jnp.float32(0.1)
    _, state = opt.update(jnp.ones(2), state, start - 0.1)
    updates, state = opt.update(jnp.ones(2), state, start)
    assert not state.first_step
    expected = np.sqrt(2 * 0.1**2) / np.sqrt(3 * 2)
    np.testing.assert_allclose(updates, -expected, rtol=1e-6)
    np.testing.assert_allclose(opt.metrics(state)["dog/step_size"], expected, rtol=1e-6)
