"""Training runs that compare our transforms with those of optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array


START = jnp.array([1.0, 2.0, 3.0])


def run(
    opt: Any, grads: Callable[[Any, Any], Any], num_steps: int, params: Any = START
) -> tuple[Any, Any]:
    """The parameters after each step, and the last state.

    A Python loop runs the steps, because `lax.scan` refuses states that drift.
    """

    @jax.jit
    def step(params, state, i):
        updates, state = opt.update(grads(params, i), state, params)
        return optax.apply_updates(params, updates), state

    state, points = opt.init(params), []
    for i in range(num_steps):
        params, state = step(params, state, i)
        points.append(params)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *points), state


def zero_at_first(x: Array, i: Array) -> Array:
    """The gradient of the squared norm; 0 at the first step."""
    return jnp.where(i == 0, 0.0, 2 * x)


def gradient(x: Array, i: Array) -> Array:
    """The gradient of the squared norm."""
    del i
    return 2 * x


def from_zero(count: Any) -> Array:
    """A warm-up from 0 at the first step to 1 at the fourth."""
    return jnp.minimum(1.0, count / 3)


def run_with_value(opt: Any, factor: float, num_steps: int) -> tuple[Any, Any]:
    """Like `run`, on the squared norm times `factor`; `update` also gets its value."""

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(lambda x: factor * jnp.sum(x**2))(params)
        updates, state = opt.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params, state, points = START, opt.init(START), []
    for _ in range(num_steps):
        params, state = step(params, state)
        points.append(params)
    return jnp.stack(points), state
