"""The noise that makes a clipped sum private: its size, distribution and keys."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from contrib_algos import ClippedSum, DPAggregate, GaussianNoise
from contrib_algos.privacy._random import normal_like
from contrib_core import tree


NUMBER = 10**6
# Four standard errors, 1/√2n each, of a standard deviation estimated from n = 10⁶.
TOLERANCE = 0.0028


def nothing(params: Any, bound: float = 1.0, number: int = 1) -> ClippedSum:
    """A clipped sum of examples without gradients."""
    zeros = tree.widen(tree.zeros_like(params), tree.accumulator_dtype(params))
    none = jnp.zeros(number)
    return ClippedSum(zeros, zeros, none, none, tree.scalar(bound, params))


def noise(
    params: Any, multiplier: float = 1.0, bound: float = 1.0, key: Any = 0, **kwargs
) -> Any:
    """The first update for a gradient of 0, which is noise alone."""
    opt = GaussianNoise(multiplier, key, **kwargs)
    return opt.update(nothing(params, bound), opt.init(params), params)[0]


def is_off(z: np.ndarray, std: float) -> bool:
    """Whether the standard deviation of `z` is not the one that it should be."""
    return abs(z.std() / std - 1) > TOLERANCE


@pytest.mark.parametrize(
    "multiplier, bound, rows, by", [(1.0, 1.0, 1, None), (0.7, 3.0, 8, 5.0)]
)
def test_standard_deviation(multiplier: float, bound: float, rows: int, by: Any):
    """The noise of a sum has σ C on both paths; a difference of 1 % would show."""
    params = jnp.zeros(NUMBER)
    opt = GaussianNoise(multiplier, 1, normalize_by=by)
    one, _ = opt.update(nothing(params, bound, rows), opt.init(params), params)
    opt = DPAggregate(bound, multiplier, 2, normalize_by=by)
    other, _ = opt.update(jnp.zeros((rows, NUMBER)), opt.init(params), params)
    for updates in (one, other):
        z, std = np.asarray(updates, float), multiplier * bound / (by or rows)
        assert not is_off(z, std)
        assert is_off(0.99 * z, std) and is_off(1.01 * z, std)
        assert abs(z.mean()) < 4 * std / math.sqrt(NUMBER)


def test_tails():
    """The number of draws beyond each multiple of σ is right to 4 standard errors, and
    some are beyond 5.42 σ, where a single normal number of float32 ends."""
    draw = jax.jit(lambda key: normal_like(jnp.zeros(NUMBER), key))
    keys = jax.random.split(jax.random.key(8), 20)
    z = np.abs(np.concatenate([np.asarray(draw(key)) for key in keys]))
    for multiple in (1, 2, 3, 4, 5):
        expected = z.size * math.erfc(multiple / math.sqrt(2))
        assert abs((z > multiple).sum() - expected) < 4 * math.sqrt(expected)
    assert z.max() > 5.42
    bits = jnp.full(1, jnp.nextafter(jnp.float32(1), jnp.float32(0)))
    assert jax.scipy.special.erfinv(bits)[0] * math.sqrt(2) < 5.42


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_noise_of_16_bit_parameters_is_drawn_in_float32(dtype: str):
    """Normal numbers of bfloat16 end at 2.9, and the sums are float32."""
    params = jnp.zeros(100_000, dtype)
    updates = noise(params, key=4)
    assert updates.dtype == jnp.dtype(dtype)
    wide = noise(jnp.zeros(100_000), key=4)
    np.testing.assert_array_equal(updates, wide.astype(dtype))
    assert float(jnp.abs(updates).max()) > 3.5
    # Division comes before rounding: a mean of 2¹⁴ examples keeps its digits.
    many, _ = (opt := GaussianNoise(1.0, 4)).update(
        nothing(params, number=2**14), opt.init(params), params
    )
    np.testing.assert_array_equal(many, (wide / 2**14).astype(dtype))


def test_noise_of_float64_has_its_digits(x64: None):
    z = noise({"a": jnp.zeros(1000), "b": jnp.zeros(1000, jnp.float32)})
    assert (z["a"].dtype, z["b"].dtype) == (jnp.float64, jnp.float32)
    digits = np.asarray(z["a"])
    assert (digits.astype(np.float32) != digits).mean() > 0.99


def test_parts_of_complex_numbers_each_have_the_variance():
    z = noise(jnp.zeros(NUMBER, jnp.complex64), 2.0)
    real, imaginary = np.asarray(z.real, float), np.asarray(z.imag, float)
    assert not is_off(real, 2.0) and not is_off(imaginary, 2.0)
    assert correlation(real, imaginary) < 4


def correlation(a: Any, b: Any) -> float:
    """The correlation, in units of its size between independent numbers."""
    a, b = np.asarray(a, float).ravel(), np.asarray(b, float).ravel()
    return abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(a.size)


def test_leaves_steps_and_keys_are_independent():
    params = [jnp.zeros(100_000) for _ in range(3)]
    opt = GaussianNoise(1.0, 5)
    state, drawn = opt.init(params), []
    for _ in range(3):
        updates, state = opt.update(nothing(params), state, params)
        drawn += updates
    drawn += noise(params, key=6) + noise(params, key=jax.random.key(7))
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert correlation(a, b) < 4
            assert not np.array_equal(a, b)


def test_noise_does_not_depend_on_the_data():
    """Noise does not depend on gradients, examples, the bound or the leaves' dtypes."""
    params = {"a": jnp.zeros((8, 3)), "b": jnp.zeros(5)}
    reference = noise(params, key=8)
    opt = DPAggregate(2.0, 1.0, 8, normalize_by=1)
    rows = {"a": 1e-12 * jnp.ones((4, 8, 3)), "b": jnp.full((4, 5), jnp.nan)}
    updates, _ = opt.update(rows, opt.init(params), params)
    half = jax.tree.map(lambda x: x / 2, updates)
    wide = noise({"a": jnp.zeros((8, 3), jnp.bfloat16), "b": params["b"]}, key=8)
    for other in (half, {"a": reference["a"], "b": wide["b"]}):
        for x, y in zip(jax.tree.leaves(reference), jax.tree.leaves(other)):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "make",
    [
        lambda: 42,
        lambda: np.int64(42),
        lambda: jnp.asarray(42),
        lambda: jax.random.key(42),
        lambda: jax.random.PRNGKey(42),
        lambda: np.asarray(jax.random.PRNGKey(42)),
    ],
)
def test_seeds_and_keys_are_the_same(make: Any):
    params = jnp.zeros(3)
    np.testing.assert_array_equal(noise(params, key=make()), noise(params, key=42))


def test_keys_of_other_generators_are_accepted():
    params = jnp.zeros(NUMBER)
    z = noise(params, key=jax.random.key(0, impl="rbg"))
    assert not is_off(np.asarray(z, float), 1.0)


def test_seeds_do_not_depend_on_the_precision(x64: None):
    large = 2**32 - 1
    z = noise(jnp.zeros(3, jnp.float32), key=large)
    with jax.enable_x64(False):
        np.testing.assert_array_equal(z, noise(jnp.zeros(3), key=large))


def test_the_state_is_plain_data_of_its_own():
    key = jax.random.PRNGKey(0)
    opt = GaussianNoise(1.0, key)
    state = opt.init(jnp.zeros(3))
    assert (state.rng_key.dtype, state.count.dtype) == (jnp.uint32, jnp.int32)
    # A donated state does not take the key with it.
    step = eqx.filter_jit(opt.update, donate="all-except-first")
    step(nothing(jnp.zeros(3)), state, jnp.zeros(3))
    assert not key.is_deleted()
    np.testing.assert_array_equal(opt.key, key)
    assert opt.init(jnp.zeros(3)).count == 0


def test_keys_can_be_swept():
    params = jnp.zeros(4)
    keys = jax.random.split(jax.random.key(1), 5)

    @eqx.filter_vmap
    def one(key: Array) -> Array:
        return noise(params, key=key)

    for row, key in zip(one(keys), keys, strict=True):
        np.testing.assert_array_equal(row, noise(params, key=key))


def test_a_multiplier_of_0_adds_no_noise():
    clipped = nothing(jnp.zeros(3))
    total, rest = jnp.array([1.0, 2.0, 2.0**24]), jnp.array([0.0, 0.5, 3.0])
    clipped = eqx.tree_at(lambda c: (c.sum, c.rest), clipped, (total, rest))
    for multiplier in (0, 0.0, jnp.asarray(0.0)):
        opt = GaussianNoise(multiplier, 0)
        updates, _ = opt.update(clipped, opt.init(clipped.sum), clipped.sum)
        np.testing.assert_array_equal(updates, [1.0, 2.5, 2.0**24 + 4])


def test_no_rows_are_divided_by_1():
    """The result is noise instead of infinity."""
    params = jnp.zeros(1000)
    opt = DPAggregate(1.0, 2.0, 9)
    updates, _ = opt.update(jnp.zeros((0, 1000)), opt.init(params), params)
    np.testing.assert_array_equal(updates, noise(params, 2.0, key=9))
