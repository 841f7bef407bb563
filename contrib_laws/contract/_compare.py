"""Comparisons of trees, which raise `Broken` with the path of the first difference."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._law import Broken


# In float64, the rounding error of a result is 1e-16. The first steps of rules that
# measure a distance are 1e-6 of the parameters, so these distances, and the updates,
# have errors of about 1e-10. The tolerance is a thousand times as large.
ROUNDING = 1e-7


@contextlib.contextmanager
def promise(what: str, code: str = "") -> Iterator[None]:
    """Turns any exception into `Broken`, with the promise `what`."""
    try:
        yield
    except Broken:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise Broken(f"{what}: {type(error).__name__}: {text}", code) from error


def require(condition: Any, what: str, code: str = "") -> None:
    """Raises `Broken` unless `condition`."""
    if not condition:
        raise Broken(what, code)


def type_of(x: Any, weak: bool = True) -> str:
    """Shape, dtype and weak type of an array; the class of anything else."""
    if not hasattr(x, "dtype"):
        return type(x).__name__
    is_weak = weak and getattr(x, "weak_type", False)
    return f"{x.dtype}{list(x.shape)}{' (weakly typed)' if is_weak else ''}"


def require_same_type(
    what: str, x: Any, y: Any, code: str = "", *, weak: bool = True
) -> None:
    """Requires one structure, and leaves of one shape, dtype and weak type."""
    require(
        jax.tree.structure(x) == jax.tree.structure(y),
        f"{what}: the structure is {jax.tree.structure(y)}, not "
        f"{jax.tree.structure(x)}",
        code,
    )
    for path, a, b in _pairs(x, y):
        given, wanted = type_of(b, weak), type_of(a, weak)
        require(given == wanted, f"{what}{path}: {given}, not {wanted}", code)


def require_same(what: str, x: Any, y: Any, code: str = "") -> None:
    """Requires that both are bitwise the same."""
    require_same_type(what, x, y, code, weak=False)
    for path, a, b in _pairs(x, y):
        same = np.asarray(raw(a)).tobytes() == np.asarray(raw(b)).tobytes()
        require(same, f"{what}{path}: {b}, not {a}", code)


def require_close(what: str, x: Any, y: Any, code: str = "") -> None:
    """Requires that both are equal up to rounding, relative to the largest entry of
    each leaf."""
    require_same_type(what, x, y, code, weak=False)
    for path, a, b in _pairs(x, y):
        a, b = np.asarray(raw(a)), np.asarray(raw(b))
        tolerance = ROUNDING * np.max(np.abs(a), initial=0)
        close = np.allclose(b, a, rtol=0, atol=tolerance)
        require(close, f"{what}{path}: {b}, not {a}", code)


def _pairs(x: Any, y: Any) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two trees, with their paths."""
    pairs = zip(named_leaves("", x), jax.tree.leaves(y), strict=True)
    for (where, a), b in pairs:
        yield where, a, b


def named_leaves(what: str, x: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a tree, each with its name in a sentence."""
    for path, leaf in jtu.tree_leaves_with_path(x):
        yield (f"{what} at {jtu.keystr(path)}" if path else what), leaf


def raw(x: Any) -> Any:
    """`x` itself; for typed random keys, their numbers."""
    is_array = isinstance(x, jax.Array)
    is_key = is_array and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


def snapshot(x: Any) -> Any:
    """The arrays of `x`, copied into memory of their own."""
    return jax.tree.map(lambda a: np.array(raw(a), copy=True), x)
