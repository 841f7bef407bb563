"""Schedules, step counts and bias correction."""

import functools as ft

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax import lax

from contrib_algos import LinearWarmup
from contrib_core import debias, increment, value_at, zero_count
from contrib_laws import precision


LARGEST = np.iinfo(np.int32).max


def count(n: int) -> jax.Array:
    return jnp.asarray(n, jnp.int32)


# Hyperparameters


@pytest.mark.parametrize("like, expected", [("bfloat16", "float32"), ("float64",) * 2])
def test_value_at_is_in_the_accumulator_dtype(like: str, expected: str):
    with precision(like):
        params = {"a": jnp.ones(2, like)}
        hyperparameters = [
            0.5,
            jnp.asarray(0.5),
            jnp.asarray(0.5, jnp.bfloat16),
            lambda k: 0.5,
            lambda k: jnp.asarray(0.5, jnp.float16),
        ]
        for value in hyperparameters:
            result = value_at(value, zero_count(), like=params)
            assert result == 0.5
            assert result.dtype == expected and not result.weak_type


def test_value_at_reads_a_schedule_at_the_count():
    params = jnp.ones(3)
    assert value_at(lambda k: 10 * k, count(7), like=params) == 70
    assert value_at(jax.jit(lambda k: k / 4), count(3), like=params) == 0.75
    assert value_at(3, None, like=params) == 3


def test_a_python_number_keeps_its_digits_in_double_precision(x64):
    assert value_at(0.1, None, like=jnp.ones(2)) == 0.1


# Counts


@pytest.mark.parametrize("n", [0, 1, 2**24, LARGEST - 1])
def test_increment_adds_one(n: int):
    for fn in (increment, jax.jit(increment)):
        new = fn(count(n))
        assert int(new) == n + 1
        assert new.dtype == jnp.int32 and not new.weak_type


def test_increment_saturates():
    assert increment(count(LARGEST)) == LARGEST
    last, _ = lax.scan(lambda k, _: (increment(k), None), count(LARGEST - 2), None, 5)
    assert last == LARGEST


def test_counting_from_zero():
    first = zero_count()
    assert first == 0 and first.dtype == jnp.int32
    assert lax.fori_loop(0, 100, lambda _, k: increment(k), first) == 100


# Bias correction

DECAYS = [0.0, 1e-3, 0.5, 0.9, 0.999, 0.9999]

COUNTS = [1, 2, 3, 10, 100, 1000, 12345, 10**6, LARGEST]

# Half a unit each for the logarithm and the product, and two units for `expm1`: beside
# this, `1 - decay**n` is off by 2e-5.
TOLERANCE = 3e-7


def exact_debias(decay: float, n: int) -> np.longdouble:
    return 1 - np.longdouble(decay) ** n


@pytest.mark.parametrize("decay", DECAYS)
def test_debias_in_single_precision(decay: float):
    for n in COUNTS:
        expected = exact_debias(decay, n)
        result = debias(decay, count(n), like=jnp.ones(2))
        assert result.dtype == jnp.float32 and not result.weak_type
        assert abs(np.longdouble(result) - expected) <= TOLERANCE * expected, n


@pytest.mark.parametrize("decay", DECAYS)
def test_debias_of_a_traced_decay(decay: float):
    rounded = jnp.asarray(decay, jnp.float32)
    compiled = jax.jit(ft.partial(debias, like=jnp.ones(2)))
    for n in COUNTS:
        expected = exact_debias(float(rounded), n)
        result = compiled(rounded, count(n))
        assert abs(np.longdouble(result) - expected) <= TOLERANCE * expected, n


@pytest.mark.parametrize("decay", DECAYS)
def test_debias_in_double_precision(decay: float, x64):
    for n in COUNTS:
        expected = exact_debias(decay, n)
        for value in (decay, jnp.asarray(decay)):
            result = debias(value, count(n), like=jnp.ones(2))
            assert result.dtype == jnp.float64
            assert abs(np.longdouble(result) - expected) <= 1e-15 * expected + 1e-18, n


@pytest.mark.parametrize("decay", DECAYS)
def test_before_the_first_step_nothing_has_weight(decay: float):
    for value in (decay, jnp.asarray(decay)):
        assert debias(value, zero_count(), like=jnp.ones(2)) == 0


def test_debias_of_zero_has_a_finite_derivative():
    grad = jax.grad(lambda b: debias(b, count(3), like=jnp.ones(2)))
    assert grad(jnp.asarray(0.0)) == 0
    assert grad(jnp.asarray(0.5)) == pytest.approx(-0.75, rel=1e-6)


@given(st.sampled_from(DECAYS), st.integers(0, LARGEST - 1))
def test_debias_grows_towards_one(decay: float, n: int):
    before, after = (debias(decay, count(k), like=jnp.ones(2)) for k in (n, n + 1))
    assert 0 <= before <= after <= 1


# Warm-up


def test_linear_warmup():
    schedule = LinearWarmup(2.0, 4)
    rates = [float(schedule(count(k))) for k in range(7)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("steps", [1, 10, 10**6])
@pytest.mark.parametrize("n", [2**24, 2**30, LARGEST - 1, LARGEST])
def test_linear_warmup_stays_at_its_peak(steps: int, n: int):
    assert LinearWarmup(0.3, steps)(count(n)) == jnp.float32(0.3)


@given(st.integers(0, LARGEST), st.integers(1, LARGEST))
def test_linear_warmup_is_never_null(n: int, steps: int):
    rate = float(LinearWarmup(1.0, steps)(count(n)))
    assert rate == pytest.approx(min(1.0, (n + 1) / steps), rel=1e-6)
    assert 0 < rate <= 1


def test_linear_warmup_of_a_schedule():
    schedule = LinearWarmup(lambda k: 1 / (k + 1), 10)
    assert [float(schedule(count(k))) for k in (0, 4, 19)] == pytest.approx(
        [0.1, 0.1, 0.05]
    )


def test_linear_warmup_can_be_swept():
    peaks, steps = jnp.asarray([1.0, 2.0]), jnp.asarray([2, 4])
    schedules = eqx.filter_vmap(LinearWarmup)(peaks, steps)
    rates = eqx.filter_vmap(lambda s, k: s(k), in_axes=(eqx.if_array(0), None))
    assert rates(schedules, count(0)).tolist() == [0.5, 0.5]
