"""The losses that the manual of `optax.contrib` prints for its examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.descent import descend, sum_of_squares, twice

from contrib_algos import dog, dowg, momo, momo_adam
from contrib_wrappers import schedule_free_adamw, schedule_free_sgd


EXAMPLES = [
    (dog(), [13.999965, 13.999939, 13.999904, 13.999857, 13.999793], 5e-7),
    (dowg(), [13.925367, 13.872763, 13.775433, 13.596172, 13.268837], 1e-6),
    (momo(), [3.5, 3.3182133, 3.1418587, 2.9713084, 2.8068557], 5e-8),
    (momo_adam(), [13.8803, 13.761216, 13.642758, 13.524937, 13.407762], 1e-6),
    (schedule_free_sgd(), [14.0, 0.0, 0.996, 0.806, 0.241], 5e-4),
    (schedule_free_adamw(1.0), [5.00, 3.05, 1.73, 0.894, 0.413], 5e-3),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "opt, expected, atol",
    EXAMPLES,
    ids=["dog", "dowg", "momo", "momo_adam", "sgd", "adamw"],
)
def test_losses_are_those_of_the_manual(opt, expected, atol):
    params, states = descend(opt, jnp.array([1.0, 2.0, 3.0]), twice, 5)
    evaluated = jax.vmap(opt.eval_params)(states, params)
    np.testing.assert_allclose(
        jax.vmap(sum_of_squares)(evaluated), expected, rtol=0, atol=atol
    )
