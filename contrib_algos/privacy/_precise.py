"""Trees in twice their precision: norms, and sums over the rows of every leaf.

A row is an entry along the first axis of a leaf, such as the gradient of one example.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from contrib_core import Scalar, Tree, tree

from . import _pairs as pairs


Pair: TypeAlias = tuple[Tree, Tree]
"""A sum and its rounding error."""


def as_pair(x: Tree) -> Pair:
    """`x` as a pair whose second part is 0."""
    return x, tree.zeros_like(x)


def add_pairs(x: Pair, y: Pair) -> Pair:
    """`x + y` in twice the precision."""
    columns = [jax.tree.leaves(part) for part in (*x, *y)]
    rows = zip(*columns, strict=True)
    return _unzip(x[0], [pairs.add((a, b), (c, d)) for a, b, c, d in rows])


def sum_rows(rows: Tree) -> Pair:
    """The sum over the first axis of every leaf, in twice the precision.

    Each leaf is one reduction. XLA fuses it with the computation of the rows, and each
    device sums its own rows before anything is gathered.
    """
    leaves = [(x, jnp.zeros_like(x)) for x in jax.tree.leaves(rows)]
    return _unzip(rows, [pairs.sum(leaf, 0) for leaf in leaves])


def split(x: Tree, unit: Scalar) -> Pair:
    """The nearest multiple of `unit` for each entry, and the rest. They sum to `x`."""
    coarse = tree.map(lambda a, unit: jnp.round(a / unit) * unit, x, unit)
    return coarse, tree.sub(x, coarse)


def precise_norm(x: Tree) -> tuple[Scalar, Scalar]:
    """`‖x‖` as the product of a root and a power of two.

    The root has an error of at most two units in the last place, for any number of
    entries. It is finite if and only if all entries are. The product may over- or
    underflow. The norm is not differentiable.
    """
    largest, power = tree.magnitude(x, differentiable=False)
    parts = []
    for squares in jax.tree.leaves(tree.map(lambda a, p: a * p, x, 1 / power)):
        part = _abs_sq(squares), jnp.zeros_like(squares.real)
        for axis in reversed(range(squares.ndim)):
            part = pairs.sum(part, axis)
        parts.append(part)
    # A reduction, not a chain of additions: each addition uses the sum before it five
    # times, and XLA would duplicate all earlier additions for each use.
    totals, rests = zip(*parts, strict=True) if parts else ([largest], [largest])
    total, rest = pairs.sum((jnp.stack(totals), jnp.stack(rests)), 0)
    return jnp.sqrt(total + rest), power


def _abs_sq(x: Array) -> Array:
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def _unzip(like: Tree, leaves: list[tuple[Array, Array]]) -> Pair:
    unflatten = jax.tree.structure(like).unflatten
    return unflatten(a for a, _ in leaves), unflatten(b for _, b in leaves)
