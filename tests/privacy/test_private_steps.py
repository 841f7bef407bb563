"""Private steps with any model, dtype and optimiser, in loops and sweeps."""

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jaxtyping import Array
from support.private import (
    aggregate,
    arrays,
    BATCH,
    by_blocks,
    by_rows,
    CLIPPED_GRAD,
    close,
    GRADS,
    loss,
    MODEL,
    Model,
    PATHS,
    private_step,
    same,
    update,
)

from contrib_algos import (
    adam,
    ClippedGrad,
    differentially_private_aggregate,
    DPAggregate,
    dpsgd,
    GaussianNoise,
    value_and_clipped_grad,
)
from contrib_core import chain, to_optax


def test_dpsgd_is_gradient_descent_along_the_private_mean():
    """Two steps with momentum equal a computation by hand."""
    rows = jax.tree.map(lambda g: np.asarray(g, float), GRADS)
    norms = np.sqrt(sum((g**2).reshape(16, -1).sum(1) for g in arrays(rows)))
    assert (norms > 1).any() and (norms < 1).any()
    factors = np.minimum(1, 1 / norms)
    mean = [np.tensordot(factors, g, 1) / 16 for g in arrays(rows)]
    for nesterov in (False, True):
        opt = dpsgd(0.1, 1.0, 0.0, 42, momentum=0.9, nesterov=nesterov)
        first, state = update(opt, GRADS, MODEL)
        second, _ = opt.update(GRADS, state, MODEL)
        by_hand = (1.9, 2.71) if nesterov else (1.0, 1.9)
        close([first, second], [-0.1 * f * g for f in by_hand for g in mean])


@pytest.mark.parametrize("bound", [0.7, 30.0])
def test_rows_and_blocks_give_the_same_updates(bound: float):
    for normalize_by in (None, 10):
        by_example = DPAggregate(bound, 0.5, 42, normalize_by=normalize_by)
        noise = GaussianNoise(0.5, 42, normalize_by=normalize_by)
        clipped = value_and_clipped_grad(loss, bound)(MODEL, BATCH)
        assert float(clipped.l2_norm_clip) == np.float32(bound)
        close(update(by_example, GRADS, MODEL)[0], update(noise, clipped, MODEL)[0])


def test_mixed_precision(x64: None):
    """On both paths, statistics have the parameters' precision, and gradients from
    NumPy do not change that."""
    params: Any = {
        "w": jnp.ones((3, 4), jnp.float32),
        "b": jnp.ones(4, jnp.float64),
        "h": jnp.ones(4, jnp.bfloat16),
    }
    x = jax.random.normal(jax.random.key(0), (6, 3), jnp.float32)

    def linear(params: Any, x: Array) -> Array:
        y = jnp.tanh(x @ params["w"]).astype("float64") + params["b"]
        return jnp.sum(y * params["h"].astype("float64") ** 2)

    rows = jax.vmap(jax.grad(linear), (None, 0))(params, x)
    in_blocks = value_and_clipped_grad(linear, 1.0, microbatch_size=4)(params, x)
    results = []
    for opt, grads in (
        (by_rows(), rows),
        (by_rows(), jax.tree.map(lambda g: np.asarray(g).astype(float), rows)),
        (by_blocks(), in_blocks),
    ):
        updates, state = opt.update(grads, opt.init(params), params)
        updates, _ = opt.update(grads, state, params)
        assert jax.tree.map(lambda u: u.dtype, updates) == {
            k: p.dtype for k, p in params.items()
        }
        results.append(jax.tree.map(lambda u: np.asarray(u, float), updates))
    for other in results[1:]:
        close(results[0], other)
    narrow = {"w": params["w"]}
    opt = DPAggregate(1.0, 0.5, 0)
    wide = {"w": np.ones((6, 3, 4))}
    updates, _ = opt.update(wide, opt.init(narrow), narrow)
    same(
        updates,
        opt.update({"w": jnp.ones((6, 3, 4), "float32")}, opt.init(narrow), narrow)[0],
    )


def test_the_identity_may_come_first():
    untyped: Any = chain
    first = update(untyped(chain(), by_rows()), GRADS, MODEL)
    same(first, update(by_rows(), GRADS, MODEL))


def test_a_seed_is_a_seed_under_jit():
    opt, params = GaussianNoise(1.0, 5), jnp.ones(3)
    state = jax.jit(lambda opt, params: opt.init(params))(opt, params)
    same(state.rng_key, opt.init(params).rng_key)


def test_the_name_of_optax_makes_the_same_transform():
    named = differentially_private_aggregate(1.0, 0.5, 42)
    same(
        update(named, GRADS, MODEL)[0],
        update(aggregate(noise_multiplier=0.5, seed=42), GRADS, MODEL)[0],
    )


def test_the_divisor_counts_all_rows_whatever_the_mask_keeps():
    mask = jnp.arange(16) < 4
    opt = GaussianNoise(0.0, 0)
    updates, _ = update(opt, CLIPPED_GRAD(MODEL, BATCH, mask), MODEL)
    few = jax.tree.map(lambda x: x[:4], BATCH)
    others, _ = update(opt, CLIPPED_GRAD(MODEL, few), MODEL)
    close(updates, jax.tree.map(lambda u: u / 4, others))


def test_raw_models_and_numpy_batches():
    """Integers that are arrays are no parameters either."""
    model = Model(MODEL.weight, MODEL.bias, steps=jnp.arange(3))
    batch = jax.tree.map(np.asarray, BATCH)
    updates, _ = update(
        by_blocks(), CLIPPED_GRAD(model, batch, np.ones(16, bool)), model
    )
    assert updates.steps is None and updates.activation is None
    close(updates, update(by_blocks(), CLIPPED_GRAD(MODEL, BATCH), MODEL)[0])
    eqx.apply_updates(model, updates)


def test_losses_with_keys_and_models_without_parameters():
    def noisy(w: Array, example: Any) -> Array:
        x, key = example
        return w @ (x + jax.random.normal(key, x.shape))

    keys = jax.random.split(jax.random.key(0), 16)
    grad = value_and_clipped_grad(noisy, 1e3, microbatch_size=3)
    clipped = grad(jnp.ones(3), (BATCH["x"], keys))
    drawn = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    close(clipped.sum, (BATCH["x"] + drawn).sum(axis=0))
    constant = value_and_clipped_grad(lambda model, x: jnp.sum(x), 1.0)
    clipped = constant({"w": None}, BATCH["x"])
    close(clipped.values, BATCH["x"].sum(axis=1))
    assert not clipped.norms.any()


def test_later_transforms_receive_no_extras_that_show_examples():
    """A random key is the only extra that passes."""
    told = SimpleNamespace(names=set())

    def spy(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        told.names = set(extra)
        return updates, state

    theirs = optax.GradientTransformationExtraArgs(lambda params: (), spy)
    for opt in (chain(GaussianNoise(1.0, 0), theirs), chain(chain(), theirs)):
        grads = CLIPPED_GRAD(MODEL, BATCH)
        clipped = grads if "GaussianNoise" in str(opt) else grads.sum
        extra = {"value": jnp.mean(grads.values), "key": 1, "batch": BATCH}
        opt.update(clipped, opt.init(MODEL), MODEL, **extra)
        is_private = clipped is grads
        assert told.names == ({"key"} if is_private else set(extra))


def test_other_optimisers_and_optax_may_follow():
    grads = CLIPPED_GRAD(MODEL, BATCH)
    plain = GaussianNoise(0.5, 42)
    private, _ = update(plain, grads, MODEL)
    for rule in (adam(0.1), optax.adam(0.1)):
        opt = chain(plain, rule)
        with jax.numpy_dtype_promotion("standard"):
            close(update(opt, grads, MODEL)[0], update(adam(0.1), private, MODEL)[0])
    theirs = optax.chain(to_optax(aggregate(noise_multiplier=0.5)), optax.sgd(0.1))
    params = {"w": MODEL.weight}
    rows = {"w": GRADS.weight}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = theirs.update(rows, theirs.init(params), params)
    ours = dpsgd(0.1, 1.0, 0.5, 0)
    close(updates, ours.update(rows, ours.init(params), params)[0])


@PATHS
def test_scan_is_the_loop_and_resumes_bit_by_bit(make: Callable[..., Any]):
    """A run may resume from a file: the noise of a step depends on its number alone."""
    opt = make()
    step = eqx.filter_jit(private_step(opt))
    model, state, file = MODEL, opt.init(MODEL), io.BytesIO()
    for i in range(4):
        if i == 2:
            eqx.tree_serialise_leaves(file, (model, state))
            file.seek(0)
        model, state = step(model, state, BATCH)
    restored, restored_state = eqx.tree_deserialise_leaves(
        file, (MODEL, opt.init(MODEL))
    )
    for _ in range(2):
        restored, restored_state = step(restored, restored_state, BATCH)
    same((restored, restored_state), (model, state))

    dynamic, static = eqx.partition(MODEL, eqx.is_array)

    def body(carry: Any, _: None) -> Any:
        model, state = private_step(opt)(eqx.combine(carry[0], static), carry[1], BATCH)
        return (eqx.filter(model, eqx.is_array), state), None

    (scanned, _), _ = jax.jit(lambda carry: lax.scan(body, carry, length=4))(
        (dynamic, opt.init(MODEL))
    )
    close(scanned, model)


def test_sweeps_over_bounds_noise_and_keys():
    def one(bound: Array, multiplier: Array, key: Array) -> Any:
        opt = DPAggregate(bound, multiplier, key)
        return opt.update(GRADS, opt.init(MODEL), MODEL)[0]

    bounds, multipliers = jnp.array([0.1, 10.0]), jnp.array([0.0, 2.0])
    keys = jax.random.split(jax.random.key(0))
    swept = eqx.filter_vmap(one)(bounds, multipliers, keys)
    for i in range(2):
        alone = one(bounds[i], multipliers[i], keys[i])
        close(jax.tree.map(lambda x: x[i], swept), alone)


def test_updates_compile_and_clipped_gradients_are_a_module():
    assert isinstance(CLIPPED_GRAD, ClippedGrad)
    params, rows = {"b": MODEL.bias}, {"b": GRADS.bias}
    opt = by_rows()
    assert jax.jit(opt.update)(rows, opt.init(params), params)
