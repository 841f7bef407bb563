"""Trees of examples: batches, and gradients with a row for each example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from contrib_core import Caller, check_gradients, narrowed_to, spot, trainable, Tree
from contrib_core.typing import AnyTree

from ._devices import varying_axes


def number_of_examples(caller: Caller | str, batch: AnyTree) -> int:
    """The number of examples: the length of the first axis of every array in `batch`.

    **Raises:** `ValueError` that names the first leaf without an axis, or with another
    length than the leaves before it; and `ValueError` if there is no array.
    """
    first, number = "", None
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if not getattr(leaf, "shape", ()):
            raise ValueError(
                f"{caller}: {spot(path)} has no axis of examples. Every leaf of a "
                "batch is an array whose first axis counts the examples; put what all "
                "examples share into the model, or into a closure."
            )
        if number is None:
            first, number = spot(path), leaf.shape[0]
        if leaf.shape[0] != number:
            raise ValueError(
                f"{caller}: there are {number} examples at {first}, but "
                f"{leaf.shape[0]} at {spot(path)}. The first axis of every leaf "
                "counts the examples."
            )
    if number is None:
        raise ValueError(f"{caller}: there is no array, and so no axis of examples.")
    return number


def checked_examples(caller: Caller, grads: AnyTree, params: Tree) -> Tree:
    """The trainable leaves of `grads`, with shape `(B, *shape)` for a parameter of
    shape `shape` and `B` examples.

    **Raises:** `ValueError` with the path of the leaf for other shapes, such as those
    of gradients that were averaged over the examples. `ValueError` for gradients that
    differ between devices of a `jax.shard_map`, or that optax has masked.
    """
    check_unmasked(caller, grads)
    grads = trainable(grads)
    if axes := varying_axes(grads):
        raise ValueError(
            f"{caller}: the gradients differ between devices, along {sorted(axes)} of "
            "a `jax.shard_map`, where each device would add noise. Call "
            "`value_and_clipped_grad(...)(...).psum(axis_name)` inside of it, and "
            "`update` of `GaussianNoise` outside."
        )
    if jax.tree.structure(grads) != jax.tree.structure(params):
        check_gradients(caller, grads, params)
    _check_axes(caller, grads, params)
    if jax.tree.leaves(grads):
        number_of_examples(caller, grads)
    row = jax.tree.map(lambda g: jax.ShapeDtypeStruct(g.shape[1:], g.dtype), grads)
    check_gradients(Caller(caller.transform, ", one row"), row, params)
    return narrowed_to(grads, params)


def _check_axes(caller: Caller, grads: Tree, params: Tree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    for (path, g), p in zip(leaves, jax.tree.leaves(params), strict=True):
        if g.ndim != p.ndim + 1:
            shape = ", ".join(["B", *map(str, p.shape)]) + ("" if p.ndim else ",")
            raise ValueError(
                f"{caller}: at {spot(path)} the gradient has shape {g.shape} and not "
                f"({shape}), with a row for each example: gradients that are averaged "
                "over examples cannot be clipped. With the loss of one example, call "
                "`grads = jax.vmap(jax.grad(loss), (None, 0))(params, batch)`, or for "
                "a model `eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(None, 0))"
                "(model, batch)`."
            )


def rows_at(batch: AnyTree, index: Array) -> AnyTree:
    """The rows of `batch` at `index`. An index beyond the end gives the last row."""

    def leaf(x: Any) -> Array:
        if x.shape[0] == 0:  # There is no last row. The result is not used.
            return jnp.zeros((len(index), *x.shape[1:]), x.dtype)
        return jnp.take(jnp.asarray(x), index, axis=0, mode="clip")

    return jax.tree.map(leaf, batch)


def check_unmasked(caller: Caller | str, grads: AnyTree) -> None:
    """Raises `ValueError` if optax has masked parts of `grads`."""
    leaves = jax.tree.leaves(grads, is_leaf=_is_masked)
    if any(map(_is_masked, leaves)):
        raise ValueError(
            f"{caller}: a part of the gradients is masked, as by `optax.masked` or "
            "`optax.partition`: it would not be clipped, or by itself. Pass all "
            "gradients, and put a transform of a part of them behind: "
            "`chain(DPAggregate(...), masked(..., mask))`."
        )


def _is_masked(x: Any) -> bool:
    return type(x).__name__ == "MaskedNode"  # Optax is not imported here.


def map_rows(fn: Callable[..., Any], *rows: AnyTree) -> Any:
    """The results of `fn` for all rows, stacked; no rows if there are no leaves."""
    number = next((leaf.shape[0] for leaf in jax.tree.leaves(rows)), 0)
    return jax.vmap(fn, axis_size=number)(*rows)
