"""Defects of `optax.contrib.split_real_and_imaginary` 0.2.8, and that ours has none.

Each test runs both. It fails if ours has the defect. It also fails if a new version of
optax has lost it, so that the documentation can be brought up to date.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from optax import contrib as peer

from contrib_algos import momo, sgd
from contrib_core import apply_updates
from contrib_wrappers import split_real_and_imaginary


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_split_keeps_real_parts_beside_infinities_where_optax_0_2_8_makes_nan():
    params = jnp.ones(1, jnp.complex64)
    grads = lax.complex(jnp.array([3.0]), jnp.array([jnp.inf]))

    def update(opt: Any) -> Any:
        return opt.update(grads, opt.init(params), params)[0]

    theirs = update(peer.split_real_and_imaginary(optax.sgd(1.0)))
    assert np.isnan(theirs.real).all()
    ours = update(split_real_and_imaginary(sgd(1.0)))
    np.testing.assert_array_equal(ours.real, [-3.0])
    np.testing.assert_array_equal(ours.imag, [-jnp.inf])


def test_split_passes_extras_where_optax_0_2_8_does_not_take_them():
    params = jnp.ones(1, jnp.complex64)

    def by_value(updates, state, params=None, **extra):
        return jax.tree.map(lambda u: extra["value"] * u, updates), state

    inner = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), by_value
    )
    theirs: Any = peer.split_real_and_imaginary(inner)
    with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
        theirs.update(params, theirs.init(params), params, value=2.0)
    ours = split_real_and_imaginary(inner)
    updates, _ = ours.update(params, ours.init(params), params, value=2.0)
    np.testing.assert_array_equal(updates, 2 * params)


def test_split_momo_is_momo_of_pairs_where_optax_0_2_8_does_not_take_the_value():
    z = jnp.array([3 + 4j, -1j], jnp.complex64)
    target = jnp.array([1 - 2j, 0.5], jnp.complex64)
    theirs: Any = peer.split_real_and_imaginary(peer.momo(1.0))
    with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
        theirs.update(z, theirs.init(z), z, value=1.0)
    pair = z.real, z.imag
    split, plain = split_real_and_imaginary(momo(1.0)), momo(1.0)
    state, state_of_pair = split.init(z), plain.init(pair)

    @jax.jit
    def step(z, state, pair, state_of_pair):
        g = z - target
        value = 0.5 * jnp.sum(jnp.abs(g) ** 2)
        updates, state = split.update(g, state, z, value=value)
        of_pair, state_of_pair = plain.update(
            (g.real, g.imag), state_of_pair, pair, value=value
        )
        return z + updates, state, apply_updates(pair, of_pair), state_of_pair

    for _ in range(200):
        z, state, pair, state_of_pair = step(z, state, pair, state_of_pair)
        np.testing.assert_allclose(z, pair[0] + 1j * pair[1], rtol=1e-5)
    assert split.metrics(state) == plain.metrics(state_of_pair)
    assert jnp.abs(z - target).max() < 0.01
