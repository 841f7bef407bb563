"""Names of transforms and paths of leaves, for error messages."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.tree_util as jtu

from .typing import AnyTree


class Caller(NamedTuple):
    """The origin of an error: `Chain(Scale, Scale).update`, and a part of its inputs.

    The name is built only when an error message is formatted.
    """

    transform: Any
    part: str = ""

    def __str__(self) -> str:
        return f"{name_of(self.transform)}.update{self.part}"


def name_of(transform: Any) -> str:
    """The name of a transform in errors: `Masked(Chain(Scale, Scale))`."""
    fields = [getattr(transform, f.name) for f in dataclasses.fields(transform)]
    inner = jax.tree.leaves(fields, is_leaf=_is_stage)
    names = [name_of(t) for t in inner if _is_stage(t)]
    return type(transform).__name__ + (f"({', '.join(names)})" if names else "")


def _is_stage(x: Any) -> bool:
    return isinstance(x, eqx.Module) and callable(getattr(type(x), "step", None))


def spot(path: tuple[Any, ...]) -> str:
    """The name of a leaf in errors: `` `.layers[0].weight` ``, or "the only leaf"."""
    return f"`{jtu.keystr(path)}`" if path else "the only leaf"


def leaves_with_path(x: AnyTree) -> list[tuple[tuple[Any, ...], Any]]:
    """The leaves of `x` with their paths; `None` counts as a leaf."""
    return jtu.tree_leaves_with_path(x, is_leaf=lambda leaf: leaf is None)


def first_difference(x: AnyTree, y: AnyTree) -> str | None:
    """The first place where the structures of `x` and `y` differ; `None` if nowhere."""
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
