"""Updates of models, the small transforms, and chains, which are a monoid."""

from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from contrib_algos import Adam, Momentum
from contrib_core import (
    add_decayed_weights,
    apply_updates,
    Chain,
    chain,
    scale,
    scale_by_learning_rate,
)


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


def test_add_decayed_weights_refuses_schedules_and_missing_params():
    with pytest.raises(ValueError, match="AddDecayedWeights: `weight_decay` must be"):
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


def test_chain_refuses_other_objects():
    untyped: Any = chain
    with pytest.raises(TypeError, match="pass an instance"):
        untyped(Adam)
