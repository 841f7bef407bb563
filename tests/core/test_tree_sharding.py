"""Sharded trees: reductions gather nothing, and maps keep shardings."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from contrib_core import tree


def _sharded(mesh: jax.sharding.Mesh) -> list[dict[str, jax.Array]]:
    def put(x: jax.Array, *spec: str | None) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return [
        {
            "a": put(jnp.arange(64.0).reshape(8, 8) + i, "d"),
            "b": put(jnp.ones((4, 16), jnp.bfloat16), None, "d"),
            "c": put(jnp.asarray(2.0, jnp.float32)),
        }
        for i in range(2)
    ]


@pytest.fixture(params=[AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def mesh(request: pytest.FixtureRequest) -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("d",), axis_types=(request.param,))


_SHARDED_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "dot": tree.dot,
    "sum": lambda x, y: tree.sum(lambda a, b: a * b, x, y),
    "sq_dist": tree.sq_dist,
    "norm": lambda x, y: tree.norm(x),
    "l1_norm": lambda x, y: tree.l1_norm(x),
    "max_abs": lambda x, y: tree.max_abs(x),
}


def _dot_of_ravelled(x: Any, y: Any) -> jax.Array:
    flat = [
        jnp.concatenate([leaf.astype("float32").ravel() for leaf in jax.tree.leaves(z)])
        for z in (x, y)
    ]
    return jnp.dot(*flat)


def _collectives(fn: Callable[..., Any], *args: Any) -> set[str]:
    text = jax.jit(fn).lower(*args).compile().as_text()
    assert text is not None
    names = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    return {name for name in names if f" {name}" in text}


@pytest.mark.parametrize("name", _SHARDED_REDUCTIONS)
def test_reductions_of_sharded_trees_gather_nothing(mesh, name: str):
    x, y = _sharded(mesh)
    reduction = _SHARDED_REDUCTIONS[name]
    local = [jax.tree.map(np.asarray, z) for z in (x, y)]
    expected = reduction(*jax.tree.map(jnp.asarray, local))
    assert reduction(x, y) == pytest.approx(float(expected), rel=1e-6)
    assert _collectives(reduction, x, y) == {"all-reduce"}


def test_ravelling_would_gather():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    assert _collectives(_dot_of_ravelled, *_sharded(mesh)) - {"all-reduce"}


_SHARDED_MAPS: dict[str, Callable[..., Any]] = {
    "axpy": lambda x, y: tree.axpy(jnp.asarray(2.0), y, x),
    "lerp": lambda x, y: tree.lerp(x, y, jnp.asarray(0.5)),
    "where": lambda x, y: tree.where(jnp.asarray(True), x, y),
    "scale by norm": lambda x, y: tree.scale(tree.norm(y), x),
    "saturate": lambda x, y: tree.saturate(x),
    "abs_sq": lambda x, y: tree.abs_sq(x),
    "zeros_like": lambda x, y: tree.zeros_like(x),
    "accumulator_like": lambda x, y: tree.accumulator_like(x, real=True),
}


@pytest.mark.parametrize("name", _SHARDED_MAPS)
def test_maps_keep_shardings(mesh, name: str):
    x, y = _sharded(mesh)
    fn = _SHARDED_MAPS[name]
    for leaf, like in zip(*map(jax.tree.leaves, (fn(x, y), x)), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


@pytest.mark.parametrize("name", _SHARDED_MAPS)
def test_compiled_maps_keep_shardings(mesh, name: str):
    x, y = _sharded(mesh)
    fn = _SHARDED_MAPS[name]
    for leaf, like in zip(*map(jax.tree.leaves, (jax.jit(fn)(x, y), x)), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    assert _collectives(fn, x, y) <= {"all-reduce"}
