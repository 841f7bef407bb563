"""Sharpness-aware minimisation: extreme inputs, other transforms, and refusals."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jaxtyping import Array
from optax import contrib as peer
from support.descent import descend, last, sum_of_squares, twice
from support.sharpness import adversary, over_modes, over_optimizers, RHO, START
from support.transforms import OwnsIterates

from contrib_algos import adam, lion, momo, normalize, sgd
from contrib_core import AbstractTransform, chain, masked, scale, tree
from contrib_wrappers import (
    master_weights,
    mechanize,
    SAM,
    sam,
    schedule_free,
    split_real_and_imaginary,
)


# Extreme inputs


@over_modes
@pytest.mark.parametrize("step", [20, 21], ids=["adversarial", "outer"])
@pytest.mark.parametrize("spike", [1e12, 1e30])
@pytest.mark.parametrize("name", ["adam", "lion"])
def test_a_spike_is_forgotten(name: str, spike: float, step: int, opaque: bool):
    """The optimizer forgets it after some hundreds of steps, and SAM with it."""
    optimizer = {"adam": adam(0.03, b2=0.9), "lion": lion(0.01, 0.9, 0.9)}[name]
    opt = sam(optimizer, adversary(), opaque_mode=opaque)
    signs = jnp.array([1.0, -1.0, 1.0])

    def grads(x: Array, i: Array) -> Array:
        return 2 * x + jnp.where(i == step, spike * signs, 0)

    def body(carry: Any, i: Array) -> Any:
        x, state = carry
        # In opaque mode, a step further on is the second gradient of the same step.
        extra = {"grad_fn": lambda x, _: grads(x, i + 1)} if opaque else {}
        updates, state = opt.update(grads(x, i), state, x, **extra)
        return (x + updates, state), x + updates

    x = jnp.asarray(START, jnp.float32)
    carry = x, opt.init(x)
    _, points = jax.jit(lambda c: lax.scan(body, c, jnp.arange(3000)))(carry)
    assert np.isfinite(points).all() and sum_of_squares(points[-1]) < 0.05


@over_modes
@over_optimizers
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_constant_gradients_of_any_size_stay_finite(
    size: float, optimizer: Any, opaque: bool
):
    signs = jnp.array([1.0, -1.0, 1.0])
    opt = sam(optimizer, adversary(), opaque_mode=opaque)
    x = jnp.asarray(START, jnp.float32)
    state, step = opt.init(x), jax.jit(opt.update, static_argnames="grad_fn")
    extra = {"grad_fn": lambda x, i: size * signs} if opaque else {}
    for _ in range(10):
        updates, state = step(size * signs, state, x, **extra)
        for leaf in jax.tree.leaves((updates, state)):
            assert np.isfinite(leaf).all()


@over_modes
def test_empty_trees_and_leaves(opaque: bool):
    for params in ({}, {"a": None}, {"a": jnp.zeros((0, 2)), "b": jnp.ones(())}):
        opt = sam(adam(0.1), adversary(), opaque_mode=opaque)
        state = opt.init(params)
        extra = {"grad_fn": lambda x, i: x} if opaque else {}
        _, state = opt.update(params, state, params, **extra)
        updates, _ = opt.update(params, state, params, **extra)
        assert jax.tree.structure(updates) == jax.tree.structure(params)


# Around and inside of other transforms

WRAPPERS: dict[str, Callable[[AbstractTransform], AbstractTransform]] = {
    "bare": lambda t: t,
    "chain": lambda t: chain(scale(1.0), t),
    "masked": lambda t: masked(t, True),
    "split": split_real_and_imaginary,
    "master_weights": master_weights,
    "schedule_free": lambda t: schedule_free(t, 0.1, base_at="z"),
}


@over_modes
@over_optimizers
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_training_reaches_the_minimum(
    wrapper: str, optimizer: AbstractTransform, opaque: bool
):
    opt = WRAPPERS[wrapper](sam(optimizer, adversary(), opaque_mode=opaque))
    dtype = {"split": "complex64", "master_weights": "bfloat16"}.get(wrapper, "float32")
    params = {"a": jnp.asarray(START, dtype), "b": -jnp.ones((), dtype)}

    def body(carry: Any, _: None) -> Any:
        x, state = carry
        extra = {"grad_fn": lambda x, i: x} if opaque else {}
        updates, state = opt.update(x, state, x, **extra)
        x = jax.tree.map(jnp.add, x, updates)
        return (x, state), None

    carry = params, opt.init(params)
    (x, state), _ = jax.jit(lambda c: lax.scan(body, c, length=400))(carry)
    assert tree.norm(opt.eval_params(state, x)) < 0.3 * tree.norm(params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "attack", [sgd(RHO, 0.5), optax.sgd(RHO)], ids=["ours", "optax"]
)
def test_only_the_cache_has_16_bits(attack: Any, dtype: str):
    """The cache is a copy of the parameters, and as exact as they are. Updates of optax
    have 16 bits and ours have 32; both optimizers may be either."""
    x = jnp.asarray(START, dtype)
    opt = sam(adam(0.1), chain(normalize(), attack))
    points, states = descend(opt, x, lambda x, i: x, 200)
    optimizers = jax.tree.leaves((states.opt_state, states.adv_state))
    assert {str(leaf.dtype) for leaf in optimizers} <= {"float32", "int32"}
    np.testing.assert_array_equal(states.cache[2::2], points[1:-1:2])
    assert tree.norm(opt.eval_params(last(states), points[-1])) < 0.2 * tree.norm(x)


@over_modes
def test_raw_models_train(opaque: bool):
    model = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (32, 2))
    opt = sam(adam(0.03), adversary(), opaque_mode=opaque)

    def loss(model: Any) -> Array:
        outputs = jax.vmap(model)(inputs)[:, 0]
        return jnp.mean((outputs - jnp.sin(inputs[:, 0])) ** 2)

    @eqx.filter_jit
    def step(model: Any, state: Any) -> tuple[Any, Any]:
        def grad_fn(model: Any, i: int) -> Any:
            return eqx.filter_grad(loss)(model)

        extra = {"grad_fn": grad_fn} if opaque else {}
        updates, state = opt.update(grad_fn(model, 0), state, model, **extra)
        return eqx.apply_updates(model, updates), state

    first, state = loss(model), opt.init(model)
    for _ in range(200):
        model, state = step(model, state)
    assert loss(opt.eval_params(state, model)) < 0.3 * first


def test_problems_out_of_step_in_one_vmap():
    """Under `vmap` both optimizers run, and each problem selects its own result, random
    keys included."""
    noise = optax.add_noise(1e-3, 0.55, jax.random.key(0))
    opt = sam(chain(noise, adam(0.1)), chain(noise, adversary()), 3)
    x = jnp.asarray(START, jnp.float32)
    alone, states = descend(opt, x, twice, 5)
    shifted = jax.tree.map(lambda leaf: leaf[:3], (alone, states))  # After 1, 2, 3.

    def step(x: Any, state: Any) -> Any:
        updates, state = opt.update(2 * x, state, x)
        return x + updates, state

    found, found_states = jax.jit(jax.vmap(step))(*shifted)
    np.testing.assert_allclose(found, alone[1:4], rtol=1e-6)
    for a, b in zip(
        jax.tree.leaves(found_states), jax.tree.leaves(states), strict=True
    ):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b[1:4], rtol=1e-6)


def test_adversaries_with_points_of_their_own_are_refused():
    for attack in (
        OwnsIterates(),
        chain(scale(1.0), OwnsIterates()),
        mechanize(sgd(1.0)),
    ):
        with pytest.raises(ValueError, match="against its updates.*chain.normalize"):
            sam(sgd(0.1), attack)
        assert sam(attack, sgd(0.1), opaque_mode=True).owns_iterates
    assert sam(sgd(0.1), sgd(0.1)).owns_iterates
    assert sam(sgd(0.1), sgd(0.1), opaque_mode=True).needs == {"params", "grad_fn"}


def test_opaque_mode_refuses_optimizers_that_need_the_value():
    for optimizers in ((momo(), adversary()), (sgd(0.1), momo())):
        with pytest.raises(ValueError, match="opaque_mode=False"):
            sam(*optimizers, opaque_mode=True)
        assert "value" in sam(*optimizers).needs
    # With a period of 1, the given value belongs to the gradients.
    assert "value" in sam(momo(), adversary(), 1, opaque_mode=True).needs


@pytest.mark.parametrize(
    "name, value", [("sync_period", 0), ("eta", -0.1), ("eta", math.nan)]
)
def test_numbers_out_of_range_are_refused(name: str, value: Any):
    with pytest.raises(ValueError, match=f"SAM: `{name}` must be"):
        sam(sgd(0.1), adversary(), **{name: value})


def test_a_missing_grad_fn_is_named():
    opt, x = sam(sgd(0.1), adversary(), opaque_mode=True), jnp.ones(3)
    with pytest.raises(ValueError, match="needs `grad_fn`: call.*grad_fn=grad_fn"):
        opt.update(x, opt.init(x), x)


def test_adaptive_steps_of_huge_bfloat16_parameters_are_finite():
    x = jnp.full(3, 1e29, jnp.bfloat16)
    opt = sam(sgd(0.1), adversary(), adaptive=True)
    updates, state = opt.update(x, opt.init(x), x)  # |x| x overflows.
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))


def test_adaptive_products_do_not_overflow_in_float16():
    """The product |x| g is 9e4 and 4.5e4, and float16 ends at 65504."""
    x, g = jnp.array([300.0, 300.0]), jnp.array([300.0, 150.0])
    opt = sam(sgd(0.1), adversary(), adaptive=True)
    narrow = x.astype(jnp.float16)
    found, _ = opt.update(g.astype(jnp.float16), opt.init(narrow), narrow)
    expected, _ = opt.update(g, opt.init(x), x)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=1e-3)


def test_points_are_kept_as_wide_as_those_that_schedule_free_shows():
    x = jnp.ones(3, jnp.bfloat16)
    opt = schedule_free(sam(sgd(0.1), adversary()), 0.1, base_at="z")
    assert opt.init(x).base_optimizer_state.cache.dtype == jnp.float32


def test_an_axis_for_gradients_that_are_not_asked_for_is_refused():
    with pytest.raises(ValueError, match="batch_axis_name='batch'.*opaque_mode=True"):
        sam(sgd(0.1), adversary(), batch_axis_name="batch")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("period", [0, 2.5, "2"])
def test_a_period_is_a_whole_number(period: Any):
    with pytest.raises(ValueError, match="`sync_period` must be a whole number"):
        SAM(sgd(0.1), adversary(), period)


def test_extras_that_optimizers_of_optax_require_are_known():
    with pytest.raises(ValueError, match="in opaque mode the `value`"):
        sam(peer.momo(), adversary(), opaque_mode=True)
