"""A whole optimisation step, and what its compiled form says about it."""

import re
from typing import Any

import jax
import optax
from jax.stages import Compiled
from jaxtyping import PyTree

from contrib_core import as_transform, Transform


def jitted(transform: Transform) -> Any:
    """`(params, state, grads) -> (params, state)`, in place where XLA finds a way."""

    def step(params: PyTree, state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        extra = {}
        if _takes_value(transform):
            # Not a constant, which would be folded.
            extra["value"] = jax.tree.leaves(grads)[0].ravel()[0].astype("float32")
        updates, state = transform.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def _takes_value(transform: Transform) -> bool:
    """Whether it needs the loss."""
    return "value" in as_transform(transform, is_first=True).needs


def state_like(transform: Transform, params: PyTree) -> PyTree:
    """The shapes and dtypes of the state for `params`, arrays or not."""
    return jax.eval_shape(lambda params: transform.init(params), params)


def compiled(
    transform: Transform, params: PyTree, grads: PyTree | None = None
) -> Compiled:
    """The step for parameters like `params`, and gradients like `grads` or these."""
    state = state_like(transform, params)
    grads = params if grads is None else grads
    return jitted(transform).lower(params, state, grads).compile()


def bytes_of(tree: PyTree) -> int:
    """The bytes of all leaves, arrays or not."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_accessed(step: Compiled) -> float:
    """The bytes that the fused loops of the step read and write."""
    costs = _known(step.cost_analysis())
    # A list of one in some versions of JAX.
    return (costs[0] if isinstance(costs, list) else costs)["bytes accessed"]


def temporary_bytes(step: Compiled) -> int:
    """The bytes of buffers that live only during the step."""
    return _known(step.memory_analysis()).temp_size_in_bytes


def instructions(step: Compiled) -> int:
    """The HLO instructions of all computations, those inside fusions included."""
    text = _known(step.as_text())
    return len(re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = ", text, re.MULTILINE))


def _known(analysis: Any) -> Any:
    if analysis is None:
        raise RuntimeError("XLA does not analyse what it compiles for this device.")
    return analysis
