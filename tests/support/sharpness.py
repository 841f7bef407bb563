"""An adversary, a loss and a loop, for tests of sharpness-aware minimisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jaxtyping import Array
from optax import contrib as peer

from contrib_algos import adam, lion, normalize, sgd
from contrib_core import AbstractTransform, chain


START = np.array([1.0, 2.0, 3.0])

RHO = 0.05


def adversary(rho: float = RHO) -> AbstractTransform:
    """The adversary of the paper: a step of length `rho` along the gradient."""
    return chain(normalize(), sgd(rho))


def peer_adversary() -> Any:
    return optax.chain(peer.normalize(), optax.sgd(RHO))


over_modes = pytest.mark.parametrize("opaque", [False, True], ids=["shown", "opaque"])

over_optimizers = pytest.mark.parametrize(
    "optimizer", [sgd(0.1), adam(0.1), lion(0.03)], ids=["sgd", "adam", "lion"]
)

# A loss with curvatures from 1 to 1/100 and gradients that rotate.
CURVATURE = np.logspace(0, -2, 6).reshape(2, 3)

TARGET = np.sin(np.arange(6.0)).reshape(2, 3)


def loss(x: Any) -> Array:
    fit = jnp.sum(CURVATURE.astype(x["w"].dtype) * (x["w"] - TARGET) ** 2)
    return fit + jnp.sum(jnp.cosh(x["b"] - x["w"][0, 0]))


def start() -> Any:
    return {"b": jnp.ones(()), "w": jnp.zeros((2, 3))}


def fit(opt: Any, num_steps: int, *, opaque: bool) -> Any:
    """The parameters after each step."""

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        extra = {"grad_fn": lambda x, i: jax.grad(loss)(x)} if opaque else {}
        updates, state = opt.update(jax.grad(loss)(x), state, x, **extra)
        x = jax.tree.map(jnp.add, x, updates)
        return (x, state), x

    @jax.jit
    def run(x: Any) -> Any:
        return lax.scan(step, (x, opt.init(x)), length=num_steps)[1]

    return run(start())
