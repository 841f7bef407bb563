"""The problem that laws of the contract train on, and loops over it."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrib_core import apply_updates, tree

from .._subject import Subject


# The loss is half the squared distance to TARGET; training takes STEPS steps.
TARGET = 0.5
STEPS = 100


# Parameters


def waves(shape: tuple[int, ...], dtype: Any, scale: float = 1.0) -> np.ndarray:
    """Numbers between -1 and 1, of both signs and none of them 0, times `scale`."""
    x = np.sin(1.0 + np.arange(np.prod(shape, dtype=int))).reshape(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 0.5j * np.cos(x)
    return np.asarray(scale * x, jnp.dtype(dtype))


def parameters(dtype: Any = "float32", scale: float = 1.0) -> dict[str, Any]:
    """Parameters of one dtype, with every kind of leaf that is legal."""
    shapes = {"b": (3,), "empty": (0, 2), "t": (), "w": (4, 3)}
    leaves = {name: waves(shape, dtype, scale) for name, shape in shapes.items()}
    return leaves | {"none": None}


def few(dtype: Any = "float32", scale: float = 1.0) -> dict[str, Any]:
    """Parameters of one dtype in a scalar and a matrix, to keep compilation short."""
    return {name: waves(s, dtype, scale) for name, s in {"t": (), "w": (4, 3)}.items()}


@contextlib.contextmanager
def precision_of(subject: Subject, params: Any) -> Iterator[Any]:
    """Yields `params` as arrays of JAX, with 64-bit types enabled if they contain some,
    and under the promotion mode of the subject."""
    wide = [x for x in jax.tree.leaves(params) if eqx.is_inexact_array(x)]
    is_wide = any(x.dtype in (np.float64, np.complex128) for x in wide)
    with jax.enable_x64(is_wide), subject.promotion():
        yield jax.tree.map(lambda x: jnp.asarray(x) if eqx.is_array(x) else x, params)


# Steps


def gradient(params: Any) -> Any:
    """The gradient of half the squared distance to the solution."""
    return jax.tree.map(lambda p: p - TARGET, params)


def loss(params: Any) -> float:
    """Half the squared distance to the solution, in float64."""
    leaves = [np.asarray(x, np.complex128) for x in jax.tree.leaves(params)]
    return float(sum(np.sum(np.abs(x - TARGET) ** 2) for x in leaves)) / 2


def descends(start: Any, end: Any) -> bool:
    """Whether the loss has fallen by a tenth or more."""
    return loss(end) < 0.9 * loss(start)


def extras_for(subject: Subject, grads: Any) -> dict[str, Any]:
    """The extras that `update` accepts besides gradients, state and parameters."""
    # Gradients may be arrays of NumPy.
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(_trainable(grads))]
    known = {
        # A loss that is finite, as the gradients are.
        "value": jnp.nan_to_num(tree.sq_norm(leaves) / 2),
        "grad_fn": lambda params, *_: gradient(_trainable(params)),
        "key": jax.random.key(0),
    }
    return {name: known[name] for name in subject.takes}


def _trainable(params: Any) -> Any:
    return eqx.filter(params, eqx.is_inexact_array)


def update(
    subject: Subject, grads: Any, state: Any, params: Any, *, rule: Any = None
) -> Any:
    """`update` of `rule`, by default of the given transform, with all extras that it
    accepts."""
    rule = subject.given if rule is None else rule
    return rule.update(grads, state, params, **extras_for(subject, grads))


def train(
    subject: Subject, params: Any, state: Any, steps: int, *, rule: Any = None
) -> Any:
    """Parameters, state and last updates after `steps` single calls."""
    updates = None
    for _ in range(steps):
        updates, state = update(subject, gradient(params), state, params, rule=rule)
        params = apply_updates(params, updates)
    return params, state, updates


def fit(
    subject: Subject, rule: Any, params: Any, steps: int, most: float = np.inf
) -> Any:
    """Parameters and state after `steps` from a fresh state, in one `lax.scan`."""
    return path(subject, rule, params, steps, most)[0]


def path(
    subject: Subject, rule: Any, params: Any, steps: int, most: float = np.inf
) -> Any:
    """The result of `fit`, and the parameters after each step."""

    def body(carry: Any, _: None) -> tuple[Any, Any]:
        params, state = carry
        updates, state = update(subject, gradient(params), state, params, rule=rule)
        params = moved(params, updates, most)
        return (params, state), params

    return lax.scan(body, (params, rule.init(params)), length=steps)


def moved(params: Any, updates: Any, most: float) -> Any:
    """Parameters after a step; a step to an entry above `most` is not taken, because no
    law promises anything about gradients that large."""
    new = apply_updates(params, updates)
    return tree.where(tree.max_abs(new) <= most, new, params)


def eval_params(rule: Any, state: Any, params: Any) -> Any:
    """`rule.eval_params`; the parameters themselves for optax, which lacks the hook."""
    if not hasattr(rule, "eval_params"):
        return params
    return rule.eval_params(state, params)


# Hyperparameters


def with_arrays(rule: Any, factor: float = 1.0) -> Any:
    """`rule` with its hyperparameters as arrays, multiplied by `factor`."""
    dtype = jnp.result_type(float)

    def leaf(x: Any) -> Any:
        finite = isinstance(x, float) and math.isfinite(x)  # Infinite means "off".
        return jnp.array(factor * x, dtype) if finite else x

    return jax.tree.map(leaf, rule)
