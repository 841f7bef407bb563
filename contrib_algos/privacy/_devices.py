"""Batches whose examples are spread over devices."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, reshard
from jaxtyping import Array

from contrib_core.typing import AnyTree


def per_device(x: AnyTree, like: AnyTree) -> AnyTree:
    """`x`, marked as varying over the mesh axes along which `like` varies.

    Inside of `jax.shard_map`, the derivative by an unmarked `x`, which all devices
    share, is summed over the devices at once: before single examples can be clipped.
    """
    axes = varying_axes(like)

    def leaf(x: Any) -> Any:
        missing = tuple(sorted(axes - varying_axes(x))) if eqx.is_array(x) else ()
        return _vary(x, missing) if missing else x

    return jax.tree.map(leaf, x)


def _vary(x: Array, axes: tuple[str, ...]) -> Array:
    if hasattr(lax, "pcast"):
        return lax.pcast(x, axes, to="varying")
    return getattr(lax, "pvary")(x, axes)  # In older versions of JAX.


def varying_axes(x: AnyTree) -> frozenset[str]:
    """The mesh axes of the surrounding `jax.shard_map` along which a leaf of `x`
    differs between devices. With `check_vma=False`, JAX knows of none."""
    kinds = [jax.typeof(leaf) for leaf in jax.tree.leaves(eqx.filter(x, eqx.is_array))]
    # Newer versions of JAX have `manual_axis_type.varying`, older ones `vma`.
    axes = [getattr(kind, "manual_axis_type", kind) for kind in kinds]
    found = (getattr(a, "varying", getattr(a, "vma", frozenset())) for a in axes)
    return frozenset[str]().union(*found)


def is_tracked(axis_name: str) -> bool:
    """Whether JAX tracks which arrays differ along an axis of a `jax.shard_map`."""
    return bool(varying_axes(lax.axis_index(axis_name)))


def summed_over_devices(
    fn: Callable[..., Any], shared: AnyTree, batch: tuple[Any, ...]
) -> Any:
    """`fn(shared, *batch)`, a sum over the rows of `batch` with a method `psum`.

    Rows that are sharded over explicit mesh axes stay on their devices: each device
    sums its own rows, and `psum` adds the sums of the devices.
    """
    if (axes := _explicit_axes(batch)) is None:
        return fn(shared, *batch)
    names = {axes} if isinstance(axes, str) else set(axes)

    def on_each(x: Any) -> Any:
        spec = [_without(names, entry) for entry in jax.typeof(x).sharding.spec]
        return reshard(x, PartitionSpec(*spec))

    def along(x: Any) -> Any:
        return reshard(x, PartitionSpec(axes, *jax.typeof(x).sharding.spec[1:]))

    arrays, static = eqx.partition(shared, eqx.is_array)
    return jax.shard_map(
        lambda arrays, batch: fn(eqx.combine(arrays, static), *batch).psum(axes),
        in_specs=(PartitionSpec(), PartitionSpec(axes)),
        out_specs=PartitionSpec(),
        axis_names=names,
    )(jax.tree.map(on_each, arrays), jax.tree.map(along, batch))


def _explicit_axes(batch: AnyTree) -> Any:
    """The explicit mesh axes over which the first axis of `batch` is sharded, as in a
    `PartitionSpec`. `None` if it is not sharded, or if the axes are automatic."""
    for leaf in jax.tree.leaves(batch):
        spec = jax.typeof(leaf).sharding.spec
        if spec and spec[0] is not None:
            return spec[0]
    return None


def _without(names: set[str], entry: Any) -> Any:
    """An entry of a `PartitionSpec` without some of the axes in it."""
    kept = [a for a in (entry if isinstance(entry, tuple) else (entry,)) if a]
    kept = tuple(a for a in kept if a not in names)
    return kept or None


def gathered(x: Array, axis_name: Any) -> Array:
    """The rows of all devices of a mesh axis, in order, as the same array on each."""
    rows = jnp.zeros((lax.axis_size(axis_name), *x.shape), x.dtype)
    rows = lax.psum(rows.at[lax.axis_index(axis_name)].set(x), axis_name)
    return rows.reshape(-1, *x.shape[1:])
