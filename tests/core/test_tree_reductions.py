"""Reductions of large trees, and norms at the ends of the range."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.trees import same

from contrib_core import tree


# Large trees

_REDUCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sum": (
        lambda x, y: tree.sum(lambda a: a, x),
        lambda a, b: (a.sum(), np.abs(a).sum()),
    ),
    "dot": (
        tree.dot,
        lambda a, b: ((a * b).sum(), np.linalg.norm(a) * np.linalg.norm(b)),
    ),
    "sq_norm": (lambda x, y: tree.sq_norm(x), lambda a, b: 2 * ((a * a).sum(),)),
    "sq_dist": (tree.sq_dist, lambda a, b: 2 * (((a - b) ** 2).sum(),)),
    "l1_norm": (lambda x, y: tree.l1_norm(x), lambda a, b: 2 * (np.abs(a).sum(),)),
    "norm": (lambda x, y: tree.norm(x), lambda a, b: 2 * (np.linalg.norm(a),)),
}


@pytest.mark.parametrize("offset", [0.0, 1.0], ids=["centred", "positive"])
@pytest.mark.parametrize("size", [10**6, 10**7])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_reductions_of_large_trees(dtype: str, size: int, offset: float):
    rng = np.random.default_rng(0)
    shapes = [(size // 2,), (size // 4000, 1000), (), (size // 4 - 1,)]
    x, y = (
        [
            jnp.asarray(rng.random(s, np.float32) - 0.5 + offset, dtype=dtype)
            for s in shapes
        ]
        for _ in range(2)
    )
    a, b = (
        np.concatenate([np.asarray(leaf).astype(np.float64).ravel() for leaf in z])
        for z in (x, y)
    )
    for name, (reduction, reference) in _REDUCTIONS.items():
        value, magnitude = reference(a, b)
        error = abs(float(jax.jit(reduction)(x, y)) - value) / magnitude
        assert error <= 1e-6, f"{name}: {error}"


# Norms at the ends of the range


@pytest.mark.parametrize("scale", [1e30, 1e-30, 8e37, 1.2e-38, 1.0])
def test_norm_at_the_ends_of_the_range(scale: float):
    x = {"a": jnp.full((3,), scale), "b": jnp.full((), -scale, jnp.float32)}
    value, grad = jax.jit(jax.value_and_grad(tree.norm))(x)
    assert value == pytest.approx(2 * float(jnp.float32(scale)), rel=1e-6)
    assert grad["a"] == pytest.approx(0.5, rel=1e-6)
    assert grad["b"] == pytest.approx(-0.5, rel=1e-6)


def test_norm_overflows_only_where_the_result_does():
    assert tree.norm(jnp.asarray([3e38, 1e38])) == pytest.approx(3.1622776e38, rel=1e-6)
    assert tree.norm(jnp.asarray([3e38, 3e38])) == math.inf
    assert tree.norm(jnp.asarray([3e38 + 1e38j])) == pytest.approx(3.1622776e38)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_norm_and_its_derivative_at_zero(dtype: str):
    x = {"a": jnp.zeros((2, 2), dtype), "b": jnp.zeros((), dtype)}
    value, grad = jax.value_and_grad(tree.norm)(x)
    assert value == 0
    assert same(grad, tree.zeros_like(x))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_norm_of_nan_and_infinity(value: float):
    x = {"a": jnp.asarray([1.0, value]), "b": jnp.ones(2)}
    expected = math.nan if math.isnan(value) else math.inf
    assert float(tree.norm(x)) == pytest.approx(expected, nan_ok=True)
    assert float(tree.max_abs(x)) == pytest.approx(expected, nan_ok=True)
