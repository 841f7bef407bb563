"""Paths into trees, for errors that say where something is wrong."""

from typing import Any

import jax
import jax.tree_util as jtu
from jaxtyping import PyTree


def spot(path: tuple[Any, ...]) -> str:
    """How an error names a leaf: `` `.layers[0].weight` ``, or "the only leaf"."""
    return f"`{jtu.keystr(path)}`" if path else "the only leaf"


def leaves_with_path(x: PyTree[Any]) -> list[tuple[tuple[Any, ...], Any]]:
    """The leaves of `x` with their paths; `None` counts as a leaf."""
    return jtu.tree_leaves_with_path(x, is_leaf=lambda leaf: leaf is None)


def first_difference(x: PyTree[Any], y: PyTree[Any]) -> str | None:
    """Where the structure of `y` first differs from that of `x`; `None` if nowhere."""
    if jax.tree.structure(x) == jax.tree.structure(y):
        return None
    ours, theirs = dict(leaves_with_path(x)), dict(leaves_with_path(y))
    for path, leaf in ours.items():
        if path not in theirs or (leaf is None) != (theirs[path] is None):
            return spot(path)
    for path in theirs:
        if path not in ours:
            return spot(path)
    return f"their node types: {jax.tree.structure(x)} and {jax.tree.structure(y)}"
