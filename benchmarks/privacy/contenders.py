"""Ways to sum the clipped gradients of a network: ours, optax's, and by hand."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from optax import contrib

from contrib_algos import GaussianNoise, value_and_clipped_grad

from . import network


# The examples of random numbers exceed it.
L2_NORM_CLIP = 1.0

MICROBATCHES = (1, 16)

# Names of contenders, and fields of `Figure`.
BY_HAND, PEER = "by_hand", "peer"

# `(params, batch) -> sum of the clipped gradients, and more`
Contender: TypeAlias = Callable[[PyTree, PyTree], Any]


def contenders() -> dict[str, Contender]:
    """All contenders: ours with each size of microbatches, without noise and with."""
    contenders: dict[str, Contender] = {BY_HAND: _by_hand, PEER: _peer}
    for size in MICROBATCHES:
        contenders[f"microbatch {size}"] = _ours(size)
        contenders[f"microbatch {size} and noise"] = _ours(size, GaussianNoise(1.0, 0))
    return contenders


def is_ours(name: str) -> bool:
    """Whether the contender of this name is ours."""
    return name not in (BY_HAND, PEER)


def rival(name: str) -> str:
    """The contender that one of ours is compared with; only optax's has noise."""
    return PEER if name.endswith("noise") else BY_HAND


def _ours(size: int, noise: GaussianNoise | None = None) -> Contender:
    grad = value_and_clipped_grad(network.loss, L2_NORM_CLIP, microbatch_size=size)

    def contender(params: PyTree, batch: PyTree) -> Any:
        clipped = grad(params, batch)
        if noise is None:
            return clipped
        return noise.update(clipped, noise.init(params), params), clipped.values

    return contender


def _by_hand(params: PyTree, batch: PyTree) -> Any:
    values, grads = _stacked(params, batch)
    squares = [jnp.sum(g**2, range(1, g.ndim)) for g in jax.tree.leaves(grads)]
    norms = jnp.sqrt(sum(squares))
    factors = jnp.minimum(1, L2_NORM_CLIP / norms)
    total = jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), grads)
    return total, values, norms


def _peer(params: PyTree, batch: PyTree) -> Any:
    values, grads = _stacked(params, batch)
    mean = contrib.differentially_private_aggregate(L2_NORM_CLIP, 1.0, key=0)
    return mean.update(grads, mean.init(params)), values


def _stacked(params: PyTree, batch: PyTree) -> Any:
    return jax.vmap(jax.value_and_grad(network.loss), (None, 0))(params, batch)
