"""A loss and a training loop that run transforms of optax and ours alike."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


STEPS = 5

ZERO = jnp.zeros(())

PARAMS = {"a": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array([[0.5, 4.0]])}


def loss(params: Any) -> Array:
    """Half the sum of squares of all leaves."""
    return sum((jnp.sum(jnp.abs(x) ** 2) / 2 for x in jax.tree.leaves(params)), ZERO)


def grads_at(params: Any) -> Any:
    """The gradient of `loss`."""
    return jax.tree.map(lambda x: x, params)


def loop(
    opt: Any, params: Any, num_steps: int = STEPS, *, jit: bool = True, **extra: Any
) -> Any:
    """The plain loop: `init`, `update`, apply."""

    def step(opt, state, params):
        updates, state = opt.update(grads_at(params), state, params, **extra)
        return state, jax.tree.map(jnp.add, params, updates)

    if jit:
        step = eqx.filter_jit(step)
    state = opt.init(params)
    for _ in range(num_steps):
        state, params = step(opt, state, params)
    return params


def standard(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls `fn` under standard promotion, because optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        return fn(*args, **kwargs)


def assert_close(actual: Any, expected: Any) -> None:
    """Asserts that two trees have the same dtypes and are equal to rounding."""
    leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for x, y in leaves:
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6)
