"""Trees of examples: batches, and gradients for each example of one."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, reshard
from jaxtyping import Array, PyTree

from ._boundary import check_gradients, not_wider, trainable
from ._errors import spot
from ._types import Tree


def number_of_examples(who: str, batch: PyTree[Any]) -> int:
    """The length of the first axis of all arrays of `batch`.

    **Raises:** `ValueError` that names the first leaf without an axis, or with another
    length, and if there is no array.
    """
    first, number = "", None
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if not getattr(leaf, "shape", ()):
            raise ValueError(
                f"{who}: {spot(path)} has no axis of examples. Every leaf of a batch "
                "is an array whose first axis counts the examples; what all examples "
                "share belongs to the model, or into a closure."
            )
        if number is None:
            first, number = spot(path), leaf.shape[0]
        if leaf.shape[0] != number:
            raise ValueError(
                f"{who}: there are {number} examples at {first}, but "
                f"{leaf.shape[0]} at {spot(path)}. The first axis of every leaf "
                "counts the examples."
            )
    if number is None:
        raise ValueError(f"{who}: there is no array, so no number of examples.")
    return number


def checked_examples(who: str, grads: PyTree[Any], params: Tree) -> Tree:
    """What is trainable of `grads`: of shape `(B, *shape)` where `params` have `shape`.

    **Raises:** `ValueError` for anything else, with the path of the leaf; so for
    gradients that were averaged over the examples.
    """
    check_unmasked(who, grads)
    grads = trainable(grads)
    if axes := varying_axes(grads):
        raise ValueError(
            f"{who}: the gradients differ between devices, along {sorted(axes)} of a "
            "`jax.shard_map`, where noise would be added by each of them. Inside, use "
            "`value_and_clipped_grad(...)(...).psum(axis_name)`, and outside "
            "`GaussianNoise`."
        )
    rows = ()
    if jax.tree.structure(grads) == jax.tree.structure(params):
        _check_axes(who, grads, params)
        rows = (number_of_examples(who, grads),) if jax.tree.leaves(grads) else ()
    check_gradients(who, grads, params, rows)
    return not_wider(grads, params)


def _check_axes(who: str, grads: Tree, params: Tree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    for (path, g), p in zip(leaves, jax.tree.leaves(params), strict=True):
        if g.ndim != p.ndim + 1:
            shape = ", ".join(["B", *map(str, p.shape)]) + ("" if p.ndim else ",")
            raise ValueError(
                f"{who}: at {spot(path)} the gradient has shape {g.shape} and not "
                f"({shape}), with a row for each example: what is averaged over them "
                "cannot be clipped any more. Call `grads = jax.vmap(jax.grad(loss), "
                "(None, 0))(params, batch)`, with the loss of one example, or of a "
                "model `eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(None, 0))"
                "(model, batch)`."
            )


def rows_at(batch: PyTree[Any], index: Array) -> PyTree[Any]:
    """The rows of `batch` with the numbers `index`; numbers beyond the end repeat the
    last row."""

    def leaf(x: Any) -> Array:
        if x.shape[0] == 0:  # Of which there is no last row; nothing is computed of it.
            return jnp.zeros((len(index), *x.shape[1:]), x.dtype)
        return jnp.take(jnp.asarray(x), index, axis=0, mode="clip")

    return jax.tree.map(leaf, batch)


def per_device(x: PyTree[Any], like: PyTree[Any]) -> PyTree[Any]:
    """`x` as something that may differ between devices where `like` does.

    Inside of `jax.shard_map`, derivatives with respect to what all devices share are
    added up over the devices at once: before an example of each could be clipped.
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


def varying_axes(x: PyTree[Any]) -> frozenset[str]:
    """The mesh axes of a `jax.shard_map` around, along which a leaf of `x` differs, as
    far as JAX knows: it does not with `check_vma=False`."""
    kinds = [jax.typeof(leaf) for leaf in jax.tree.leaves(eqx.filter(x, eqx.is_array))]
    # Older versions of JAX have the one, newer ones the other.
    axes = [getattr(kind, "manual_axis_type", kind) for kind in kinds]
    found = (getattr(a, "varying", getattr(a, "vma", frozenset())) for a in axes)
    return frozenset[str]().union(*found)


def is_tracked(axis_name: str) -> bool:
    """Whether JAX knows what differs along a mesh axis of a `jax.shard_map` around."""
    return bool(varying_axes(lax.axis_index(axis_name)))


def check_unmasked(who: str, grads: PyTree[Any]) -> None:
    """Raises `ValueError` where optax has masked parts of `grads`."""
    leaves = jax.tree.leaves(grads, is_leaf=_is_masked)
    if any(map(_is_masked, leaves)):
        raise ValueError(
            f"{who}: a part of the gradients is masked, as by `optax.masked` or "
            "`optax.partition`: it would not be clipped, or by itself. Give all of "
            "them, and put what is for a part behind, "
            "`chain(DPAggregate(...), masked(..., mask))`."
        )


def _is_masked(x: Any) -> bool:
    return type(x).__name__ == "MaskedNode"  # Optax is not imported here.


def summed_over_devices(
    fn: Callable[..., Any], shared: PyTree[Any], batch: tuple[Any, ...]
) -> Any:
    """`fn(shared, *batch)`, a sum over the rows of `batch` with a method `psum`.

    Where the rows are sharded over explicit axes of a mesh, they stay where they are:
    each device takes the sum over its own, and these are added up.
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


def _explicit_axes(batch: PyTree[Any]) -> Any:
    """The explicit axes that the first axis of `batch` is sharded over, as in a
    `PartitionSpec`; `None` if it is not, or they are automatic."""
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
