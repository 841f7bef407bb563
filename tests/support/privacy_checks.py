"""Exact checks for defects that are too rare or too small for an audit."""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from contrib_algos import value_and_clipped_grad
from support.audit import aggregate, linear, MECHANISMS, outputs, SCENARIOS


def check_far_noise():
    """No noise is impossible below 10 standard deviations."""

    def largest(key: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        # The largest draw of float32, which has no number between 1 - 6e-8 and 1.
        return jnp.full(shape, 5.4, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", largest)
        _, noise = outputs(aggregate, SCENARIOS["long"], runs=1)
    assert noise.min() > 10


def check_absence():
    """An example that adds nothing changes nothing, bit by bit."""
    for mechanism in MECHANISMS.values():
        run = jax.jit(ft.partial(mechanism, SCENARIOS["nan"], jax.random.key(0)))
        inside, outside = run(jnp.array(True)), run(jnp.array(False))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, inside, outside))


def check_norms():
    """An example adds a gradient of norm 1 at most, and not much less."""
    grads = 3 * jax.random.normal(jax.random.key(0), (10_000, 1, 3))
    clipped = value_and_clipped_grad(linear, 1.0)
    sums = jax.jit(jax.vmap(lambda g: clipped(jnp.zeros(3), g).sum))(grads)
    norms, lengths = (
        np.linalg.norm(np.asarray(x, np.float64), axis=1) for x in (sums, grads[:, 0])
    )
    assert norms.max() <= 1
    assert (norms / np.minimum(lengths, 1)).min() > 1 - 2e-6


def check_sensitivity():
    """One example among 4096 changes their sum by at most the norm 1."""
    key, other = jax.random.split(jax.random.key(0))
    others = 1 + jax.random.normal(key, (4095, 3))
    clipped = value_and_clipped_grad(linear, 1.0, microbatch_size=512)

    @jax.jit
    @ft.partial(jax.vmap, in_axes=(0, None))
    def run(canary: Array, is_in: Array) -> Any:
        batch = jnp.concatenate([others, 100 * canary[None]])
        mask = jnp.ones(4096, bool).at[-1].set(is_in)
        result = clipped(jnp.zeros(3), batch, mask)
        return result.sum, result.rest

    canaries = jax.random.normal(other, (16, 3))
    inside, outside = (
        sum(np.asarray(part, np.float64) for part in run(canaries, jnp.array(is_in)))
        for is_in in (True, False)
    )
    assert np.linalg.norm(inside - outside, axis=1).max() <= 1


CHECKS = [check_far_noise, check_absence, check_norms, check_sensitivity]
