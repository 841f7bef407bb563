"""Transformations of optax inside of ours, each compared with optax alone."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib as peer
from support.interop import assert_close, loop, loss, PARAMS, standard, STEPS

from contrib_algos import adam
from contrib_core import as_transform, chain, FromOptax, masked, scale, to_optax
from contrib_wrappers import master_weights, schedule_free, split_real_and_imaginary


# Theirs here

THEIRS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(0.1, 0.9),
    "adam": lambda: optax.adam(0.1),
    "schedule": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 5)),
    "clip": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "prodigy": lambda: peer.prodigy(estim_lr0=0.1),
}

WRAPPERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "chain": (
        lambda t: chain(t, scale(2.0)),
        lambda t: optax.chain(t, optax.scale(2.0)),
    ),
    "masked": (
        lambda t: masked(t, {"a": True, "b": False}),
        lambda t: optax.masked(t, {"a": True, "b": False}),
    ),
    "schedule_free": (
        lambda t: schedule_free(t, 0.1),
        lambda t: peer.schedule_free(t, 0.1),
    ),
    "split": (split_real_and_imaginary, peer.split_real_and_imaginary),
    "master_weights": (master_weights, lambda t: t),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", THEIRS)
def test_optax_is_taken_wherever_a_transform_is(name, wrapper):
    ours, theirs = WRAPPERS[wrapper]
    actual = loop(ours(THEIRS[name]()), PARAMS)
    expected = standard(loop, theirs(THEIRS[name]()), PARAMS)
    assert_close(actual, expected)
    assert not np.allclose(actual["a"], PARAMS["a"])


def test_optax_optimises_master_copies_of_bfloat16():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    opt = master_weights(optax.sgd(1e-4))
    step = jax.jit(opt.update)
    state, params = opt.init(narrow), narrow
    for _ in range(200):
        updates, state = step(narrow, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    expected = jax.tree.map(lambda x: (0.98 * x).astype(jnp.bfloat16), PARAMS)
    for name, x in params.items():
        np.testing.assert_array_equal(x, expected[name])


def test_optax_sees_pairs_of_reals_behind_split():
    params = {"a": jnp.array([1 + 2j, -3j]), "b": jnp.ones(2)}
    actual = loop(split_real_and_imaginary(optax.adam(0.1)), params)
    expected = standard(loop, peer.split_real_and_imaginary(optax.adam(0.1)), params)
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "wrap",
    [
        as_transform,
        lambda t: chain(scale(1.0), t),
        lambda t: masked(t, True),
        split_real_and_imaginary,
        master_weights,
        lambda t: schedule_free(t, 0.1),
    ],
    ids=["bare", "chain", "masked", "split", "master_weights", "schedule_free"],
)
def test_hyperparameters_inside_optax_are_swept(wrap):
    """Closures of optax over arrays: strongly typed, traced and batched."""
    rates = jnp.array([0.3, 0.1, 0.03])

    def run(rate):
        # Closures are to be seen by one tracer only: the outer.
        return loss(loop(wrap(optax.adam(rate)), PARAMS, jit=False))

    swept = eqx.filter_jit(eqx.filter_vmap(run))(rates)
    with jax.checking_leaks():
        again = jax.jit(run)(rates[0])
    np.testing.assert_allclose(again, swept[0], rtol=1e-6)
    looped = [loss(loop(wrap(optax.adam(float(rate))), PARAMS)) for rate in rates]
    np.testing.assert_allclose(swept, looped, rtol=1e-5)
    assert len({float(x) for x in looped}) == 3


def test_a_swept_optax_transformation_is_a_pytree_of_its_hyperparameters():
    opts = eqx.filter_vmap(lambda rate: as_transform(optax.sgd(rate)))(
        jnp.array([0.3, 0.1])
    )
    assert isinstance(opts, FromOptax)
    arrays = jax.tree.leaves(eqx.filter(opts, eqx.is_array))
    assert arrays and all(x.shape == (2,) for x in arrays)
    axes = jax.tree.map(eqx.if_array(0), opts)
    swept = eqx.filter_vmap(lambda opt: loop(opt, PARAMS)["a"], in_axes=(axes,))(opts)
    expected = [PARAMS["a"] * (1 - rate) ** STEPS for rate in (0.3, 0.1)]
    np.testing.assert_allclose(swept, jnp.stack(expected), rtol=1e-5)


def scale_by_value() -> optax.GradientTransformationExtraArgs:
    """Takes extras, and needs one."""

    def update(updates, state, params=None, **extra):
        del params
        return jax.tree.map(lambda u: -0.01 * extra["value"] * u, updates), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


@pytest.mark.parametrize(
    "wrap",
    [
        as_transform,
        lambda t: chain(optax.scale(1.0), t),
        lambda t: masked(t, True),
        split_real_and_imaginary,
        master_weights,
        lambda t: schedule_free(t, 0.1, b1=0.0),
        lambda t: to_optax(chain(t)),
    ],
    ids=["bare", "chain", "masked", "split", "master_weights", "schedule_free", "back"],
)
def test_extras_reach_optax(wrap):
    actual = loop(wrap(scale_by_value()), PARAMS, 1, value=jnp.asarray(3.0))
    assert_close(actual, jax.tree.map(lambda x: x - 0.03 * x, PARAMS))


def test_other_extras_reach_optax_as_they_are():
    # Not a dict, which would be a part of the pytree that the closure is made into.
    seen = SimpleNamespace()

    def update(updates, state, params=None, **extra):
        seen.extra = extra
        return updates, state

    opt = chain(optax.GradientTransformationExtraArgs(lambda params: (), update))
    loop(opt, PARAMS, 1, jit=False, value_fn=loss, grad=PARAMS, note="hello")
    assert seen.extra == {"value_fn": loss, "grad": PARAMS, "note": "hello"}


def test_optax_without_extras_is_given_none():
    opt = as_transform(optax.GradientTransformation(*optax.sgd(0.1)))
    assert_close(
        loop(opt, PARAMS, 1, value=1.0, note="hello"),
        jax.tree.map(lambda x: 0.9 * x, PARAMS),
    )


@pytest.mark.parametrize(
    "theirs, path",
    [
        (peer.dog, r"\[1\]\.max_dist"),
        (peer.prodigy, r"\.estim_lr"),
    ],
    ids=["dog", "prodigy"],
)
def test_an_optax_state_that_drifts_is_refused(theirs, path):
    """On mixed precision these keep scalars in bfloat16 and return float32."""
    params = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
    opt = as_transform(theirs())
    with pytest.raises(
        ValueError,
        match=rf"FromOptax\.update: the state drifts at `{path}`, from bfloat16\[\] to "
        r"float32\[\]",
    ):
        opt.update(params, opt.init(params), params)


def test_a_weakly_typed_optax_state_is_made_strong():
    """`peer.reduce_on_plateau` and the like start from Python numbers."""

    def update(updates, state, params=None):
        del params
        del state
        return updates, jnp.asarray(2.0)

    opt = as_transform(
        optax.GradientTransformation(lambda params: jnp.asarray(1.0), update)
    )
    state = opt.init(PARAMS)
    assert isinstance(state, jax.Array) and not state.weak_type
    _, new_state = opt.update(PARAMS, state, PARAMS)
    assert not new_state.weak_type


def test_extras_that_optax_takes_by_name_alone():
    """`optax.contrib.sam` names `grad_fn`, and takes no others."""
    params = jnp.ones(2)
    sam = peer.sam(optax.sgd(0.1), optax.sgd(0.5), opaque_mode=True)
    opt = as_transform(sam)
    updates, _ = opt.update(
        params, opt.init(params), params, grad_fn=lambda p, _: p, unknown=1
    )
    # At the adversarial point 1 + 0.5 the gradient is 1.5.
    np.testing.assert_allclose(updates, -0.15, rtol=1e-6)


def test_schedules_of_optax_under_strict_promotion():
    params = jnp.ones(2)
    opt = adam(optax.cosine_decay_schedule(0.1, 10))
    updates, _ = opt.update(params, opt.init(params), params)
    np.testing.assert_allclose(updates, -0.1, rtol=1e-6)
