"""Pytrees as vectors: the real inner-product space in which every rule is written.

A tree is a vector whose coordinates are the entries of its leaves; a complex entry is a
pair of real coordinates. `None` subtrees and zero-size leaves hold no coordinates.

1. Maps return leaves in the dtypes of their first tree.
2. Scalars live in the *accumulator dtype* of the trees they come from: float64 if any
   leaf has 64-bit reals, else float32, and never the dtype of a 16-bit leaf.
3. Maps compute in the accumulator dtype and cast once, at the end.
4. `dot` is Re⟨x, y⟩, a multiply and a sum: nothing is reshaped, so sharded leaves stay
   where they are. `norm` neither over- nor underflows, and its derivative at 0 is 0.
5. `lerp` is exact at both ends; `where` selects, so that a NaN in the branch not taken
   stays there.
6. `divide` divides by quantities that can be 0, and gives 0 there.
7. `sum` reduces an expression of several trees in one pass, without a temporary tree.
8. Empty trees, `None` subtrees, scalar and zero-size leaves have defined results.
"""

import functools as ft
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from ._errors import first_difference
from .ranges import is_zero
from .typing import AnyTree, Flag, RealLike, Scalar, Tree


# Precision


def accumulator_dtype(*trees: AnyTree) -> jnp.dtype:
    """The dtype of scalars that are computed from `trees`: float64 if any leaf has
    64-bit reals, else float32 (for trees without leaves too)."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(trees)}
    return np.dtype("float32" if dtypes.isdisjoint(_WIDE) else "float64")


_WIDE = {np.dtype("float64"), np.dtype("complex128")}


def scalar(x: RealLike, like: AnyTree) -> Scalar:
    """`x` as a strongly typed scalar in the accumulator dtype of `like`."""
    return lax.convert_element_type(x, accumulator_dtype(like))


def cast_like(x: Tree, like: Tree) -> Tree:
    """`x` in the dtypes of `like`."""
    return jax.tree.map(lambda a, b: _cast(a, b.dtype), x, like)


def widen(x: Tree, dtype: DTypeLike = jnp.float32) -> Tree:
    """`x` with every leaf in the wider of its own dtype and `dtype`. By default 16-bit
    leaves become float32, the narrowest dtype of statistics."""
    return jax.tree.map(lambda a: _cast(a, _wider(a.dtype, dtype)), x)


def _wider(a: DTypeLike, b: DTypeLike) -> jnp.dtype:
    if a == b:
        return jnp.dtype(a)
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def saturate(x: Tree) -> Tree:
    """`widen(x)` with coordinates beyond ±2⁴⁸ (float64: ±2³⁸⁴) set to that bound.

    Without a bound, one absurd gradient overflows a mean of squares for ever. Rules
    divide a mean of gradients by the root of such a mean: `saturate` bounds the
    gradients as `abs_sq` bounds their squares, so the quotient is right. NaN stays NaN.
    """
    return jax.tree.map(_saturate, widen(x))


def clamp_to_finite(x: Scalar) -> Scalar:
    """`x`, with infinities replaced by the largest finite numbers. NaN stays NaN."""
    largest = jnp.finfo(x.dtype).max
    return jnp.clip(x, -largest, largest)


def one_after(x: Scalar) -> Scalar:
    """1, or NaN if `x` is NaN. XLA cannot compute it before `x`.

    If a step computes `x` from a tree and then adds to the tree, multiply the summand
    by it. XLA then reads the tree for `x` first, and updates it without a copy.
    """
    return 1 / jnp.where(jnp.isnan(x), x, 1)  # Divided last, as in `divide`.


def _cast(x: Array, dtype: DTypeLike) -> Array:
    """`x.astype(dtype)`, which is slow to trace where it does nothing."""
    return x if x.dtype == dtype and not x.weak_type else x.astype(dtype)


def _saturate(x: Array) -> Array:
    if jnp.iscomplexobj(x):
        return lax.complex(_saturate(x.real), _saturate(x.imag))
    bound = _bound(x)
    return lax.clamp(-bound, x, bound)


def _bound(x: Array) -> Array:
    """The bound of `saturate`; its square times 2³² is finite."""
    return jnp.asarray(2.0 ** (3 * jnp.finfo(x.dtype).maxexp // 8), x.dtype)


# Maps


def map(fn: Callable[..., Any], x: Tree, *rest: Tree | RealLike) -> Tree:
    """Applies `fn` entrywise, in the accumulator dtype; leaves keep the dtypes of `x`.

    **Arguments:**

    - `fn`: a function of arrays, one for `x` and one for each of `rest`.
    - `x`: a tree; the result has its structure, shapes and dtypes.
    - `rest`: trees of the structure of `x`, or real scalars, which are broadcast.

    **Raises:** `ValueError` that names the first path where two trees differ.
    """
    leaves, structure = jax.tree.flatten(x)
    new, _ = _evaluated(fn, x, *rest)
    pairs = zip(new, leaves, strict=True)
    return jax.tree.unflatten(structure, [_cast(a, leaf.dtype) for a, leaf in pairs])


def _evaluated(
    fn: Callable[..., Any], x: Tree, *rest: Tree | RealLike
) -> tuple[list[Any], np.dtype]:
    """The results of `fn` for all leaves, and the accumulator dtype of all trees."""
    leaves, structure = jax.tree.flatten(x)
    columns, trees, numbers = [leaves], [*leaves], []
    for arg in rest:
        if _is_number(arg):
            columns.append([arg] * len(leaves))
            numbers.append(arg)
            continue
        entries, other = jax.tree.flatten(arg)
        if other != structure:
            where = first_difference(x, arg)
            raise ValueError(f"Trees must have one structure; they differ at {where}.")
        columns.append(entries)
        trees += entries
    dtype = accumulator_dtype(trees)
    dtypes = {getattr(a, "dtype", dtype) for a in (*trees, *numbers)}
    if dtypes != {dtype}:
        columns = [[_in_precision(a, dtype) for a in column] for column in columns]
    rows = zip(*columns, strict=True)
    if "c" in [d.kind for d in dtypes]:
        # Strict promotion forbids reals with complex numbers, even of equal precision.
        with jax.numpy_dtype_promotion("standard"):
            return [fn(*row) for row in rows], dtype
    return [fn(*row) for row in rows], dtype


def _in_precision(x: Any, dtype: np.dtype) -> Any:
    """`x` with components of `dtype`. Python numbers stay static, and weakly typed."""
    if isinstance(x, int | float):
        return x
    return _cast(x, _wider(dtype, jnp.complex64) if jnp.iscomplexobj(x) else dtype)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) or (
        hasattr(x, "shape") and x.shape == () and jnp.isrealobj(x)
    )


def add(x: Tree, y: Tree) -> Tree:
    """`x + y`."""
    return map(lambda a, b: a + b, x, y)


def sub(x: Tree, y: Tree) -> Tree:
    """`x - y`."""
    return map(lambda a, b: a - b, x, y)


def scale(s: RealLike, x: Tree) -> Tree:
    """`s x`."""
    return map(lambda a, s: s * a, x, s)


def axpy(s: RealLike, x: Tree, y: Tree) -> Tree:
    """`s x + y`, in the dtypes of `y`. For a Python 0 as `s`, it is `y` itself."""
    if is_zero(s):
        return y
    return map(lambda b, a, s: s * a + b, y, x, s)


def lerp(x: Tree, y: Tree, weight: RealLike) -> Tree:
    """`(1 - weight) x + weight y`: exactly `x` at weight 0, exactly `y` at 1."""
    return map(lambda a, b, w: (1 - w) * a + w * b, x, y, weight)


def ema(mean: Tree, sample: Tree, decay: RealLike) -> Tree:
    """`decay mean + (1 - decay) sample`: one step of an exponential moving average.

    A Python `decay` of 0.5 or more uses `mean + (1 - decay) (sample - mean)`, in which
    the weights add up to 1 exactly. At smaller decays, this difference would cancel.
    """
    if isinstance(decay, int | float) and decay >= 0.5:
        return map(lambda m, x, w: m + w * (x - m), mean, sample, 1 - decay)
    return map(lambda m, x, b: b * m + (1 - b) * x, mean, sample, decay)


def where(condition: Flag, x: Tree, y: Tree | RealLike) -> Tree:
    """`x` if `condition` else `y`. It selects, so a NaN in the other does not leak."""
    return map(lambda a, b: jnp.where(condition, a, b), x, y)


def zeros_like(x: Tree) -> Tree:
    """Zeros, in the dtypes and shardings of `x`."""
    return jax.tree.map(lambda a: _zeros(a, a.dtype), x)


def accumulator_like(x: Tree, *, real: bool = False) -> Tree:
    """Zeros in which to accumulate a statistic of `x`. 16-bit leaves become float32.
    With `real`, complex leaves become real, as second moments are."""

    def leaf(a: Array) -> Array:
        dtype = accumulator_dtype(a) if real else _wider(a.dtype, jnp.float32)
        return _zeros(a, dtype)

    return jax.tree.map(leaf, x)


def _zeros(like: Array, dtype: DTypeLike) -> Array:
    # Computed from `like`: under jit, on a mesh with automatic axes, zeros that depend
    # on no input would be replicated on every device.
    zeros = jnp.zeros_like(like, dtype=dtype)
    return jnp.where(like == like, zeros, zeros)


def abs_sq(x: Tree) -> Tree:
    """`|xᵢ|²` entrywise, in float32 or wider, and real for complex `x` too. No entry
    exceeds the square of the bound of `saturate`."""
    squares = jax.tree.map(_abs_sq, widen(x))
    return jax.tree.map(lambda a: jnp.minimum(a, _bound(a) ** 2), squares)


def _abs_sq(x: Array) -> Array:
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def divide(
    x: RealLike | Num[Array, "..."], y: Float[Array, "..."], *, least: RealLike = 0
) -> Num[Array, "..."]:
    """`x / y` for arrays of finite numbers, and 0 wherever `y` is 0.

    `least` is an approximate lower bound of `y`. If it is a Python number above 1e-30,
    `y` is not tested for 0.
    """
    # Between 1e-30 and the smallest float32, 1e-38, there is room for factors of `y`.
    if isinstance(least, int | float) and least > 1e-30:
        return x / y
    # The division comes last, because XLA computes it once. A select that came last
    # would be copied into the loop over every leaf that uses the result.
    return x / jnp.where(y == 0, jnp.inf, y)


def over_rms(
    x: Tree,
    v: Tree,
    eps: RealLike,
    unit: RealLike = 1,
    *,
    least: RealLike | None = None,
) -> Tree:
    """`x / (√v · unit + eps)`, a division by the root of a second moment; 0 at 0/0.

    `least` is a lower bound of the divisor, as for [`contrib_core.tree.divide`][]. By
    default it is `eps`; pass it if `eps` is an array.
    """
    least = eps if least is None else least

    def entry(x: Array, v: Array, eps: RealLike, unit: RealLike) -> Array:
        return divide(x, sqrt(v) * unit + eps, least=least)

    return map(entry, x, v, eps, unit)


@jax.custom_jvp
def sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`√x` with derivative 0 at 0. An infinite one, as of `jnp.sqrt`, leads to NaN."""
    return jnp.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    root = sqrt(*primals)
    return root, divide(tangents[0] / 2, root)


# Reductions


def sum(fn: Callable[..., Array], x: Tree, *rest: Tree | RealLike) -> Scalar:
    """`Σᵢ fn(xᵢ, ...)` over all entries, for a real-valued `fn` of arrays.

    Computed and summed in the accumulator dtype, 0 for a tree without entries.
    Arguments and errors as for [`contrib_core.tree.map`][].
    """
    parts, dtype = _evaluated(fn, x, *rest)
    return ft.reduce(
        jnp.add, [jnp.sum(part) for part in parts], lax.convert_element_type(0, dtype)
    )


def dot(x: Tree, y: Tree) -> Scalar:
    """`Re⟨x, y⟩`: the inner product of the coordinates, as real numbers."""

    def leaf(a: Array, b: Array) -> Array:
        if jnp.iscomplexobj(a):
            return a.real * b.real + a.imag * b.imag
        return a * b

    return sum(leaf, x, y)


def sq_norm(x: Tree) -> Scalar:
    """`‖x‖²` in one pass. It overflows if the square does; `norm` does not."""
    return sum(_abs_sq, x)


def sq_dist(x: Tree, y: Tree) -> Scalar:
    """`‖x - y‖²` in one pass, the difference taken in the accumulator dtype."""
    return sum(lambda a, b: _abs_sq(a - b), x, y)


def l1_norm(x: Tree) -> Scalar:
    """`Σ |xᵢ|`, with moduli for complex `x`."""
    return sum(jnp.abs, x)


def max_abs(x: Tree) -> Scalar:
    """`max |xᵢ|`, with moduli for complex `x`; 0 for a tree without entries."""
    parts, dtype = _evaluated(lambda a: jnp.max(jnp.abs(a), initial=0), x)
    return ft.reduce(jnp.maximum, parts, lax.convert_element_type(0, dtype))


def norm(x: Tree) -> Scalar:
    """`‖x‖`, accurate whenever it is representable; its derivative at 0 is 0.

    Two passes: the entries are first divided by a power of two, which is exact.
    """
    largest, power = magnitude(x)
    root = sqrt(sum(lambda a, p: _abs_sq(a * p), x, 1 / power))
    return jnp.where(jnp.isfinite(largest), root * power, largest)


def magnitude(x: Tree, *, differentiable: bool = True) -> tuple[Scalar, Scalar]:
    """The largest modulus of a component, and the power of two nearest to it.

    With `differentiable`, the power is at least the root of the smallest number, so
    that derivatives of a quotient by it do not underflow. Both have derivative 0.
    """
    # Components, because the modulus of a complex number may overflow.
    parts = jax.tree.map(lambda a: (a.real, a.imag) if jnp.iscomplexobj(a) else a, x)
    largest = lax.stop_gradient(max_abs(parts))
    maxexp = jnp.finfo(largest.dtype).maxexp
    _, exponent = jnp.frexp(largest)
    lowest = -maxexp // 2 if differentiable else 3 - maxexp
    exponent = jnp.clip(exponent, lowest, maxexp - 3)
    return largest, jnp.ldexp(jnp.ones_like(largest), exponent)


def size(x: Tree) -> int:
    """The number of entries of all leaves."""
    return jax.tree.reduce(lambda n, leaf: n + leaf.size, x, 0)
