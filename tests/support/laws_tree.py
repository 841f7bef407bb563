"""The laws of the algebra of trees.

A law is a function from an implementation of the algebra and dtypes to a check with
drawn trees. The same check runs on `contrib_core.tree`, where it must pass, and on the
implementations in `mutants_tree`, where it must fail.
"""

import functools as ft
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from contrib_laws import largest, pairs, scalars, trees
from support.trees import entries, expected_accumulator, same, types


Check = Callable[[], None]

LAWS: dict[str, Callable[..., Check]] = {}

CASES: list[tuple[str, str]] = []


def law(*keys: str) -> Callable[..., Any]:
    """Registers a law under its name, to be checked for trees of these dtypes."""

    def register(fn: Callable[..., Check]) -> Callable[..., Check]:
        LAWS[fn.__name__] = fn
        CASES.extend((fn.__name__, key) for key in keys)
        return fn

    return register


# Trees of "mixed" hold leaves of every dtype; some have leaves of one dtype only.
ALL = ("f32", "bf16", "f16", "c64", "mixed", "mixed64")


def moderate(*dtypes: str) -> float:
    """A bound under which sums of a few multiples cannot overflow."""
    return min(map(largest, dtypes)) / 64


def square_root(*dtypes: str) -> float:
    """A bound under which sums of a few squares cannot overflow the accumulator."""
    bound = 1e150 if all(d in ("float64", "complex128") for d in dtypes) else 1e18
    return min(bound, moderate(*dtypes))


# 1. Maps return leaves in the dtypes of their first tree.


@law(*ALL)
def maps_keep_dtypes(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(pairs(*dtypes, same_dtypes=False), scalars())
    def check(xy, s):
        x, y = xy
        flag = jnp.asarray(True)
        results = {
            "map": t.map(lambda a, b, s: a * s - b, x, y, s),
            "add": t.add(x, y),
            "sub": t.sub(x, y),
            "scale": t.scale(s, x),
            "axpy": t.axpy(s, y, x),
            "lerp": t.lerp(x, y, s),
            "ema": t.ema(x, y, s),
            "where": t.where(flag, x, y),
            "where with a number": t.where(flag, x, s),
            "zeros_like": t.zeros_like(x),
            "cast_like": t.cast_like(y, x),
        }
        for name, result in results.items():
            assert types(result) == types(x), name

    return check


# 2. Scalars live in the accumulator dtype.


@law(*ALL)
def scalars_have_the_accumulator_dtype(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(pairs(*dtypes), scalars())
    def check(xy, s):
        x, y = xy
        results = {
            "scalar": t.scalar(s, x),
            "sum": t.sum(jnp.abs, x),
            "dot": t.dot(x, y),
            "sq_norm": t.sq_norm(x),
            "sq_dist": t.sq_dist(x, y),
            "l1_norm": t.l1_norm(x),
            "max_abs": t.max_abs(x),
            "norm": t.norm(x),
        }
        dtype = expected_accumulator(x, y)
        assert t.accumulator_dtype(x, y) == dtype
        for name, result in results.items():
            assert types(result)[1] == [((), dtype, False)], name

    return check


@law(*ALL)
def reductions_are_as_precise_as_the_accumulator(
    t: ModuleType, dtypes: tuple[str, ...]
) -> Check:
    @given(pairs(*dtypes, bound=square_root(*dtypes)))
    def check(xy):
        x, y = xy
        a, b = entries(x), entries(y)
        info = jnp.finfo(expected_accumulator(x))
        products = np.abs(a) * np.abs(b)
        largest_difference = np.abs(a) + np.abs(b)
        expected = {
            # reduction: its value, and the sum of the magnitudes that it adds up
            "l1_norm": (np.abs(a).sum(), np.abs(a).sum()),
            "sq_norm": ((np.abs(a) ** 2).sum(), (np.abs(a) ** 2).sum()),
            "dot": (np.real(a.conj() * b).sum(), products.sum()),
            "sq_dist": ((np.abs(a - b) ** 2).sum(), (largest_difference**2).sum()),
        }
        results = {
            "l1_norm": t.l1_norm(x),
            "sq_norm": t.sq_norm(x),
            "dot": t.dot(x, y),
            "sq_dist": t.sq_dist(x, y),
        }
        for name, (value, magnitude) in expected.items():
            tolerance = (len(a) + 4) * (float(info.eps) * magnitude + float(info.tiny))
            assert abs(np.longdouble(results[name]) - value) <= tolerance, name
        assert t.max_abs(x) == pytest.approx(
            float(np.abs(a).max(initial=0)), rel=4 * float(info.eps), abs=0
        )

    return check


# 3. Maps compute in the accumulator dtype and cast once.

# The result of each map as a sum of terms.
_Terms = Callable[[Any, Any, Any], tuple[Any, ...]]

SUMS: dict[str, _Terms] = {
    "add": lambda a, b, s: (a, b),
    "sub": lambda a, b, s: (a, -b),
    "scale": lambda a, b, s: (s * a,),
    "axpy": lambda a, b, s: (a, s * b),
    "lerp": lambda a, b, s: (a, -s * a, s * b),
    "ema": lambda a, b, s: (s * a, b, -s * b),
    "map": lambda a, b, s: (a, -b, s * (a - b)),
}


@law(*ALL)
def maps_round_once(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(
        pairs(*dtypes, bound=moderate(*dtypes), same_dtypes=False),
        scalars(),
    )
    def check(xy, s):
        # In a tuple, since a bare number would be a scalar for the second argument.
        x, y = (xy[0],), (xy[1],)
        results = {
            "add": t.add(x, y),
            "sub": t.sub(x, y),
            "scale": t.scale(s, x),
            "axpy": t.axpy(s, y, x),
            "lerp": t.lerp(x, y, s),
            "ema": t.ema(x, y, s),
            "map": t.map(lambda a, b, s: (a - b) + s * (a - b), x, y, s),
        }
        accumulator = jnp.finfo(expected_accumulator(x, y))
        number = np.longdouble(s)
        for name, terms_of in SUMS.items():
            rows = (jax.tree.leaves(tree_) for tree_ in (x, y, results[name]))
            for a, b, result in zip(*rows, strict=True):
                terms = terms_of(entries(a), entries(b), number)
                value = ft.reduce(np.add, terms)
                size = ft.reduce(np.add, [np.abs(term) for term in terms])
                own = jnp.finfo(result.dtype)
                # CPUs may flush the subnormal numbers of all dtypes but float16.
                half = result.dtype == jnp.float16
                underflow = own.smallest_subnormal if half else own.tiny
                # The one cast rounds by half a unit in the last place of the leaf;
                # everything before it has the errors of the accumulator.
                tolerance = (
                    0.5 * float(own.eps) * np.abs(value)
                    + 8 * float(accumulator.eps) * size
                    + float(underflow)
                    + 4 * float(accumulator.tiny)
                )
                assert np.all(np.abs(entries(result) - value) <= tolerance), name

    return check


# 4. `dot` is a real inner product without reshapes; `norm` is safe.


@law(*ALL)
def dot_is_an_inner_product(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(pairs(*dtypes, bound=square_root(*dtypes)))
    def check(xy):
        x, y = xy
        assert t.dot(x, y) == t.dot(y, x)
        assert t.dot(x, x) >= 0
        assert t.dot(x, x) == t.sq_norm(x)
        assert t.dot(x, t.zeros_like(x)) == 0
        # Multiplication by -1 is exact.
        assert t.dot(t.scale(-1, x), y) == -t.dot(x, y)

    return check


@law(*ALL)
def complex_is_a_pair_of_reals(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(pairs(*dtypes, bound=square_root(*dtypes)))
    def check(xy):
        def as_reals(z):
            return jax.tree.map(
                lambda a: (a.real, a.imag) if jnp.iscomplexobj(a) else a, z
            )

        x, y = xy
        u, v = as_reals(x), as_reals(y)
        eps = 64 * float(jnp.finfo(expected_accumulator(x)).eps)
        scale = float(t.norm(x)) * float(t.norm(y))
        assert abs(float(t.dot(x, y)) - float(t.dot(u, v))) <= eps * scale + 1e-36
        assert t.norm(x) == pytest.approx(float(t.norm(u)), rel=eps, abs=1e-37)

    return check


@law(*ALL)
def reductions_do_not_reshape(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(pairs(*dtypes))
    def check(xy):
        for reduction in (t.dot, t.sq_dist):
            jaxpr = str(jax.make_jaxpr(reduction)(*xy))
            assert "reduce_sum" in jaxpr or not entries(xy).size
            for gathering in ("reshape", "concatenate", "dot_general", "gather"):
                assert gathering not in jaxpr

    return check


@law(*ALL)
def norm_is_right_where_representable(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(trees(*dtypes))
    def check(x):
        info = jnp.finfo(expected_accumulator(x))
        value = np.sqrt((np.abs(entries(x)) ** 2).sum())
        norm = np.longdouble(t.norm(x))
        margin = 16 * float(info.eps)
        if value > float(info.max) * (1 + margin):
            assert norm == math.inf
        elif value < float(info.max) * (1 - margin):
            assert abs(norm - value) <= margin * value

    return check


@law(*ALL)
def norm_has_a_unit_derivative_or_none(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(trees(*dtypes))
    def check(x):
        (grad,) = jax.vjp(t.norm, x)[1](t.scalar(1, x))
        norm = t.norm(x)
        if not np.isfinite(norm):
            return
        if norm == 0:
            assert same(grad, t.zeros_like(x))
            return
        # jax.grad of a real function of complex numbers returns the conjugate.
        direction = entries(jax.tree.map(jnp.conj, x)) / np.longdouble(norm)
        eps = max(
            (float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(x)),
            default=0.0,
        )
        assert np.all(np.abs(entries(grad) - direction) <= 16 * eps)

    return check


# 5. `lerp` is exact at both ends, `where` selects.


@law(*ALL)
def lerp_is_exact_at_both_ends(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(pairs(*dtypes), st.sampled_from([int, float, jnp.int32, jnp.float32]))
    def check(xy, form):
        x, y = xy
        assert same(t.lerp(x, y, form(0)), x)
        assert same(t.lerp(x, y, form(1)), y)

    return check


@law(*ALL)
def ema_keeps_a_constant(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(trees(*dtypes), st.sampled_from([0.5, 0.9, 0.99, 0.999, 0.9999]))
    def check(x, decay):
        assert same(t.ema(x, x, decay), x)

    return check


@law(*ALL)
def where_selects(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(trees(*dtypes), st.sampled_from([math.nan, math.inf, -math.inf]))
    def check(x, poison):
        bad = t.map(lambda a: jnp.full_like(a, poison), x)
        yes, no = jnp.asarray(True), jnp.asarray(False)
        assert same(t.where(yes, x, bad), x)
        assert same(t.where(no, bad, x), x)
        assert same(t.where(yes, x, poison), x)

        def chosen(a, b):
            return t.l1_norm(t.where(yes, a, b))

        # The other branch does not leak into derivatives either.
        leaked = jax.grad(chosen, argnums=1)(x, bad)
        assert same(leaked, t.zeros_like(x))

    return check


# 6. `divide` states its value at 0.


@law(*ALL)
def divide_by_zero_is_zero(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(pairs(*dtypes))
    def check(xy):
        for x, y in zip(*map(jax.tree.leaves, xy), strict=True):
            if jnp.iscomplexobj(x):
                continue
            numerator, denominator = np.asarray(x), np.asarray(y)
            for q, at_zero in (
                (t.divide(x, y), denominator == 0),
                (t.divide(x, jnp.zeros_like(y)), np.full(y.shape, True)),
            ):
                assert q.dtype == x.dtype
                assert np.all(np.asarray(q)[at_zero] == 0)
            elsewhere = denominator != 0
            q = np.asarray(t.divide(x, y))[elsewhere]
            plain = np.asarray(jnp.asarray(numerator) / jnp.asarray(denominator))
            assert np.array_equal(q, plain[elsewhere])

    return check


# 7. `sum` is one pass.


# Not for float16 and complex leaves: XLA on CPU converts those before it reduces.
@law("f32", "bf16", "f64")
def sum_needs_no_temporary_tree(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    size = 2**16

    @given(st.sampled_from(dtypes), st.integers(1, 2))
    def check(dtype, num_leaves):
        x = [jnp.ones(size, dtype) for _ in range(num_leaves)]
        y = [2 * jnp.ones(size, dtype) for _ in range(num_leaves)]
        for reduction, value in ((t.dot, 2), (t.sq_dist, 1)):
            compiled = jax.jit(reduction).lower(x, y).compile()
            assert compiled(x, y) == value * size * num_leaves
            memory = compiled.memory_analysis()
            assert memory is not None
            assert memory.temp_size_in_bytes < jnp.dtype(dtype).itemsize * size / 8

    return check


@law(*ALL)
def sum_ignores_how_entries_are_grouped(
    t: ModuleType, dtypes: tuple[str, ...]
) -> Check:
    @given(pairs(*dtypes, bound=square_root(*dtypes)), scalars())
    def check(xy, s):
        x, y = xy

        def fn(a, b, s):
            return jnp.abs(a - b) * jnp.abs(s)

        whole = t.sum(fn, x, y, s)
        parts = [
            t.sum(fn, (a,), (b,), s)
            for a, b in zip(*map(jax.tree.leaves, xy), strict=True)
        ]
        # Some parts may be narrower than the whole.
        eps = max((float(jnp.finfo(part.dtype).eps) for part in parts), default=0.0)
        together = float(np.sum(np.array(parts, np.longdouble)))
        assert float(whole) == pytest.approx(together, rel=64 * eps, abs=1e-36)

    return check


# 8. Subtrees without entries count for nothing.


@law(*ALL)
def nothing_counts_for_nothing(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    @given(trees(*dtypes, bound=square_root(*dtypes)))
    def check(x):
        padded = {
            "a": None,
            "b": (),
            "c": jnp.zeros((0, 2), jnp.float32),
            "x": x,
            "z": {},
        }
        reductions = (t.sq_norm, t.l1_norm, t.max_abs, t.norm)
        for reduction in (*reductions, lambda z: t.dot(z, z)):
            assert reduction(padded) == reduction(x)
        assert t.size(padded) == t.size(x) == len(entries(x))
        doubled = t.add(padded, padded)
        assert types(doubled) == types(padded)
        assert same(doubled["x"], t.add(x, x))

    return check


@law(*ALL)
def empty_trees_have_defined_results(t: ModuleType, dtypes: tuple[str, ...]) -> Check:
    empties = [None, (), {}, {"a": None}, *(jnp.zeros((0, 3), d) for d in dtypes)]

    @given(st.sampled_from(empties))
    def check(x):
        dtype = expected_accumulator(x)
        for reduction in (t.sq_norm, t.l1_norm, t.max_abs, t.norm):
            zero = reduction(x)
            assert zero == 0 and types(zero)[1] == [((), dtype, False)]
        assert t.dot(x, x) == 0
        assert t.size(x) == 0
        maps = (t.add(x, x), t.scale(2.0, x), t.lerp(x, x, 0.5), t.zeros_like(x))
        for result in (*maps, t.cast_like(x, x)):
            assert types(result) == types(x)

    return check
