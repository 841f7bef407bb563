"""Defects of SAM in `optax.contrib` 0.2.8, and that ours do not have them.

Each test runs both. It fails if ours has the defect. It also fails if a new version of
optax has lost it, so that the documentation can be brought up to date.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array
from optax import contrib as peer
from support.descent import descend, standard_promotion, sum_of_squares, twice
from support.sharpness import adversary, peer_adversary, RHO, START

from contrib_algos import dog, momo, sgd
from contrib_core import chain
from contrib_wrappers import sam


def test_period_1_diverges_in_optax_0_2_8():
    x = jnp.asarray(START, jnp.float32)
    with standard_promotion():
        theirs, _ = descend(
            peer.sam(optax.sgd(0.1), peer_adversary(), 1), x, twice, 200
        )
    assert sum_of_squares(theirs[-1]) > 1e14
    ours, _ = descend(sam(sgd(0.1), adversary(), 1), x, twice, 200)
    assert sum_of_squares(ours[-1]) < 1e-14


@pytest.mark.parametrize("null", [0, 1], ids=["adversarial", "outer"])
def test_zero_gradients_are_null_steps_where_optax_0_2_8_is_nan(null: int):
    x = jnp.asarray(START, jnp.float32)

    def grads(x: Array, i: Array) -> Array:
        return jnp.where(i == null, 0.0, 2 * x)

    with standard_promotion():
        theirs, _ = descend(peer.sam(optax.sgd(0.1), peer_adversary()), x, grads, 40)
    assert np.isnan(theirs[-1]).all()
    ours, _ = descend(sam(sgd(0.1), adversary()), x, grads, 40)
    assert np.isfinite(ours).all() and sum_of_squares(ours[-1]) < 0.02
    if null == 0:
        np.testing.assert_array_equal(ours[0], x)  # A gradient of 0 shows no way up.
    else:
        np.testing.assert_allclose(
            ours[1], x, rtol=1e-6
        )  # A gradient of 0 shows no way down.


def test_value_reaches_the_optimizer_where_optax_0_2_8_does_not_take_it():
    x = jnp.asarray(START, jnp.float32)
    theirs: Any = peer.sam(optax.sgd(0.1), peer_adversary())
    with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
        theirs.update(x, theirs.init(x), x, value=1.0)
    opt = sam(momo(1.0), adversary())
    state, step = opt.init(x), jax.jit(opt.update)
    for _ in range(200):
        updates, state = step(2 * x, state, x, value=sum_of_squares(x))
        x = x + updates
    # SAM minimises the worst loss within `RHO`, so that it ends within that radius.
    assert sum_of_squares(x) < (2 * RHO) ** 2


def test_states_with_keys_and_flags_survive_where_optax_0_2_8_fails():
    """Optimizers with noise have a typed key in their state, and DoG has a flag."""
    noise = optax.add_noise(1e-3, 0.55, jax.random.key(0))
    x = jnp.asarray(START, jnp.float32)

    def run(make: Any, *optimizers: Any) -> Any:
        return descend(make(*optimizers), x, twice, 200)[0]

    with standard_promotion(), pytest.raises((TypeError, ValueError)):
        run(peer.sam, optax.chain(noise, optax.sgd(0.1)), peer_adversary())
    for optimizer in (chain(noise, sgd(0.1)), dog(reps_rel=1e-2)):
        for attack in (adversary(), chain(noise, adversary())):
            assert sum_of_squares(run(sam, optimizer, attack)[-1]) < 0.05


def test_statistics_do_not_meet_infinities_where_those_of_optax_0_2_8_do():
    """An optimizer does not see gradients of the other optimizer's steps."""
    x = jnp.full(3, 1e-3)
    grads = jnp.full(3, 1e25)  # Their square is infinite, and Adam would be NaN.
    theirs: Any = peer.sam(optax.adam(0.1), optax.sgd(1e-30))
    ours = sam(optax.adam(0.1), sgd(1e-30))
    with standard_promotion():
        _, state = theirs.update(grads, theirs.init(x), x)
        assert np.isnan(state.opt_state[0].nu).all()
    _, state = ours.update(grads, ours.init(x), x)
    np.testing.assert_array_equal(state.opt_state[0].nu, 0)
