"""Models to train: a small network, and one with every kind of leaf."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def mlp() -> eqx.nn.MLP:
    """A network with one hidden layer."""
    return eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))


class Mixed(eqx.Module):
    """A model with every kind of leaf."""

    weight: Array
    count: Array
    flag: bool
    number: int
    name: str = eqx.field(static=True)
    function: Callable[[Array], Array]
    nothing: None
    numpy: np.ndarray

    def __call__(self, x: Array) -> Array:
        return self.function(self.weight * x) + self.numpy


def mixed() -> Mixed:
    """A `Mixed` model, always the same."""
    return Mixed(
        weight=jnp.ones(3),
        count=jnp.array(7),
        flag=True,
        number=3,
        name="mixed",
        function=jnp.tanh,
        nothing=None,
        numpy=np.full(3, 2.0, np.float32),
    )


def loss(model: Any, x: Array) -> Array:
    """The sum of squared outputs."""
    return jnp.sum(model(x) ** 2)
