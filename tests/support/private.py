"""A model, a batch and two private optimisers, for tests of private training."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from contrib_algos import DPAggregate, dpsgd, GaussianNoise, sgd, value_and_clipped_grad
from contrib_core import AbstractMechanism, chain


class Model(eqx.Module):
    """An equinox model with a function and an integer in it."""

    weight: Array
    bias: Array
    activation: Callable[[Any], Any] = jnp.tanh
    steps: int | Array = 3

    def __call__(self, x: Array) -> Array:
        return jnp.sum(self.activation(x @ self.weight) + self.bias)


MODEL = Model(jax.random.normal(jax.random.key(0), (3, 4)), jnp.ones(4))

BATCH = {
    "x": jax.random.normal(jax.random.key(1), (16, 3)),
    "y": 4 + jnp.linspace(-2, 2, 16),
}


def loss(model: Model, example: dict[str, Array]) -> Array:
    """The squared error on one example."""
    return (model(example["x"]) - example["y"]) ** 2


def per_example(model: Any, batch: Any) -> Any:
    """The gradients of `loss` at all examples, with a leading axis."""
    return eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(None, 0))(model, batch)


GRADS = per_example(MODEL, BATCH)

CLIPPED_GRAD = value_and_clipped_grad(loss, 1.0)


def by_rows() -> AbstractMechanism[Any]:
    """Private momentum on the gradients of all examples."""
    return dpsgd(0.1, 1.0, 0.5, 42, momentum=0.9)


def by_blocks() -> AbstractMechanism[Any]:
    """The same optimiser on sums that `CLIPPED_GRAD` has clipped."""
    return chain(GaussianNoise(0.5, 42), sgd(0.1, 0.9))


def arrays(x: Any) -> list[Any]:
    """The arrays among the leaves of a tree."""
    return [np.asarray(a) for a in jax.tree.leaves(x) if eqx.is_array(a)]


def close(a: Any, b: Any) -> None:
    """Asserts that the arrays of two trees are equal to rounding."""
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def same(a: Any, b: Any) -> None:
    """Asserts that the arrays of two trees are equal bit by bit."""
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)


def aggregate(**changes: Any) -> DPAggregate:
    """`DPAggregate` with some of its arguments replaced."""
    arguments = {"l2_norm_clip": 1.0, "noise_multiplier": 1.0, "seed": 0} | changes
    return DPAggregate(**arguments)


def update(opt: Any, grads: Any, *params: Any) -> Any:
    """The first update and the state after it."""
    return opt.update(grads, opt.init(MODEL), *params)


def at(where: Callable[[Any], Any], new: Any, like: Any = GRADS) -> Any:
    """`like` with another value in one place."""
    return eqx.tree_at(where, like, new)


def private_step(opt: Any) -> Callable[..., Any]:
    """A training step for `opt`, from a model, a state and a batch."""

    def step(model: Any, state: Any, batch: Any) -> Any:
        is_rows = "DPAggregate" in str(opt)
        grads = (per_example if is_rows else CLIPPED_GRAD)(model, batch)
        updates, state = opt.update(grads, state, model)
        return eqx.apply_updates(model, updates), state

    return step


PATHS = pytest.mark.parametrize("make", [by_rows, by_blocks])
