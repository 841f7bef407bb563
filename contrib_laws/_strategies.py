"""Hypothesis strategies for trees, pairs of trees and scalars.

Let pytest parametrise dtypes (`DTYPES`), and hypothesis draw values and structures.
Leaves have few different shapes, so that JAX compiles each operation once.

Functions that run during drawing have no parameters such as `list[int]`: a type checker
at run time looks at random entries of a list, and hypothesis forbids randomness.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


DTYPES: dict[str, tuple[str, ...]] = {
    "f32": ("float32",),
    "bf16": ("bfloat16",),
    "f16": ("float16",),
    "c64": ("complex64",),
    "mixed": ("float32", "bfloat16", "float16", "complex64"),
    "f64": ("float64",),
    "c128": ("complex128",),
    "mixed64": ("float64", "float32", "bfloat16", "float16", "complex64", "complex128"),
}
"""By name, the dtypes that the leaves of one tree are drawn from. Dtypes with 64-bit
reals need `precision`."""

SHAPES: list[tuple[int, ...]] = [(), (3,), (2, 3), (0,)]


class Node(eqx.Module):
    """A node such as users have: an equinox module with a static field."""

    weight: PyTree[Any]
    rest: PyTree[Any]
    name: str = eqx.field(static=True, default="node")


def is_wide(*dtypes: str) -> bool:
    """Whether any of `dtypes` has 64-bit reals."""
    return any(dtype in ("float64", "complex128") for dtype in dtypes)


@contextlib.contextmanager
def precision(*dtypes: str) -> Iterator[None]:
    """A context for arrays of `dtypes`, with 64-bit types only if one needs them."""
    with jax.enable_x64(is_wide(*dtypes)):
        yield


def largest(dtype: str) -> float:
    """The largest finite real of `dtype`."""
    return float(jnp.finfo(dtype).max)


def reals(dtype: str, bound: float = math.inf) -> st.SearchStrategy[float]:
    """Finite reals for `dtype`: zeros, ordinary, tiny and huge ones, within ±`bound`.

    Subnormal numbers of float32 and float64 are left out, because CPUs may flush them
    to 0. Subnormal numbers of float16 are ordinary numbers of the accumulator dtype.
    """
    info = jnp.finfo(dtype)
    bound = min(bound, float(info.max))
    tiny = float(info.tiny)
    width = 64 if is_wide(dtype) else 32
    special = [0.0, 1.0, -1.0, 1 / 3, tiny, -tiny, 256.0, 1e-30, bound, -bound]
    small = min(4.0, bound)
    as_drawn = float if width == 64 else lambda x: float(np.float32(x))
    bound, small = as_drawn(bound), as_drawn(small)
    return st.one_of(
        st.floats(-small, small, width=width, allow_subnormal=False),
        st.sampled_from([x for x in special if abs(x) <= bound]),
        st.floats(-bound, bound, width=width, allow_subnormal=False),
    )


def numbers(dtype: str, bound: float = math.inf) -> st.SearchStrategy[Any]:
    """Finite numbers for `dtype`, complex if `dtype` is."""
    parts = reals(dtype, bound)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return st.builds(complex, parts, parts)
    return parts


def structures(
    *dtypes: str, modules: bool = True
) -> st.SearchStrategy[PyTree[jax.ShapeDtypeStruct]]:
    """Trees of shapes and dtypes: bare leaves, and nested dicts, tuples, `None`
    subtrees and empty nodes; with equinox modules if `modules`."""
    leaf = st.builds(
        jax.ShapeDtypeStruct, st.sampled_from(SHAPES), st.sampled_from(dtypes)
    )

    def nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        plain = st.one_of(
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
        )
        return plain | st.builds(Node, inner, inner) if modules else plain

    return st.recursive(leaf | leaf | st.none(), nodes, max_leaves=6)


def fill(
    structure: PyTree[jax.ShapeDtypeStruct], bound: float = math.inf
) -> st.SearchStrategy[PyTree[Any]]:
    """Trees of arrays with these shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(structure)

    def array(leaf: jax.ShapeDtypeStruct, entries: np.ndarray) -> jax.Array:
        return jnp.asarray(entries.astype(leaf.dtype).reshape(leaf.shape))

    def entries(leaf: jax.ShapeDtypeStruct) -> st.SearchStrategy[np.ndarray]:
        size = math.prod(leaf.shape)
        one = numbers(str(jnp.dtype(leaf.dtype)), bound)
        return st.lists(one, min_size=size, max_size=size).map(np.array)

    return st.tuples(*map(entries, leaves)).map(
        lambda rows: treedef.unflatten(map(array, leaves, rows))
    )


def trees(*dtypes: str, bound: float = math.inf) -> st.SearchStrategy[PyTree[Any]]:
    """Trees whose leaves have dtypes among `dtypes`, and entries of at most `bound`."""
    return structures(*dtypes).flatmap(lambda shape: fill(shape, bound))


def pairs(
    *dtypes: str, bound: float = math.inf, same_dtypes: bool = True
) -> st.SearchStrategy[tuple[PyTree[Any], PyTree[Any]]]:
    """Pairs of trees with the same structure and shapes.

    Corresponding leaves are both real or both complex; with `same_dtypes`, they have
    the same dtype.
    """

    alike = {d: _like(d, dtypes) for d in dtypes}

    def partner(structure: PyTree[Any]) -> st.SearchStrategy[PyTree[Any]]:
        leaves, treedef = jax.tree.flatten(structure)
        choices = [st.sampled_from(alike[str(leaf.dtype)]) for leaf in leaves]
        return st.tuples(*choices).map(
            lambda row: treedef.unflatten(
                jax.ShapeDtypeStruct(leaf.shape, dtype)
                for leaf, dtype in zip(leaves, row, strict=True)
            )
        )

    def pair(structure: PyTree[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
        other = st.just(structure) if same_dtypes else partner(structure)
        return st.tuples(
            fill(structure, bound), other.flatmap(lambda shape: fill(shape, bound))
        )

    return structures(*dtypes).flatmap(pair)


def _like(dtype: Any, dtypes: tuple[str, ...]) -> list[str]:
    """The members of `dtypes` that are complex if and only if `dtype` is."""
    wanted = jnp.issubdtype(dtype, jnp.complexfloating)
    return [d for d in dtypes if jnp.issubdtype(d, jnp.complexfloating) == wanted]


def scalars(bound: float = 4.0) -> st.SearchStrategy[Any]:
    """Real hyperparameters as users write them: Python numbers, and 0-d arrays of every
    real dtype that is enabled."""
    value = reals("float32", bound)
    whole = st.integers(-int(bound), int(bound))

    def typed(dtype: str) -> st.SearchStrategy[Any]:
        return value.map(lambda x: jnp.asarray(x, dtype))

    def default() -> st.SearchStrategy[Any]:
        """An array of the widest float dtype that is enabled."""
        return value.map(lambda x: jnp.asarray(x, jnp.result_type(float)))

    narrow = [typed(dtype) for dtype in ("float32", "bfloat16", "float16")]
    integer = whole.map(lambda n: jnp.asarray(n, jnp.int32))
    return st.one_of(value, whole, integer, *narrow, st.deferred(default))
