"""The laws of the algebra of trees, and mutants that break them.

A law is a function from an implementation of the algebra and dtypes to a check with
drawn trees. The same check runs on `contrib_core.tree`, where it must pass, and on the
implementations in `mutants_tree`, where it must fail.
"""

import functools as ft
import importlib.util
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import TypeCheckError
from mutants_tree import Mutant, MUTANTS

from contrib_core import tree
from contrib_core.laws import DTYPES, fill, largest, pairs, precision, scalars, trees


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


# Mixed trees hold leaves of every dtype, some of them leaves of one dtype only.
ALL = ("f32", "bf16", "f16", "c64", "mixed", "mixed64")


# References, in higher precision than anything that is tested


def entries(x: Any) -> np.ndarray:
    """All entries of a tree as one vector."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(x)]
    wide = [
        leaf.astype(np.clongdouble if np.iscomplexobj(leaf) else np.longdouble).ravel()
        for leaf in leaves
    ]
    return np.concatenate([np.zeros(0, np.longdouble), *wide])


def expected_accumulator(*xs: Any) -> jnp.dtype:
    names = {str(leaf.dtype) for leaf in jax.tree.leaves(xs)}
    return jnp.dtype("float64" if names & {"float64", "complex128"} else "float32")


def types(x: Any) -> Any:
    """What a map must keep: structure, shapes, dtypes, and no weak types."""
    leaves = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(x)]
    return jax.tree.structure(x), leaves


def same(x: Any, y: Any) -> bool:
    """Whether two trees are equal bit by bit, but for the sign of zero."""
    return types(x) == types(y) and all(
        np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )


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
                # Half a unit in the last place of the leaf, by the one cast; whatever
                # came before it has errors of the accumulator.
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

        # Nor does it leak into derivatives.
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


# 8. What has no entries counts for nothing.


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


# `mixed64` are leaves of every dtype; one law is not about mixed trees.
@pytest.mark.parametrize(
    "name, key",
    [
        pytest.param(
            *case, marks=() if case[1] in ("mixed64", "f64") else pytest.mark.thorough
        )
        for case in CASES
    ],
)
def test_law(name: str, key: str):
    dtypes = DTYPES[key]
    with precision(*dtypes):
        LAWS[name](tree, dtypes)()


def _copy_of_tree() -> ModuleType:
    """A second instance of the module, whose functions can be replaced."""
    assert tree.__file__ is not None
    spec = importlib.util.spec_from_file_location("contrib_core._mutant", tree.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Mutants are looked for with more examples, because the shyest is seen in one of a
# hundred, and not made smaller when found.
_SEARCH = hypothesis.settings(
    max_examples=3000,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    report_multiple_bugs=False,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.law}-{m.name}")
def test_law_kills_mutant(mutant: Mutant):
    dtypes = DTYPES[mutant.dtypes]
    with precision(*dtypes):
        mutated = _copy_of_tree()
        mutant.apply(mutated)
        with pytest.raises(mutant.error):
            _SEARCH(LAWS[mutant.law](mutated, dtypes))()


@given(scalars(1.0))
def test_scalars_stay_within_their_bound(x: Any):
    assert abs(float(x)) <= 1


def test_every_law_has_a_mutant():
    assert {mutant.law for mutant in MUTANTS} == set(LAWS)


# Large trees


_REDUCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sum": (
        lambda x, y: tree.sum(lambda a: a, x),
        lambda a, b: (a.sum(), np.abs(a).sum()),
    ),
    "dot": (
        tree.dot,
        lambda a, b: ((a * b).sum(), np.linalg.norm(a) * np.linalg.norm(b)),
    ),
    "sq_norm": (lambda x, y: tree.sq_norm(x), lambda a, b: 2 * ((a * a).sum(),)),
    "sq_dist": (tree.sq_dist, lambda a, b: 2 * (((a - b) ** 2).sum(),)),
    "l1_norm": (lambda x, y: tree.l1_norm(x), lambda a, b: 2 * (np.abs(a).sum(),)),
    "norm": (lambda x, y: tree.norm(x), lambda a, b: 2 * (np.linalg.norm(a),)),
}


@pytest.mark.parametrize("offset", [0.0, 1.0], ids=["centred", "positive"])
@pytest.mark.parametrize("size", [10**6, 10**7])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_reductions_of_large_trees(dtype: str, size: int, offset: float):
    rng = np.random.default_rng(0)
    shapes = [(size // 2,), (size // 4000, 1000), (), (size // 4 - 1,)]
    x, y = (
        [
            jnp.asarray(rng.random(s, np.float32) - 0.5 + offset, dtype=dtype)
            for s in shapes
        ]
        for _ in range(2)
    )
    a, b = (
        np.concatenate([np.asarray(leaf).astype(np.float64).ravel() for leaf in z])
        for z in (x, y)
    )
    for name, (reduction, reference) in _REDUCTIONS.items():
        value, magnitude = reference(a, b)
        error = abs(float(jax.jit(reduction)(x, y)) - value) / magnitude
        assert error <= 1e-6, f"{name}: {error}"


# Norms at the ends of the range


@pytest.mark.parametrize("scale", [1e30, 1e-30, 8e37, 1.2e-38, 1.0])
def test_norm_at_the_ends_of_the_range(scale: float):
    x = {"a": jnp.full((3,), scale), "b": jnp.full((), -scale, jnp.float32)}
    value, grad = jax.jit(jax.value_and_grad(tree.norm))(x)
    assert value == pytest.approx(2 * float(jnp.float32(scale)), rel=1e-6)
    assert grad["a"] == pytest.approx(0.5, rel=1e-6)
    assert grad["b"] == pytest.approx(-0.5, rel=1e-6)


def test_norm_overflows_only_where_the_result_does():
    assert tree.norm(jnp.asarray([3e38, 1e38])) == pytest.approx(3.1622776e38, rel=1e-6)
    assert tree.norm(jnp.asarray([3e38, 3e38])) == math.inf
    assert tree.norm(jnp.asarray([3e38 + 1e38j])) == pytest.approx(3.1622776e38)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_norm_and_its_derivative_at_zero(dtype: str):
    x = {"a": jnp.zeros((2, 2), dtype), "b": jnp.zeros((), dtype)}
    value, grad = jax.value_and_grad(tree.norm)(x)
    assert value == 0
    assert same(grad, tree.zeros_like(x))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_norm_of_what_is_not_finite(value: float):
    x = {"a": jnp.asarray([1.0, value]), "b": jnp.ones(2)}
    expected = math.nan if math.isnan(value) else math.inf
    assert float(tree.norm(x)) == pytest.approx(expected, nan_ok=True)
    assert float(tree.max_abs(x)) == pytest.approx(expected, nan_ok=True)


# Bounds


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_saturate_and_abs_sq(dtypes: tuple[str, ...]):
    def parts(x):
        wide = np.asarray(x)
        if np.iscomplexobj(wide):
            return np.stack([np.real(wide), np.imag(wide)])
        return wide[None].astype(expected_accumulator(x))

    @given(trees(*dtypes))
    def check(x):
        leaves = (jax.tree.leaves(z) for z in (x, tree.saturate(x), tree.abs_sq(x), x))
        for leaf, saturated, square, like in zip(*leaves, strict=True):
            real = expected_accumulator(like)
            bound = np.array(2.0 ** (384 if real == "float64" else 48), real)
            wide = jax.tree.leaves(tree.widen(leaf))[0]
            assert saturated.dtype == wide.dtype
            assert np.array_equal(parts(saturated), np.clip(parts(leaf), -bound, bound))
            assert square.dtype == real and square.shape == leaf.shape
            exact = np.minimum(np.abs(entries(leaf)) ** 2, np.longdouble(bound) ** 2)
            error = np.abs(entries(square) - exact)
            tiny = float(jnp.finfo(real).tiny)
            assert np.all(error <= 4 * float(jnp.finfo(real).eps) * exact + 2 * tiny)
            # Room for the mean of 2^31 of them: the promise behind the bound.
            assert np.all(np.isfinite(np.asarray(square) * real.type(2.0**31)))

    with precision(*dtypes):
        check()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_saturate_and_abs_sq_of_what_is_not_finite(dtype: str):
    x = jnp.asarray([math.inf, -math.inf, math.nan], dtype=dtype)
    assert np.array_equal(
        np.real(tree.saturate(x)), [2.0**48, -(2.0**48), np.nan], equal_nan=True
    )
    assert np.array_equal(
        np.asarray(tree.abs_sq(x)), [2.0**96, 2.0**96, np.nan], equal_nan=True
    )


def test_finite_replaces_infinities_only():
    top = jnp.finfo("float32").max
    for x, expected in [
        (math.inf, top),
        (-math.inf, -top),
        (3e38, 3e38),
        (-1.5, -1.5),
        (0.0, 0.0),
    ]:
        result = tree.finite(jnp.asarray(x))
        assert result == jnp.asarray(expected, jnp.float32)
        assert result.dtype == jnp.float32
    assert jnp.isnan(tree.finite(jnp.asarray(math.nan)))


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_widen_and_accumulator_like(dtypes: tuple[str, ...]):
    wider = {"bfloat16": "float32", "float16": "float32"}
    real = {"complex64": "float32", "complex128": "float64"} | wider

    @given(trees(*dtypes))
    def check(x):
        def with_dtypes(z, table):
            return jax.tree.map(lambda a: a.astype(table.get(str(a.dtype), a.dtype)), z)

        zeros = tree.zeros_like(x)
        assert same(tree.widen(x), with_dtypes(x, wider))
        assert same(tree.accumulator_like(x), with_dtypes(zeros, wider))
        reals = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), zeros)
        reals = jax.tree.map(lambda a: a.real if jnp.iscomplexobj(a) else a, reals)
        assert same(tree.accumulator_like(x, real=True), with_dtypes(reals, real))
        assert same(tree.widen(x, jnp.bfloat16), with_dtypes_of_bfloat16(x))

    def with_dtypes_of_bfloat16(x):
        # The wider of bfloat16 and float16, neither of which holds the other.
        return jax.tree.map(
            lambda a: a.astype("float32" if a.dtype == "float16" else a.dtype), x
        )

    with precision(*dtypes):
        check()


# Strict promotion, compilation, errors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("scalar_dtype", ["float32", "bfloat16", "float16", "int32"])
def test_typed_scalars_never_promote(dtype: str, scalar_dtype: str):
    x = {"a": jnp.asarray([1.0, 2.0], dtype), "b": jnp.asarray(3.0, dtype)}
    s = jnp.asarray(2, scalar_dtype)
    doubled = {"a": jnp.asarray([2.0, 4.0], dtype), "b": jnp.asarray(6.0, dtype)}
    assert same(tree.scale(s, x), doubled)
    assert same(tree.axpy(s, x, tree.zeros_like(x)), doubled)
    assert same(tree.lerp(tree.zeros_like(x), x, s), doubled)
    assert same(jax.jit(tree.scale)(s, x), doubled)
    total = tree.sum(lambda a, s: jnp.abs(s * a), x, s)
    assert total == 12 and total.dtype == jnp.float32


def test_float64_scalars_meet_narrow_trees(x64):
    s = jnp.asarray(2.0)
    assert s.dtype == jnp.float64
    for dtype in ("float32", "bfloat16", "complex64", "complex128"):
        x = [jnp.ones(3, dtype)]
        assert same(tree.scale(s, x), [jnp.full(3, 2, dtype)])


def test_lerp_is_exact_at_both_ends_when_compiled():
    x, y = jnp.asarray([1e8, 1 / 3, -3e38, 1e-30]), jnp.asarray([1 / 3, 1e8, 3e38, 7.0])
    lerp = jax.jit(tree.lerp)
    assert same(lerp(x, y, jnp.asarray(0.0)), x)
    assert same(lerp(x, y, jnp.asarray(1.0)), y)


def test_divide():
    zero, one, two = jnp.asarray(0.0), jnp.asarray(1.0), jnp.asarray(2.0)
    assert tree.divide(zero, zero) == 0
    assert tree.divide(one, zero) == 0
    assert tree.divide(one, -zero) == 0
    assert tree.divide(one, two) == 0.5
    assert jnp.isnan(tree.divide(jnp.asarray(math.nan), two))
    assert jax.grad(tree.divide)(one, zero) == 0
    assert jax.grad(tree.divide, argnums=1)(one, zero) == 0
    assert jax.grad(tree.divide, argnums=1)(one, two) == -0.25


@pytest.mark.parametrize(
    "x, y, path",
    [
        ({"a": 1, "b": 1}, {"a": 1}, r"`\['b'\]`"),
        ({"a": 1}, {"a": 1, "b": 1}, r"`\['b'\]`"),
        (
            {"a": 1, "b": {"c": (1, 1)}},
            {"a": 1, "b": {"c": (1, None)}},
            r"\['c'\]\[1\]",
        ),
        ((1, 1, 1), (1, None, None), r"`\[1\]`"),
        ((1, 1), [1, 1], "node types"),
    ],
)
def test_errors_name_the_first_difference(x, y, path: str):
    def arrays(z):
        return jax.tree.map(lambda _: jnp.ones(2), z)

    for call in (
        lambda x, y: tree.add(x, y),
        lambda x, y: tree.dot(x, y),
        lambda x, y: tree.axpy(2.0, y, x),
        lambda x, y: tree.where(jnp.asarray(True), x, y),
    ):
        with pytest.raises(ValueError, match=f"differ at .*{path}"):
            call(arrays(x), arrays(y))


def test_integer_trees_are_refused():
    with pytest.raises(TypeCheckError):
        tree.add({"a": jnp.arange(3)}, {"a": jnp.arange(3)})


# Sharded trees


def _sharded(mesh: jax.sharding.Mesh) -> list[dict[str, jax.Array]]:
    def put(x: jax.Array, *spec: str | None) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return [
        {
            "a": put(jnp.arange(64.0).reshape(8, 8) + i, "d"),
            "b": put(jnp.ones((4, 16), jnp.bfloat16), None, "d"),
            "c": put(jnp.asarray(2.0, jnp.float32)),
        }
        for i in range(2)
    ]


@pytest.fixture(params=[AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def mesh(request: pytest.FixtureRequest) -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("d",), axis_types=(request.param,))


_SHARDED_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "dot": tree.dot,
    "sum": lambda x, y: tree.sum(lambda a, b: a * b, x, y),
    "sq_dist": tree.sq_dist,
    "norm": lambda x, y: tree.norm(x),
    "l1_norm": lambda x, y: tree.l1_norm(x),
    "max_abs": lambda x, y: tree.max_abs(x),
}


def _dot_of_ravelled(x: Any, y: Any) -> jax.Array:
    flat = [
        jnp.concatenate([leaf.astype("float32").ravel() for leaf in jax.tree.leaves(z)])
        for z in (x, y)
    ]
    return jnp.dot(*flat)


def _collectives(fn: Callable[..., Any], *args: Any) -> set[str]:
    text = jax.jit(fn).lower(*args).compile().as_text()
    assert text is not None
    names = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    return {name for name in names if f" {name}" in text}


@pytest.mark.parametrize("name", _SHARDED_REDUCTIONS)
def test_reductions_of_sharded_trees_gather_nothing(mesh, name: str):
    x, y = _sharded(mesh)
    reduction = _SHARDED_REDUCTIONS[name]
    local = [jax.tree.map(np.asarray, z) for z in (x, y)]
    expected = reduction(*jax.tree.map(jnp.asarray, local))
    assert reduction(x, y) == pytest.approx(float(expected), rel=1e-6)
    assert _collectives(reduction, x, y) == {"all-reduce"}


def test_ravelling_would_gather():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    assert _collectives(_dot_of_ravelled, *_sharded(mesh)) - {"all-reduce"}


_SHARDED_MAPS: dict[str, Callable[..., Any]] = {
    "axpy": lambda x, y: tree.axpy(jnp.asarray(2.0), y, x),
    "lerp": lambda x, y: tree.lerp(x, y, jnp.asarray(0.5)),
    "where": lambda x, y: tree.where(jnp.asarray(True), x, y),
    "scale by norm": lambda x, y: tree.scale(tree.norm(y), x),
    "saturate": lambda x, y: tree.saturate(x),
    "abs_sq": lambda x, y: tree.abs_sq(x),
    "zeros_like": lambda x, y: tree.zeros_like(x),
    "accumulator_like": lambda x, y: tree.accumulator_like(x, real=True),
}


@pytest.mark.parametrize("name", _SHARDED_MAPS)
def test_maps_keep_shardings(mesh, name: str):
    x, y = _sharded(mesh)
    fn = _SHARDED_MAPS[name]
    for leaf, like in zip(*map(jax.tree.leaves, (fn(x, y), x)), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


@pytest.mark.parametrize("name", _SHARDED_MAPS)
def test_compiled_maps_keep_shardings(mesh, name: str):
    x, y = _sharded(mesh)
    fn = _SHARDED_MAPS[name]
    for leaf, like in zip(*map(jax.tree.leaves, (jax.jit(fn)(x, y), x)), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    assert _collectives(fn, x, y) <= {"all-reduce"}


@hypothesis.settings(max_examples=5)
@given(st.data())
def test_pairs_have_one_structure(data):
    """Of the strategies themselves: what the laws above rely on."""
    x, y = data.draw(pairs("float32", "bfloat16", "complex64", same_dtypes=False))
    assert jax.tree.structure(x) == jax.tree.structure(y)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x)
    assert types(data.draw(fill(shapes))) == types(x)


def test_after_is_1_and_nan_after_nan():
    for x, expected in ((0.0, 1.0), (-math.inf, 1.0), (math.nan, math.nan)):
        np.testing.assert_array_equal(tree.after(jnp.asarray(x)), expected)


@pytest.mark.parametrize("eps", [0, 1e-40, 0.5, jnp.zeros(()), jnp.asarray(0.5)])
def test_over_rms_divides_as_adam_does(eps: Any):
    x, v = jnp.array([0.0, 3.0, -1.0]), jnp.array([0.0, 4.0, 16.0])
    found = tree.over_rms({"x": x}, {"x": v}, eps, 0.5)["x"]
    expected = [0, 3 / (1 + eps), -1 / (2 + eps)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("multiple_of, at_zero", [(1e-8, math.nan), (0.0, 0.0)])
def test_over_rms_looks_for_0_only_where_it_may_be(multiple_of: float, at_zero: float):
    """That it is told wrongly shows here that it does not look."""
    x = v = {"x": jnp.array([0.0, 4.0])}
    found = tree.over_rms(x, v, jnp.zeros(()), multiple_of=multiple_of)["x"]
    np.testing.assert_allclose(found, [at_zero, 2])
