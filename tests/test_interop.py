"""Optax, flax and optimistix: their transformations here, ours there, each compared
with the plain loop."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest
from flax.training.train_state import TrainState
from jaxtyping import Array
from optax import contrib as peer

from contrib_algos import adam, dog, prodigy, sgd
from contrib_core import (
    AbstractTransform,
    as_transform,
    chain,
    FromOptax,
    masked,
    scale,
    scale_by_learning_rate,
    to_optax,
)
from contrib_wrappers import (
    master_weights,
    schedule_free,
    schedule_free_adamw,
    schedule_free_eval_params,
    schedule_free_sgd,
    split_real_and_imaginary,
)


STEPS = 5
ZERO = jnp.zeros(())
PARAMS = {"a": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array([[0.5, 4.0]])}


def loss(params: Any) -> Array:
    return sum((jnp.sum(jnp.abs(x) ** 2) / 2 for x in jax.tree.leaves(params)), ZERO)


def grads_at(params: Any) -> Any:
    return jax.tree.map(lambda x: x, params)


def loop(
    opt: Any, params: Any, num_steps: int = STEPS, *, jit: bool = True, **extra: Any
) -> Any:
    """The plain loop: `init`, `update`, apply."""

    def step(opt, state, params):
        updates, state = opt.update(grads_at(params), state, params, **extra)
        return state, jax.tree.map(jnp.add, params, updates)

    if jit:
        step = eqx.filter_jit(step)
    state = opt.init(params)
    for _ in range(num_steps):
        state, params = step(opt, state, params)
    return params


def standard(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls packages that mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        return fn(*args, **kwargs)


def assert_close(actual: Any, expected: Any) -> None:
    leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for x, y in leaves:
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6)


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


# Ours there

OURS: dict[str, AbstractTransform] = {
    "sgd": sgd(0.1, 0.9),
    "dog": dog(reps_rel=0.1),
    "prodigy": prodigy(estim_lr0=0.1),
    "schedule_free_adamw": schedule_free_adamw(0.1, warmup_steps=3),
    "wrapped": master_weights(split_real_and_imaginary(masked(adam(0.1), True))),
}
over_ours = pytest.mark.parametrize("opt", OURS.values(), ids=OURS)


@over_ours
def test_in_a_plain_optax_loop(opt):
    theirs = to_optax(opt)
    assert isinstance(theirs, optax.GradientTransformationExtraArgs)

    @jax.jit
    def step(params, state):
        updates, state = theirs.update(grads_at(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, theirs.init(PARAMS)
    for _ in range(STEPS):
        params, state = standard(step, params, state)
    assert_close(params, loop(opt, PARAMS))


@over_ours
def test_in_optax_chain(opt):
    actual = standard(loop, optax.chain(optax.scale(0.5), to_optax(opt)), PARAMS)
    assert_close(actual, loop(chain(scale(0.5), opt), PARAMS))


@over_ours
def test_in_optax_masked(opt):
    actual = standard(loop, optax.masked(to_optax(opt), {"a": True, "b": True}), PARAMS)
    assert_close(actual, loop(opt, PARAMS))
    part = standard(loop, optax.masked(to_optax(opt), {"a": False, "b": True}), PARAMS)
    assert_close(part, loop(masked(opt, {"a": False, "b": True}), PARAMS))


def step_of(theirs: Any) -> Callable[..., Any]:
    """A step of optax whose gradients are `factor` times those of the loss."""

    @jax.jit
    def step(params, state, factor):
        grads = jax.tree.map(lambda x: factor * x, params)
        updates, state = theirs.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@over_ours
def test_in_optax_apply_if_finite(opt):
    """Each gradient comes after one of NaN."""
    theirs = optax.apply_if_finite(to_optax(opt), 3)

    step = step_of(theirs)
    params, state = PARAMS, standard(theirs.init, PARAMS)
    for i in range(2 * STEPS):
        params, state = standard(step, params, state, jnp.nan if i % 2 == 0 else 1.0)
    assert state.total_notfinite == STEPS
    assert_close(params, loop(opt, PARAMS))


@over_ours
def test_in_optax_multi_steps(opt):
    """Two micro-batches a step, whose mean is the gradient."""
    theirs = optax.MultiSteps(to_optax(opt), 2)

    step = step_of(theirs)
    params, state = PARAMS, standard(theirs.init, PARAMS)
    for i in range(2 * STEPS):
        params, state = standard(step, params, state, 0.5 + i % 2)
    assert state.gradient_step == STEPS
    assert_close(params, loop(opt, PARAMS))


@over_ours
def test_in_the_train_state_of_flax(opt):
    module = nn.Dense(2)
    x = jnp.array([[1.0, -1.0, 0.5]])
    params = standard(module.init, jax.random.key(0), x)["params"]

    def loss(params):
        return jnp.sum(jnp.square(jnp.asarray(module.apply({"params": params}, x))))

    @jax.jit
    def train_step(train_state):
        return train_state.apply_gradients(grads=jax.grad(loss)(train_state.params))

    train_state = TrainState.create(
        apply_fn=module.apply, params=params, tx=to_optax(opt)
    )
    update, state, plain = jax.jit(opt.update), opt.init(params), params
    for _ in range(STEPS):
        train_state = standard(train_step, train_state)
        updates, state = update(standard(jax.grad(loss), plain), state, plain)
        plain = jax.tree.map(jnp.add, plain, updates)
    assert train_state.step == STEPS
    assert_close(train_state.params, plain)
    assert not np.allclose(plain["kernel"], params["kernel"])


@over_ours
def test_in_optimistix(opt):
    solver = optimistix.OptaxMinimiser(to_optax(opt), rtol=0.0, atol=0.0)

    def minimise():
        return optimistix.minimise(
            lambda params, args: loss(params),
            solver,
            PARAMS,
            max_steps=STEPS,
            throw=False,
        )

    solution = standard(minimise)
    assert solution.stats["num_steps"] == STEPS
    assert_close(solution.value, loop(opt, PARAMS))


def test_schedule_free_is_evaluated_inside_any_optax_state():
    opt = schedule_free_sgd(0.1)
    theirs = optax.chain(optax.clip(100.0), to_optax(opt))
    params, state = PARAMS, standard(theirs.init, PARAMS)
    for _ in range(STEPS):
        updates, state = standard(theirs.update, grads_at(params), state, params)
        params = standard(optax.apply_updates, params, updates)
    plain, plain_state = PARAMS, opt.init(PARAMS)
    for _ in range(STEPS):
        updates, plain_state = opt.update(grads_at(plain), plain_state, plain)
        plain = jax.tree.map(jnp.add, plain, updates)
    evaluated = schedule_free_eval_params(state, params)
    assert_close(evaluated, opt.eval_params(plain_state, plain))
    assert not np.allclose(evaluated["a"], params["a"])


def test_there_and_back():
    opt = chain(to_optax(adam(0.1)), to_optax(scale_by_learning_rate(-1.0)))
    assert_close(loop(opt, PARAMS), loop(adam(0.1), PARAMS))


def test_without_optax_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ImportError, match=r'pip install "contrib-algebra\[optax\]"'):
        to_optax(adam(0.1))


def test_transforms_work_without_optax(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    opt = schedule_free(chain(adam(0.1)), 0.1)
    assert_close(loop(opt, PARAMS), loop(opt, PARAMS))


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
