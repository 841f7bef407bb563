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
6. Division by something that can be 0 is `divide`, which states its value there.
7. `sum` reduces an expression of several trees in one pass, without a temporary tree.
8. Rows, of the first axis of every leaf, are added in twice the precision: as a sum and
   what rounding took from it.
9. Empty trees, `None` subtrees, scalar and zero-size leaves have defined results.
"""

import functools as ft
import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num, PyTree, Real

from . import _pairs as pairs
from ._errors import first_difference
from ._normal import normal_like as normal_like_array
from ._types import Flag, is_zero, RealLike, Scalar, Scalars, Tree


Pair: TypeAlias = tuple[Tree, Tree]
"""A tree in twice its precision: a sum, and the rest that rounding took from it."""


# Precision


def accumulator_dtype(*trees: PyTree[Any]) -> jnp.dtype:
    """The dtype of scalars that are computed from `trees`: float64 if any leaf has
    64-bit reals, else float32 (for trees without leaves too)."""
    wide = any(jnp.finfo(leaf.dtype).bits == 64 for leaf in jax.tree.leaves(trees))
    return jnp.dtype("float64" if wide else "float32")


def scalar(x: RealLike, like: PyTree[Any]) -> Scalar:
    """`x` as a strongly typed scalar in the accumulator dtype of `like`."""
    return lax.convert_element_type(x, accumulator_dtype(like))


def scalars(x: Real[Array, " n"], like: PyTree[Any]) -> Scalars:
    """`x` as strongly typed numbers in the accumulator dtype of `like`."""
    return lax.convert_element_type(x, accumulator_dtype(like))


def cast_like(x: Tree, like: Tree) -> Tree:
    """`x` in the dtypes of `like`."""
    return jax.tree.map(lambda a, b: _cast(a, b.dtype), x, like)


def widen(x: Tree, dtype: DTypeLike = jnp.float32) -> Tree:
    """`x` with every leaf in the wider of its own dtype and `dtype`; by default 16-bit
    leaves become float32, which is what statistics are computed from."""
    return jax.tree.map(lambda a: _cast(a, _wider(a.dtype, dtype)), x)


def _wider(a: DTypeLike, b: DTypeLike) -> jnp.dtype:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def saturate(x: Tree) -> Tree:
    """`widen(x)` with coordinates beyond ±2⁴⁸ (float64: ±2³⁸⁴) set to that bound.

    A rule that divides a mean of gradients by the root of a mean of their squares
    saturates the one, as `abs_sq` does the other: so the quotient stays what it is, and
    one absurd gradient does not overflow a mean for ever. NaN stays NaN.
    """
    return jax.tree.map(_saturate, widen(x))


def finite(x: Scalar) -> Scalar:
    """`x`, with infinities replaced by the largest finite numbers. NaN stays NaN."""
    largest = jnp.finfo(x.dtype).max
    return jnp.clip(x, -largest, largest)


def after(x: Scalar) -> Scalar:
    """1, but NaN if `x` is: so it is not known before `x`.

    A factor for what is added to trees that `x` was computed of. XLA updates them in
    place if it has to wait for `x`, and else it may copy them first.
    """
    return 1 / jnp.where(jnp.isnan(x), x, 1)  # Divided last, as in `divide`.


def _widen(x: Array, real: jnp.dtype) -> Array:
    """`x` with components of dtype `real`."""
    return _cast(x, _wider(real, jnp.complex64) if jnp.iscomplexobj(x) else real)


def _cast(x: Array, dtype: DTypeLike) -> Array:
    """`x.astype(dtype)`, which is slow to trace where it does nothing."""
    return x if x.dtype == dtype and not x.weak_type else x.astype(dtype)


def _saturate(x: Array) -> Array:
    if jnp.iscomplexobj(x):
        return lax.complex(_saturate(x.real), _saturate(x.imag))
    bound = _bound(x)
    return lax.clamp(-bound, x, bound)


def _bound(x: Array) -> Array:
    """What `saturate` clips to: its square times 2³² is finite."""
    return jnp.asarray(2.0 ** (3 * jnp.finfo(x.dtype).maxexp // 8), x.dtype)


# Maps


def map(fn: Callable[..., Any], x: Tree, *rest: Tree | RealLike) -> Tree:
    """Applies `fn` entrywise, in the accumulator dtype; leaves keep the dtypes of `x`.

    **Arguments:**

    - `fn`: a function of as many arrays as there are further arguments.
    - `x`: decides the structure, shapes and dtypes of the result.
    - `rest`: trees of the structure of `x`, or real scalars, which are broadcast.

    **Raises:** `ValueError` that names the first path where two trees differ.
    """
    leaves, structure = jax.tree.flatten(x)
    new = [
        _cast(_apply(fn, row), leaf.dtype)
        for leaf, row in zip(leaves, _rows(x, *rest), strict=True)
    ]
    return jax.tree.unflatten(structure, new)


def _apply(fn: Callable[..., Any], row: tuple[Any, ...]) -> Any:
    """`fn(*row)`, where reals may meet complex numbers of the same precision, which is
    an error under strict promotion."""
    if any(jnp.iscomplexobj(entry) for entry in row):
        with jax.numpy_dtype_promotion("standard"):
            return fn(*row)
    return fn(*row)


def _rows(*args: Tree | RealLike) -> Iterator[tuple[Any, ...]]:
    """For each leaf, its entry of every argument in the accumulator dtype of all."""
    x, *_ = args
    trees = [arg for arg in args if not _is_number(arg)]
    dtype = accumulator_dtype(x, trees)
    size = len(jax.tree.leaves(x))

    def column(arg: Any) -> list[Any]:
        if isinstance(arg, int | float):
            return [arg] * size  # Stays static, and weakly typed.
        if _is_number(arg):
            return [lax.convert_element_type(arg, dtype)] * size
        if where := first_difference(x, arg):
            raise ValueError(f"Trees must have one structure; they differ at {where}.")
        return [_widen(leaf, dtype) for leaf in jax.tree.leaves(arg)]

    return zip(*[column(arg) for arg in args], strict=True)


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
    """`s x + y`, in the dtypes of `y`; just `y` where `s` is a Python 0."""
    if is_zero(s):
        return y
    return map(lambda b, a, s: s * a + b, y, x, s)


def lerp(x: Tree, y: Tree, weight: RealLike) -> Tree:
    """`(1 - weight) x + weight y`: exactly `x` at weight 0, exactly `y` at 1."""
    return map(lambda a, b, w: (1 - w) * a + w * b, x, y, weight)


def ema(mean: Tree, sample: Tree, decay: RealLike) -> Tree:
    """`decay mean + (1 - decay) sample`: one step of an exponential moving average.

    Written as `mean + (1 - decay) (sample - mean)`, whose weights add up to 1 exactly;
    unless `decay` is small or traced, for at small decays the difference cancels.
    """
    if isinstance(decay, int | float) and decay >= 0.5:
        return map(lambda m, x, w: m + w * (x - m), mean, sample, 1 - decay)
    return map(lambda m, x, b: b * m + (1 - b) * x, mean, sample, decay)


def where(condition: Flag, x: Tree, y: Tree | RealLike) -> Tree:
    """`x` if `condition` else `y`, by select: what is not chosen cannot leak."""
    return map(lambda a, b: jnp.where(condition, a, b), x, y)


def zeros_like(x: Tree) -> Tree:
    """Zeros, in the dtypes and shardings of `x`."""
    return jax.tree.map(lambda a: _zeros(a, a.dtype), x)


def accumulator_like(x: Tree, *, real: bool = False) -> Tree:
    """Zeros to accumulate a statistic of `x` in: 16-bit leaves become float32, and with
    `real` complex leaves become real, as second moments are."""

    def leaf(a: Array) -> Array:
        dtype = accumulator_dtype(a) if real else _wider(a.dtype, jnp.float32)
        return _zeros(a, dtype)

    return jax.tree.map(leaf, x)


def _zeros(like: Array, dtype: DTypeLike) -> Array:
    # Computed from `like`, because under jit on a mesh of automatic axes zeros that
    # depend on nothing would all be put on every device.
    zeros = jnp.zeros_like(like, dtype=dtype)
    return jnp.where(like == like, zeros, zeros)


def abs_sq(x: Tree) -> Tree:
    """`|xᵢ|²` entrywise, at most the square of the bound of `saturate`: real also where
    `x` is complex, and at least float32."""
    squares = jax.tree.map(_abs_sq, widen(x))
    return jax.tree.map(lambda a: jnp.minimum(a, _bound(a) ** 2), squares)


def _abs_sq(x: Array) -> Array:
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def divide(
    x: RealLike | Num[Array, "..."], y: Float[Array, "..."]
) -> Num[Array, "..."]:
    """`x / y` for arrays of finite numbers, and 0 wherever `y` is 0."""
    # The division comes last: XLA computes it once, where a select would be copied into
    # the loop over every leaf that uses the result.
    return x / jnp.where(y == 0, jnp.inf, y)


def divider(eps: RealLike) -> Callable[[Any, Any], Any]:
    """What divides by `y + eps` for `y >= 0`: plain division where `eps` is a number
    that float32 tells from 0, and else `divide`, which is some operations more."""
    # With room above the smallest float32, 1e-38, for what `eps` is multiplied by.
    known = isinstance(eps, int | float) and eps > 1e-30
    return operator.truediv if known else divide


def over_rms(
    x: Tree,
    v: Tree,
    eps: RealLike,
    unit: RealLike = 1,
    multiple_of: RealLike | None = None,
) -> Tree:
    """`x / (√v · unit + eps)`, as Adam divides by its second moment; 0 at 0/0.

    Where `eps` is computed and at least about `multiple_of`, a number above 0, there is
    no test for 0/0.
    """
    quotient = divider(eps if multiple_of is None else multiple_of)
    return map(
        lambda x, v, eps, unit: quotient(x, sqrt(v) * unit + eps), x, v, eps, unit
    )


@jax.custom_jvp
def sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`√x`, with derivative 0 at 0, where that of `jnp.sqrt` is infinite and makes
    every derivative that comes through it NaN."""
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
    parts = [jnp.sum(_apply(fn, row)) for row in _rows(x, *rest)]
    trees = [x, *(arg for arg in rest if not _is_number(arg))]
    return ft.reduce(jnp.add, parts, scalar(0, like=trees))


def dot(x: Tree, y: Tree) -> Scalar:
    """`Re⟨x, y⟩`: the inner product of the coordinates, as real numbers."""

    def leaf(a: Array, b: Array) -> Array:
        if jnp.iscomplexobj(a):
            return a.real * b.real + a.imag * b.imag
        return a * b

    return sum(leaf, x, y)


def sq_norm(x: Tree) -> Scalar:
    """`‖x‖²` in one pass; it overflows where the square does, `norm` does not."""
    return sum(_abs_sq, x)


def sq_dist(x: Tree, y: Tree) -> Scalar:
    """`‖x - y‖²` in one pass, the difference taken in the accumulator dtype."""
    return sum(lambda a, b: _abs_sq(a - b), x, y)


def l1_norm(x: Tree) -> Scalar:
    """`Σ |xᵢ|`, of moduli where `x` is complex."""
    return sum(jnp.abs, x)


def max_abs(x: Tree) -> Scalar:
    """`max |xᵢ|`, of moduli where `x` is complex; 0 for a tree without entries."""
    parts = [jnp.max(jnp.abs(a), initial=0) for (a,) in _rows(x)]
    return ft.reduce(jnp.maximum, parts, scalar(0, like=x))


def norm(x: Tree) -> Scalar:
    """`‖x‖`, right whenever it is representable; its derivative at 0 is 0.

    Two passes: the entries are first divided by the power of two nearest to the
    largest, which is exact.
    """
    largest, unit = _unit(x, differentiable=True)
    root = sqrt(sum(lambda a, u: _abs_sq(a * u), x, 1 / unit))
    return jnp.where(jnp.isfinite(largest), root * unit, largest)


def precise_norm(x: Tree) -> tuple[Scalar, Scalar]:
    """`‖x‖` as a product: of a root, right to two units in the last place however many
    entries there are, and of a power of two.

    So it is known where it is not representable, too; the root is finite if and only if
    all entries are. It has no derivative.
    """
    largest, unit = _unit(x, differentiable=False)
    parts = []
    for a, inverse in _rows(x, 1 / unit):
        squares = _apply(lambda a, u: _abs_sq(a * u), (a, inverse))
        part = squares, jnp.zeros_like(squares)
        for axis in reversed(range(a.ndim)):
            part = pairs.sum(part, axis)
        parts.append(part)
    # In a reduction: a chain of additions, each of which uses the last one five times,
    # XLA would copy into itself over and over.
    totals, rests = zip(*parts, strict=True) if parts else ([largest], [largest])
    total, rest = pairs.sum((jnp.stack(totals), jnp.stack(rests)), 0)
    return jnp.sqrt(total + rest), unit


def _unit(x: Tree, *, differentiable: bool) -> tuple[Scalar, Scalar]:
    """The largest modulus of a component, and the power of two nearest to it."""
    # Components, since the modulus of a complex number may not be representable.
    parts = jax.tree.map(lambda a: (a.real, a.imag) if jnp.iscomplexobj(a) else a, x)
    largest = lax.stop_gradient(max_abs(parts))
    maxexp = jnp.finfo(largest.dtype).maxexp
    _, exponent = jnp.frexp(largest)
    # Not below the root of the smallest number, or derivatives would underflow.
    lowest = -maxexp // 2 if differentiable else 3 - maxexp
    exponent = jnp.clip(exponent, lowest, maxexp - 3)
    return largest, jnp.ldexp(jnp.ones_like(largest), exponent)


def size(x: Tree) -> int:
    """The number of entries of all leaves."""
    return jax.tree.reduce(lambda n, leaf: n + leaf.size, x, 0)


# Rows: trees along the first axis of every leaf


def map_rows(fn: Callable[..., Any], *rows: PyTree[Any]) -> Any:
    """`fn` of each row, stacked; of no rows where there are none, or no leaves."""
    number = next((leaf.shape[0] for leaf in jax.tree.leaves(rows)), 0)
    return jax.vmap(fn, axis_size=number)(*rows)


def sum_rows(rows: Tree) -> Pair:
    """`Σᵢ rowsᵢ`, over the first axis of every leaf, in twice the precision.

    One reduction, which XLA fuses with what computes the rows, and which sums the rows
    of each device by themselves before it gathers.
    """
    leaves = [(x, jnp.zeros_like(x)) for x in jax.tree.leaves(rows)]
    return _unzip(rows, [pairs.sum(leaf, 0) for leaf in leaves])


def add_pairs(x: Pair, y: Pair) -> Pair:
    """`x + y` in twice the precision."""
    columns = [jax.tree.leaves(part) for part in (*x, *y)]
    rows = zip(*columns, strict=True)
    return _unzip(x[0], [pairs.add((a, b), (c, d)) for a, b, c, d in rows])


def _unzip(like: Tree, leaves: list[tuple[Array, Array]]) -> Pair:
    unflatten = jax.tree.structure(like).unflatten
    return unflatten(a for a, _ in leaves), unflatten(b for _, b in leaves)


def twice(x: Tree) -> Pair:
    """`x` in twice its precision."""
    return x, zeros_like(x)


def split(x: Tree, unit: Scalar) -> Pair:
    """The multiple of `unit` nearest to each entry, and the rest; their sum is `x`."""
    coarse = map(lambda a, unit: jnp.round(a / unit) * unit, x, unit)
    return coarse, sub(x, coarse)


def normal_like(x: Tree, key: Key[Array, ""]) -> Tree:
    """Independent normal numbers of variance 1, in the shapes and dtypes of `x`.

    Complex leaves have variance 1 in both parts. A leaf does not know of the others but
    how many there are before it.

    Each is half of a sum of four. One of float32 has 24 random bits, and is never above
    5.4: an event of probability 7e-8, which a mechanism that promises less has to have.
    """
    leaves, structure = jax.tree.flatten(x)
    # Of all leaves at once, or there would be a loop for each.
    own = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(leaves)))
    keys = jax.vmap(lambda key: jax.random.split(key, (2, 4)))(own)
    return structure.unflatten(
        normal_like_array(leaf, keys[i]) for i, leaf in enumerate(leaves)
    )
