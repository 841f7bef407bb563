"""Prodigy and D-Adaptation: how their estimates of a distance grow."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from support.descent import descend, sum_of_squares, twice

from contrib_algos import dadapt_adamw, prodigy


def test_growth_is_bounded_after_a_free_first_jump():
    """`d` may jump once, from `d0`; then it grows by at most `growth_rate` towards the
    largest estimate so far, even where later ones are smaller."""
    start = jnp.array([1.0, 2.0, 3.0])
    options: dict[str, Any] = {"estim_lr0": 1e-3, "estim_lr_coef": 50.0}
    _, free = descend(prodigy(**options), start, twice, 60)
    _, bounded = descend(prodigy(**options, growth_rate=1.3), start, twice, 60)
    d, d_max = np.asarray(bounded.estim_lr), np.asarray(bounded.max_estim_lr)
    (jump, *_) = np.flatnonzero(d > d[0])
    assert d[jump] > 10 * d[0] and d[jump] == free.estim_lr[jump] == d_max[jump]
    growth = d[jump + 1 :] / d[jump:-1]
    # It hits the bound, and later, at the largest estimate, it stays.
    np.testing.assert_allclose(growth[:10], 1.3, rtol=1e-6)
    assert np.all(growth <= 1.3 + 1e-6) and growth[-1] == 1 and d[-1] == d_max[-1]
    assert np.all(d <= d_max) and np.all(np.diff(d_max) >= 0)
    assert free.max_estim_lr is None


def test_dadapt_adamw_finds_its_distance_while_bfloat16_rounds_its_steps_off():
    start = jnp.array([1.0, 2.0, 3.0], jnp.bfloat16)
    params, _ = descend(dadapt_adamw(), start, twice, 300)
    np.testing.assert_array_equal(params[:5], [start] * 5)
    assert sum_of_squares(params[-1].astype(jnp.float32)) < 1e-2
