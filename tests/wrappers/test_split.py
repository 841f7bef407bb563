"""Complex parameters as pairs of real ones."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array

from contrib_algos import adam, prodigy, sgd
from contrib_core import scale_by_learning_rate
from contrib_wrappers import RealAndImaginary, split_real_and_imaginary


class Pair(NamedTuple):
    real: Array
    imaginary: Array


@pytest.mark.parametrize("opt", [adam(0.1), prodigy()], ids=["adam", "prodigy"])
def test_split_of_a_real_tree_is_the_identity(opt):
    params = Pair(jnp.arange(3.0), jnp.ones(2))
    split = split_real_and_imaginary(opt)
    state, split_state = opt.init(params), split.init(params)
    assert eqx.tree_equal(split_state.inner_state, state)
    updates, state = opt.update(params, state, params)
    split_updates, split_state = split.update(params, split_state, params)
    assert eqx.tree_equal(split_updates, updates)
    assert eqx.tree_equal(split_state.inner_state, state)


def test_split_keeps_the_pairs_of_users():
    params = Pair(jnp.array([1 + 2j]), jnp.ones(2))
    opt = split_real_and_imaginary(sgd(0.5, 0.9))
    state = opt.init(params)
    seen = jax.tree.leaves(
        state, is_leaf=lambda x: isinstance(x, Pair | RealAndImaginary)
    )
    (pair,) = seen
    assert isinstance(pair, Pair) and isinstance(pair.real, RealAndImaginary)
    updates, _ = opt.update(params, state, params)
    assert isinstance(updates, Pair)
    np.testing.assert_array_equal(updates.real, [-0.5 - 1j])
    np.testing.assert_array_equal(updates.imaginary, [-0.5, -0.5])


def test_split_conjugates_gradients_straight_from_jax():
    z = jnp.array([1 + 2j, -3 + 0.5j])
    target = jnp.array([0.5 - 1j, 2j])

    def loss(z):
        return jnp.sum(jnp.abs(z - target) ** 2) / 2

    grads = jax.grad(loss)(z)
    opt = split_real_and_imaginary(sgd(1.0), conjugate=True)
    updates, _ = opt.update(grads, opt.init(z), z)
    np.testing.assert_allclose(z + updates, target, rtol=1e-6)
    plain = split_real_and_imaginary(sgd(1.0))
    updates, _ = plain.update(jnp.conj(grads), plain.init(z), z)
    np.testing.assert_allclose(z + updates, target, rtol=1e-6)


def test_split_keeps_the_finite_part_beside_an_infinite_one():
    params = jnp.ones(1, jnp.complex64)
    grads = lax.complex(jnp.array([3.0]), jnp.array([jnp.inf]))
    opt = split_real_and_imaginary(scale_by_learning_rate(1.0))
    updates, _ = opt.update(grads, opt.init(params), params)
    np.testing.assert_array_equal(updates.real, [-3.0])
    np.testing.assert_array_equal(updates.imag, [-np.inf])
