"""A start, and bases and forms of Mechanic to run tests over."""

import jax.numpy as jnp
import pytest

from contrib_algos import adam, lion, sgd


START = jnp.array([1.0, 2.0, 3.0])

over_bases = pytest.mark.parametrize(
    "base", [sgd(1.0), adam(1.0), lion(1.0)], ids=["sgd", "adam", "lion"]
)

over_forms = pytest.mark.parametrize("store_delta", [False, True])
