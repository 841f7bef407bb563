"""Normalisation of a gradient."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from contrib_algos import normalize


def test_normalize_is_the_gradient_over_its_norm_and_zero_at_zero():
    grads = {"a": jnp.array([3.0]), "b": jnp.array([[0.0, 4.0]])}
    opt = normalize()
    updates, _ = opt.update(grads, opt.init(grads))
    np.testing.assert_allclose(updates["a"], [0.6], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [[0.0, 0.8]], rtol=1e-6)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = opt.update(zeros, opt.init(grads))
    assert eqx.tree_equal(updates, zeros)
