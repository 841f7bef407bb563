"""Schedules, step counts, bias correction, and the small transforms of composition."""

import functools as ft

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax import lax

from contrib_algos import Adam, Momentum
from contrib_core import (
    add_decayed_weights,
    apply_updates,
    at,
    Chain,
    chain,
    debias,
    increment,
    LinearWarmup,
    scale,
    scale_by_learning_rate,
    zero_count,
)
from contrib_core.laws import precision


LARGEST = np.iinfo(np.int32).max


def count(n: int) -> jax.Array:
    return jnp.asarray(n, jnp.int32)


# Hyperparameters


@pytest.mark.parametrize("like, expected", [("bfloat16", "float32"), ("float64",) * 2])
def test_at_is_in_the_accumulator_dtype(like: str, expected: str):
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
            result = at(value, zero_count(), like=params)
            assert result == 0.5
            assert result.dtype == expected and not result.weak_type


def test_at_reads_a_schedule_at_the_count():
    params = jnp.ones(3)
    assert at(lambda k: 10 * k, count(7), like=params) == 70
    assert at(jax.jit(lambda k: k / 4), count(3), like=params) == 0.75
    assert at(3, None, like=params) == 3


def test_a_python_number_keeps_its_digits_in_double_precision(x64):
    assert at(0.1, None, like=jnp.ones(2)) == 0.1


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


# Updates


def test_apply_updates_rounds_once():
    # The numbers of bfloat16 are 2 apart there: 257.001 is nearer to 258 than to 256,
    # but an update that is rounded first is 1, and 257 goes to the even one, 256.
    p, u = jnp.asarray([256.0, 1.0], jnp.bfloat16), jnp.asarray([1.001, 1e-3])
    new = apply_updates({"w": p}, {"w": u})["w"]
    assert new.dtype == jnp.bfloat16
    assert new.tolist() == [258.0, 1.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_apply_updates_keeps_dtypes(dtype: str):
    params = {"a": jnp.ones((2, 3), dtype), "b": np.ones((), np.float32), "c": None}
    updates = {"a": jnp.full((2, 3), 2, dtype), "b": jnp.asarray(1.0), "c": None}
    new = apply_updates(params, updates)
    assert new["a"].dtype == dtype and np.all(np.asarray(new["a"]) == 3)
    assert new["b"].dtype == jnp.float32 and new["b"] == 2
    assert new["c"] is None


def test_apply_updates_leaves_the_rest_of_a_model():
    model = eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))
    updates = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    moved = apply_updates(model, updates)
    expected = eqx.apply_updates(model, updates)
    assert eqx.tree_equal(moved, expected, rtol=1e-6)
    assert not eqx.tree_equal(moved, model)
    assert moved.activation is model.activation


# Small transforms

PARAMS = {"w": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([3.0])}
GRADS = {"w": jnp.asarray([0.5, 0.25]), "b": jnp.asarray([-1.0])}


def updates_of(transform, num_steps: int = 1) -> list:
    state, steps = transform.init(PARAMS), []
    for _ in range(num_steps):
        updates, state = transform.update(GRADS, state, PARAMS)
        steps.append(updates)
    return steps


def times(factor: float, x):
    return jax.tree.map(lambda a: factor * a, x)


def test_scale():
    for factor in (2, 2.0, jnp.asarray(2.0)):
        assert eqx.tree_equal(*updates_of(scale(factor)), times(2.0, GRADS))
        descent = updates_of(scale_by_learning_rate(factor))
        assert eqx.tree_equal(*descent, times(-2.0, GRADS))


def test_scale_by_a_schedule_counts_from_zero():
    steps = updates_of(scale(lambda k: k + 1), 3)
    for k, step in enumerate(steps):
        assert eqx.tree_equal(step, times(k + 1.0, GRADS))
    assert scale(1.0).init(PARAMS).count is None
    assert scale(lambda k: 1.0).init(PARAMS).count == 0


def test_scale_keeps_the_dtypes_of_the_parameters():
    opt = scale(jnp.asarray(2.0))
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    updates, _ = opt.update({"w": jnp.ones(2)}, opt.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16


def test_add_decayed_weights():
    (updates,) = updates_of(add_decayed_weights(0.5))
    assert updates["w"].tolist() == [1.0, -0.75]
    assert updates["b"].tolist() == [0.5]
    (updates,) = updates_of(add_decayed_weights(0.5, {"w": True, "b": False}))
    assert updates["w"].tolist() == [1.0, -0.75]
    assert updates["b"].tolist() == [-1.0]


def test_add_decayed_weights_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="AddDecayedWeights: `rate` must be at least"):
        add_decayed_weights(-0.1)
    opt = add_decayed_weights(0.1)
    with pytest.raises(ValueError, match="AddDecayedWeights.update needs `params`"):
        opt.update(GRADS, opt.init(PARAMS))


# Chains are a monoid

TRANSFORMS = [
    scale(2.0),
    scale_by_learning_rate(lambda k: 0.1 / (k + 1)),
    add_decayed_weights(0.1),
    Momentum(0.5),
    Adam(),
]
drawn = st.lists(st.sampled_from(TRANSFORMS), max_size=3)


def same_transform(a, b) -> bool:
    return type(a) is type(b) and bool(eqx.tree_equal(a, b))


@given(drawn, drawn, drawn)
def test_chain_is_associative(a, b, c):
    x, y, z = chain(*a), chain(*b), chain(*c)
    left, right = chain(chain(x, y), z), chain(x, chain(y, z))
    assert same_transform(left, right)
    assert same_transform(left, chain(*a, *b, *c))
    assert eqx.tree_equal(left.init(PARAMS), right.init(PARAMS))


@given(drawn)
def test_chain_has_an_identity(ts):
    t = chain(*ts)
    assert same_transform(chain(chain(), t), t)
    assert same_transform(chain(t, chain()), t)


def test_the_empty_chain_changes_nothing():
    assert eqx.tree_equal(*updates_of(chain()), GRADS)
    assert chain().init(PARAMS) == ()


def test_the_chain_of_one_is_that_one():
    for t in TRANSFORMS:
        assert chain(t) is t


def test_chains_compute_the_same_however_bracketed():
    a, b, c = Adam(), add_decayed_weights(0.1), scale_by_learning_rate(0.5)
    flat = updates_of(Chain(a, b, c), 3)
    for chained in (chain(a, b, c), chain(chain(a, b), c), Chain(Chain(a, b), c)):
        assert eqx.tree_equal(updates_of(chained, 3), flat)
    # One transform's updates are the next one's gradients.
    (first,) = updates_of(Chain(b, c))
    assert first["w"] == pytest.approx(np.array([-0.3, -0.025]))
    assert not eqx.tree_equal(updates_of(Chain(b, c)), updates_of(Chain(c, b)))


def test_chain_refuses_what_is_not_a_transform():
    with pytest.raises(TypeError, match="pass an instance"):
        chain(Adam)
