"""COCOB: learning rates and complex coordinates."""

import jax.numpy as jnp
import numpy as np
from support.descent import descend, twice

from contrib_algos import cocob


def test_cocob_ignores_a_constant_learning_rate():
    start = jnp.array([1.0, -2.0, 3.0])
    plain, _ = descend(cocob(eps=0.0), start, twice, 30)
    scaled, _ = descend(cocob(64.0, eps=0.0), start, twice, 30)
    np.testing.assert_allclose(scaled, plain, rtol=1e-6)


def test_a_complex_coordinate_of_cocob_bets_in_the_plane():
    """Along a fixed direction, it moves like a real coordinate."""
    direction = np.exp(0.7j)
    real, _ = descend(cocob(), jnp.array([3.0]), twice, 50)
    start = jnp.array([3.0 * direction], jnp.complex64)
    plane, states = descend(cocob(), start, twice, 50)
    expected = np.asarray(real) * direction
    np.testing.assert_allclose(plane, expected, rtol=1e-4, atol=1e-5)
    assert states.reward.dtype == jnp.float32
