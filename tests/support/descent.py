"""Gradient descent in one compiled loop, for tests of single rules and wrappers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from contrib_core import AbstractTransform, apply_updates, tree


def descend(
    opt: Any, params: Any, grads: Callable[[Any, Array], Any], num_steps: int
) -> tuple[Any, Any]:
    """Parameters and states after each step, stacked on a leading axis.

    Transforms of this project also receive the `value` of the loss whose gradient is
    twice the parameters. Optax's receive none, because most of them refuse extras.
    """
    is_ours = isinstance(opt, AbstractTransform)

    def step(carry: Any, i: Array) -> Any:
        params, state = carry
        g = grads(params, i)
        extra = {"value": tree.sq_norm(g) / 4} if is_ours else {}
        updates, state = opt.update(g, state, params, **extra)
        carry = apply_updates(params, updates), state
        return carry, carry

    @jax.jit
    def run(params: Any) -> Any:
        start = params, opt.init(params)
        return lax.scan(step, start, jnp.arange(num_steps))[1]

    return run(params)


def last(trajectory: Any) -> Any:
    """The last entry of each leaf: what `descend` found after the last step."""
    return jax.tree.map(lambda x: x[-1], trajectory)


def sum_of_squares(x: Array) -> Array:
    """A loss with its minimum of 0 at the origin."""
    return jnp.sum(x**2)


def twice(x: Array, i: Array | int = 0) -> Array:
    """The gradient of `sum_of_squares`, at every step."""
    del i
    return 2 * x


def standard_promotion() -> Any:
    """A context in which dtypes may be mixed, as optax mixes them."""
    return jax.numpy_dtype_promotion("standard")


def tabulated(values: np.ndarray) -> Callable[[Any], Array]:
    """The schedule with these values."""
    return lambda count: jnp.asarray(values)[count]


def after_two_steps(opt: Any, params: Any) -> tuple[Any, Any]:
    """The state and the parameters after two steps, whose gradients are not 0."""
    state = opt.init(params)
    for _ in range(2):
        grads = jax.tree.map(lambda x: x**2 + 1, eqx.filter(params, eqx.is_array))
        updates, state = opt.update(grads, state, params, value=1.0)
        params = eqx.apply_updates(params, updates)
    return state, params
