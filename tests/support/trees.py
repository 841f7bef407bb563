"""Trees as vectors in higher precision, and when two trees are the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def entries(x: Any) -> np.ndarray:
    """All entries of a tree as one vector."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(x)]
    wide = [
        leaf.astype(np.clongdouble if np.iscomplexobj(leaf) else np.longdouble).ravel()
        for leaf in leaves
    ]
    return np.concatenate([np.zeros(0, np.longdouble), *wide])


def expected_accumulator(*xs: Any) -> jnp.dtype:
    """The dtype in which reductions over these trees must accumulate."""
    names = {str(leaf.dtype) for leaf in jax.tree.leaves(xs)}
    return jnp.dtype("float64" if names & {"float64", "complex128"} else "float32")


def types(x: Any) -> Any:
    """The structure, shapes, dtypes and weak types, which a map must keep."""
    leaves = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(x)]
    return jax.tree.structure(x), leaves


def same(x: Any, y: Any) -> bool:
    """Whether two trees are equal bit by bit, but for the sign of zero."""
    return types(x) == types(y) and all(
        np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )
