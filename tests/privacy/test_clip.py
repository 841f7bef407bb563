"""One example adds at most the bound to a clipped sum, whatever its gradient."""

import functools as ft
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jaxtyping import Array

from contrib_algos import ClippedSum, value_and_clipped_grad
from contrib_algos.privacy._clip import clip, clipped_rows
from contrib_algos.privacy._precise import sum_rows


EPS = float(np.finfo(np.float32).eps)
DTYPES = ["float32", "bfloat16", "float16"]


@jax.jit
def clip_rows(rows: Any, bounds: Any) -> Any:
    """Each row clipped to a bound of its own, and the norms."""
    return jax.vmap(clip)(rows, bounds)


def wide(x: Any) -> np.ndarray:
    """The entries of each row in float64, as real numbers."""
    leaves = []
    for leaf in jax.tree.leaves(x):
        a: Any = np.asarray(leaf)
        pair = np.stack([a.real, a.imag], -1) if np.iscomplexobj(a) else a
        leaves.append(pair.astype(np.float64).reshape(len(a), -1))
    return np.concatenate(leaves, axis=1)


def norms_of(x: Any) -> np.ndarray:
    """The norm of each row in float64, where nothing over- or underflows."""
    entries = wide(x)
    unit = np.abs(entries).max(axis=1, keepdims=True)
    unit[unit == 0] = 1
    return unit[:, 0] * np.sqrt(((entries / unit) ** 2).sum(axis=1))


def adversarial(rng: np.random.Generator, number: int, size: int) -> np.ndarray:
    """Rows of a modulus of about 1: equal entries, random ones, one among tiny ones,
    geometric sequences."""
    equal = np.broadcast_to(rng.uniform(1, 2, (number, 1)), (number, size))
    signs = rng.choice([-1.0, 1.0], (number, size))
    normal = rng.standard_normal((number, size))
    one = np.where(np.arange(size) == 0, 1.0, 10 ** rng.uniform(-8, -3, (number, size)))
    decay = rng.uniform(0.9, 1, (number, 1)) ** np.arange(size)
    kinds = np.stack([equal, equal * signs, normal, one, decay])
    return kinds[rng.integers(len(kinds), size=number), np.arange(number)]


def inputs(seed: int, number: int, size: int, dtype: str) -> tuple[Array, Array]:
    """Rows of all magnitudes, and bounds: at random, or within some ulp of the norm."""
    rng = np.random.default_rng(seed)
    # Powers of ten that the dtype distinguishes from 0 and infinity.
    low, high = (-7, 4) if dtype == "float16" else (-37, 37)
    high -= np.log10(size) / 2 + 0.7
    magnitudes = 10 ** rng.uniform(low, high, (number, 1))
    entries = adversarial(rng, number, size) * magnitudes
    # CPUs flush the subnormal numbers of all dtypes but float16 to 0.
    smallest = 0 if dtype == "float16" else float(jnp.finfo(dtype).tiny)
    rows = jnp.asarray(np.where(abs(entries) < smallest, 0, entries)).astype(dtype)
    near = norms_of(rows) * (1 + EPS * rng.integers(-20, 20, number))
    bounds = np.where(
        rng.integers(2, size=number) == 1, near, 10 ** rng.uniform(-30, 20, number)
    )
    return rows, jnp.asarray(np.clip(bounds, 1e-30, 1e20), jnp.float32)


@pytest.mark.parametrize(
    "size, number",
    [
        (1, 5000),
        (3, 5000),
        (100, 4000),
        pytest.param(10_000, 100, marks=pytest.mark.thorough),
        pytest.param(100_000, 20, marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_norm_exceeds_the_bound(dtype: str, size: int, number: int):
    """The bound holds exactly, in float64. No finite gradient is dropped, and short
    gradients are unchanged."""
    rows, bounds = inputs(size, number, size, dtype)
    clipped, norms = clip_rows({"x": rows}, bounds)
    before, after, most = norms_of(rows), norms_of(clipped), np.asarray(bounds, float)
    assert clipped["x"].dtype == jnp.float32
    assert not (after > most).any()
    np.testing.assert_allclose(norms, before, rtol=3 * EPS)
    assert (after[before > 0] > 0).all()
    np.testing.assert_allclose(after, np.minimum(before, most), rtol=12 * EPS)
    short = before < most * (1 - 16 * EPS)
    assert short.any() and not short.all()
    np.testing.assert_array_equal(wide(clipped)[short], wide(rows)[short])


def peer(rows: Any, bound: float, seed: int = 0) -> Any:
    """The sum of clipped rows, as optax computes it."""
    opt = optax.contrib.differentially_private_aggregate(bound, 0.0, seed)
    number = jax.tree.leaves(rows)[0].shape[0]
    with jax.numpy_dtype_promotion("standard"):
        mean, _ = opt.update(rows, opt.init(rows))
        return jax.tree.map(lambda x: number * x, mean)


def test_the_bound_is_exceeded_where_optax_0_2_8_clips():
    rows = jnp.full((1, 3), 0.7, jnp.float32)
    over = [
        float(norms_of(peer(rows * s, 1.0)[None])[0]) for s in np.linspace(1, 2, 32)
    ]
    assert max(over) > 1
    at_most = [
        norms_of(clip_rows(rows * s, jnp.ones(1))[0])[0] for s in np.linspace(1, 2, 32)
    ]
    assert max(at_most) <= 1


@pytest.mark.parametrize(
    "shape", [(1300, 1000), (2**21,), (3,) * 12, (1000, 3), (7, 11, 13)]
)
def test_norms_of_many_entries(shape: tuple[int, ...]):
    """Rounding of equal entries adds up: a plain sum of 3¹² is off by 30,000 ulp."""
    x = jnp.full((1, *shape), 1.1, jnp.float32)
    clipped, norms = clip_rows(x, jnp.ones(1))
    exact = float(x.ravel()[0]) * np.sqrt(x.size)
    assert abs(float(norms[0]) - exact) <= 2 * EPS * exact
    assert 1 - 12 * EPS <= norms_of(clipped)[0] <= 1


def test_norms_of_products_that_are_fused():
    """XLA computes outer products, as gradients of weights are, inside of the loop that
    uses them, and might round the clipped product differently from the measured one."""

    @jax.jit
    def clipped(a: Array, b: Array) -> Array:
        return clipped_rows(a[:, :, None] * b[:, None, :], 1.0)[0]

    a, b = jax.random.normal(jax.random.key(0), (2, 64, 300))
    assert (norms_of(clipped(a, b)) <= 1).all()
    assert norms_of(clipped(a, b)).min() >= 1 - 12 * EPS


def test_norms_of_many_leaves():
    rng = np.random.default_rng(0)
    scales = 10 ** rng.uniform(-3, 3, 300)
    rows = [jnp.asarray(rng.standard_normal((4, 2)) * s, jnp.float32) for s in scales]
    clipped, _ = clip_rows(rows, jnp.full(4, 2.0))
    assert (norms_of(clipped) <= 2).all() and norms_of(clipped).min() >= 2 - 24 * EPS


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [*DTYPES, "complex64"])
def test_gradients_that_are_not_finite_add_exactly_nothing(dtype: str, bad: float):
    """Optax 0.2.8 lets 1e6 pass: the norm is NaN, and NaN is not above the bound."""
    rows = jnp.full((3, 4), 1e4, dtype).at[1, 2].set(bad)
    clipped, _ = clip_rows({"x": rows, "y": rows.real}, jnp.ones(3))
    assert norms_of(clipped)[1] == 0
    assert (norms_of(clipped)[[0, 2]] > 0.999).all()


def test_an_example_that_is_not_finite_where_optax_0_2_8_does_not_clip():
    rows = jnp.array([[1e6, jnp.nan]], jnp.float32)
    assert abs(float(peer(rows, 1.0)[0])) == 1e6
    np.testing.assert_array_equal(clip_rows(rows, jnp.ones(1))[0], 0)


def test_complex_numbers_are_pairs():
    """The modulus itself may not be representable."""
    huge = jnp.array([[3e38 + 3e38j, 1e38]], jnp.complex64)
    for x in (huge, huge * 1e-35, jnp.array([[3 + 4j, 0]], jnp.complex64)):
        clipped, _ = clip_rows(x, jnp.ones(1))
        assert 1 - 12 * EPS <= norms_of(clipped)[0] <= 1
        np.testing.assert_allclose(np.angle(clipped), np.angle(x), rtol=1e-6)


def test_mixed_precision_is_that_of_the_widest_leaf(x64: None):
    """Rounded to float32, a gradient would exceed a bound known in float64."""
    rng = np.random.default_rng(0)
    rows = {
        "a": jnp.asarray(rng.standard_normal((500, 3)), jnp.float32),
        "b": jnp.asarray(rng.standard_normal((500, 3)) * 1e-9, jnp.float64),
        "c": jnp.asarray(rng.standard_normal((500, 3)), jnp.bfloat16),
    }
    clipped, _ = clip_rows(rows, jnp.full(500, 0.3))
    assert {x.dtype for x in jax.tree.leaves(clipped)} == {jnp.dtype("float64")}
    squares = (wide(clipped).astype(np.longdouble) ** 2).sum(axis=1)
    assert (np.sqrt(squares) <= np.longdouble(0.3)).all()
    assert (np.sqrt(squares) >= 0.3 * (1 - 1e-14)).all()


# Sums


def aligned(number: int, size: int, dtype: str) -> Array:
    """Nearly equal rows, each longer than 1, whose sum rounds every row off."""
    rng = np.random.default_rng(number)
    rows = (
        1
        + 0.1 * rng.standard_normal((1, size))
        + 1e-3 * rng.standard_normal((number, size))
    )
    return jnp.asarray(rows).astype(dtype)


@jax.jit
def total(rows: Any) -> Any:
    return sum_rows(clipped_rows(rows, 1.0)[0])


def exact(pair: Any) -> np.ndarray:
    return np.add(*(wide(jax.tree.map(lambda x: x[None], part))[0] for part in pair))


@pytest.mark.parametrize("size", [30, 1000])
@pytest.mark.parametrize("number", [16, 256, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.one_in(4)
def test_one_example_adds_at_most_the_bound(dtype: str, number: int, size: int):
    rows = aligned(number, size, dtype)
    whole = exact(total(rows))
    for i in (0, number // 3, number - 1):
        added = np.linalg.norm(whole - exact(total(rows.at[i].set(0))))
        assert 1 - 1e-4 <= added <= 1 + 1e-6


def test_one_example_changes_the_sum_of_4096_where_optax_0_2_8_adds_in_bfloat16():
    rows = aligned(4096, 100, "bfloat16")
    pair = peer(rows, 1.0), peer(rows.at[7].set(0), 1.0)
    assert np.linalg.norm(np.subtract(*(np.asarray(x, float) for x in pair))) > 2


def test_plain_sums_in_float32_exceed_the_bound():
    """A sum of equal rows rounds each further row up."""

    def added(add: Callable[[Array], Any], bound: Any) -> Any:
        rows = clipped_rows(jnp.ones((4096, 1)), bound)[0]
        return add(rows), add(rows.at[-1].set(0))

    def plain(rows: Array) -> Any:
        def step(total: Array, row: Array) -> tuple[Array, None]:
            return total + row, None

        return lax.scan(step, jnp.zeros(1), rows)[0], jnp.zeros(1)

    bounds = np.linspace(0.5, 0.51, 64, dtype=np.float32)
    for add, is_right in ((plain, False), (sum_rows, True)):
        pairs = jax.jit(lambda c, add=add: lax.map(ft.partial(added, add), c))(bounds)
        more, less = (np.add(*(np.asarray(x, float) for x in pair)) for pair in pairs)
        excess = ((more - less)[:, 0] / bounds).max() - 1
        assert excess < 1e-6 if is_right else excess > 1e-4


# A block after the other


def loss(params: Any, example: Any) -> Array:
    x, y = example
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return (hidden @ params["v"] - y) ** 2


PARAMS: Any = {
    "w": jax.random.normal(jax.random.key(0), (5, 7)),
    "b": jnp.zeros(7),
    "v": jnp.ones(7),
}
BATCH = (
    jax.random.normal(jax.random.key(1), (70, 5)) * jnp.logspace(-3, 2, 70)[:, None],
    jnp.arange(70.0) / 4,
)


@ft.lru_cache
def blocks(size: int) -> Callable[..., ClippedSum]:
    return jax.jit(value_and_clipped_grad(loss, 1.0, microbatch_size=size).__call__)


def reference() -> tuple[np.ndarray, np.ndarray]:
    """The clipped sum in float64, and the norms."""
    grads = jax.vmap(jax.grad(loss), (None, 0))(PARAMS, BATCH)
    norms, rows = norms_of(grads), wide(grads)
    factors = np.minimum(1, (1 - 8 * EPS) / norms)
    return (rows * factors[:, None]).sum(axis=0), norms


@pytest.mark.parametrize("size", [1, 3, 16, 64, 70])
def test_the_size_of_blocks_changes_nothing(size: int):
    clipped = blocks(size)(PARAMS, BATCH)
    expected, norms = reference()
    assert (norms < 1).any() and (norms > 1).any()
    np.testing.assert_allclose(
        exact((clipped.sum, clipped.rest)), expected, rtol=0, atol=70 * EPS
    )
    first = blocks(1)(PARAMS, BATCH)
    np.testing.assert_allclose(
        exact((clipped.sum, clipped.rest)),
        exact((first.sum, first.rest)),
        rtol=0,
        atol=1e-6,
    )
    np.testing.assert_allclose(clipped.norms, norms, rtol=1e-5)
    values = jax.vmap(loss, (None, 0))(PARAMS, BATCH)
    np.testing.assert_allclose(clipped.values, values, rtol=1e-5)


def same_bits(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30, 0.0])
def test_the_content_of_masked_rows_does_not_matter(size: int, junk: float):
    mask = jnp.arange(70) % 3 > 0
    x, y = BATCH
    other = jnp.where(mask[:, None], x, junk), jnp.where(mask, y, junk)
    same_bits(blocks(size)(PARAMS, BATCH, mask), blocks(size)(PARAMS, other, mask))


def test_masked_rows_count_as_absent():
    """The sums are equal bit by bit, wherever the masked rows are."""
    mask = jnp.arange(70) % 3 > 0
    x, y = jnp.where(mask[:, None], BATCH[0], jnp.nan), BATCH[1]
    masked = blocks(1)(PARAMS, (x, y), mask)
    removed = blocks(1)(PARAMS, (x[mask], y[mask]))
    same_bits((masked.sum, masked.rest), (removed.sum, removed.rest))
    same_bits(masked.values[mask], removed.values)
    assert not masked.values[~mask].any() and not masked.norms[~mask].any()


def test_losses_without_a_finite_derivative_add_exactly_nothing():
    """A loss may be NaN, or have an infinite derivative."""

    def risky(w: Array, x: Array) -> Array:
        return jnp.sum(jnp.sqrt(w * x))

    grad = value_and_clipped_grad(risky, 1.0)
    w, batch = jnp.ones(2), jnp.array([[1.0, 2.0], [-1.0, 1.0], [0.0, 1.0]])
    pair = (clipped := grad(w, batch)).sum, clipped.rest
    assert np.isnan(clipped.values[1]) and clipped.values[2] == 1
    only = grad(w, batch[:1])
    same_bits(pair, (only.sum, only.rest))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_of_16_bit_gradients_are_float32(dtype: str):
    params = jnp.zeros(10, dtype)
    batch = aligned(1000, 10, dtype)
    clipped = value_and_clipped_grad(lambda w, x: jnp.sum(w * x), 1.0)(params, batch)
    assert clipped.sum.dtype == clipped.norms.dtype == jnp.float32
    np.testing.assert_allclose(
        exact((clipped.sum, clipped.rest)), exact(total(batch)), rtol=1e-6
    )


@pytest.mark.parametrize("mask", [None, jnp.zeros(0, bool)])
def test_no_examples_add_up_to_0(mask: Any):
    clipped = blocks(1)(PARAMS, jax.tree.map(lambda x: x[:0], BATCH), mask)
    assert clipped.values.shape == clipped.norms.shape == (0,)
    assert not exact((clipped.sum, clipped.rest)).any()
    rows = jax.tree.map(lambda p: jnp.zeros((0, *p.shape)), PARAMS)
    assert not exact(total(rows)).any()


def test_memory_does_not_grow_with_the_batch():
    """Only a loss and a norm are kept for each example. All gradients would take 5 MB
    for each 64 examples."""
    params = {"w": jnp.zeros((100, 200)), "v": jnp.zeros(200)}

    def linear(params: Any, x: Array) -> Array:
        return jnp.sum(jnp.tanh(x @ params["w"]) * params["v"])

    def temporary(number: int) -> int:
        grad = value_and_clipped_grad(linear, 1.0)
        batch = jax.ShapeDtypeStruct((number, 100), jnp.float32)
        analysis: Any = jax.jit(grad.__call__).lower(params, batch).compile()
        return analysis.memory_analysis().temp_size_in_bytes

    size = 4 * (100 * 200 + 200)
    few, many = temporary(64), temporary(1024)
    assert many - few <= 16 * (1024 - 64)
    # One gradient, and buffers for its reductions and for the loss.
    assert few <= 1.5 * size
