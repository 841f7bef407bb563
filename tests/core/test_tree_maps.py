"""Maps over trees: bounds, dtypes, division and errors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jaxtyping import TypeCheckError
from support.trees import entries, expected_accumulator, same

from contrib_core import tree
from contrib_laws import DTYPES, precision, trees


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
def test_saturate_and_abs_sq_of_nan_and_infinity(dtype: str):
    x = jnp.asarray([math.inf, -math.inf, math.nan], dtype=dtype)
    assert np.array_equal(
        np.real(tree.saturate(x)), [2.0**48, -(2.0**48), np.nan], equal_nan=True
    )
    assert np.array_equal(
        np.asarray(tree.abs_sq(x)), [2.0**96, 2.0**96, np.nan], equal_nan=True
    )


def test_clamp_to_finite_replaces_infinities_only():
    top = jnp.finfo("float32").max
    for x, expected in [
        (math.inf, top),
        (-math.inf, -top),
        (3e38, 3e38),
        (-1.5, -1.5),
        (0.0, 0.0),
    ]:
        result = tree.clamp_to_finite(jnp.asarray(x))
        assert result == jnp.asarray(expected, jnp.float32)
        assert result.dtype == jnp.float32
    assert jnp.isnan(tree.clamp_to_finite(jnp.asarray(math.nan)))


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
        # Neither of bfloat16 and float16 holds the other, so that both become float32.
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


def test_one_after_is_1_and_nan_after_nan():
    for x, expected in ((0.0, 1.0), (-math.inf, 1.0), (math.nan, math.nan)):
        np.testing.assert_array_equal(tree.one_after(jnp.asarray(x)), expected)


@pytest.mark.parametrize("eps", [0, 1e-40, 0.5, jnp.zeros(()), jnp.asarray(0.5)])
def test_over_rms_divides_as_adam_does(eps: Any):
    x, v = jnp.array([0.0, 3.0, -1.0]), jnp.array([0.0, 4.0, 16.0])
    found = tree.over_rms({"x": x}, {"x": v}, eps, 0.5)["x"]
    expected = [0, 3 / (1 + eps), -1 / (2 + eps)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("least, at_zero", [(1e-8, math.nan), (0.0, 0.0)])
def test_over_rms_guards_against_0_only_where_0_is_possible(
    least: float, at_zero: float
):
    """If `least` is wrong, the result is NaN, so no guard against 0 was compiled."""
    x = v = {"x": jnp.array([0.0, 4.0])}
    found = tree.over_rms(x, v, jnp.zeros(()), least=least)["x"]
    np.testing.assert_allclose(found, [at_zero, 2])
