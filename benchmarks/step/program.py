"""A whole optimisation step as one compiled program."""

from typing import Any

import jax
import optax
from jax.stages import Compiled
from jaxtyping import Array, PyTree

from contrib_core import AbstractTransform, FromOptax, Transform


def jitted(transform: Transform) -> Any:
    """`(params, state, grads) -> (params, state)`, in place where XLA finds a way."""

    def step(params: PyTree, state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        extra = extras(transform, grads)
        updates, state = transform.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def extras(transform: Transform, grads: PyTree) -> dict[str, Array]:
    """The loss, if `transform` needs it."""
    is_ours = isinstance(transform, AbstractTransform)
    needs = (transform if is_ours else FromOptax(transform)).needs
    if "value" not in needs:
        return {}
    # An entry of the gradients, because XLA would fold a constant.
    return {"value": jax.tree.leaves(grads)[0].ravel()[0].astype("float32")}


def state_like(transform: Transform, params: PyTree) -> PyTree:
    """The shapes and dtypes of the state for `params`, which may be shapes too."""
    return jax.eval_shape(lambda params: transform.init(params), params)


def compiled(
    transform: Transform, params: PyTree, grads: PyTree | None = None
) -> Compiled:
    """The step for parameters like `params` and gradients like `grads`, by default
    like `params`."""
    state = state_like(transform, params)
    grads = params if grads is None else grads
    return jitted(transform).lower(params, state, grads).compile()
