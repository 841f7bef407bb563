"""Sharpness-aware minimisation: what it computes, what it survives, and where it
differs from optax."""

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
from test_mechanize import descend, Hidden, last, quadratic, standard, sum_of_squares

from contrib_algos import adam, dog, lion, momo, normalize, sgd
from contrib_core import (
    AbstractTransform,
    chain,
    Extra,
    masked,
    scale,
    scale_by_learning_rate,
    Tree,
    tree,
)
from contrib_core.laws import assert_lawful
from contrib_wrappers import (
    master_weights,
    mechanize,
    SAM,
    sam,
    schedule_free,
    split_real_and_imaginary,
)


START = np.array([1.0, 2.0, 3.0])
RHO = 0.05


def adversary(rho: float = RHO) -> AbstractTransform:
    """That of the paper."""
    return chain(normalize(), sgd(rho))


def peer_adversary() -> Any:
    return optax.chain(peer.normalize(), optax.sgd(RHO))


over_modes = pytest.mark.parametrize("opaque", [False, True], ids=["shown", "opaque"])
over_optimizers = pytest.mark.parametrize(
    "optimizer", [sgd(0.1), adam(0.1), lion(0.03)], ids=["sgd", "adam", "lion"]
)

# A loss with curvatures from 1 to 1/100 and gradients that rotate.
CURVATURE = np.logspace(0, -2, 6).reshape(2, 3)
TARGET = np.sin(np.arange(6.0)).reshape(2, 3)


def loss(x: Any) -> Array:
    fit = jnp.sum(CURVATURE.astype(x["w"].dtype) * (x["w"] - TARGET) ** 2)
    return fit + jnp.sum(jnp.cosh(x["b"] - x["w"][0, 0]))


def start() -> Any:
    return {"b": jnp.ones(()), "w": jnp.zeros((2, 3))}


def fit(opt: Any, num_steps: int, *, opaque: bool) -> Any:
    """The parameters after each step."""

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        extra = {"grad_fn": lambda x, i: jax.grad(loss)(x)} if opaque else {}
        updates, state = opt.update(jax.grad(loss)(x), state, x, **extra)
        x = jax.tree.map(jnp.add, x, updates)
        return (x, state), x

    @jax.jit
    def run(x: Any) -> Any:
        return lax.scan(step, (x, opt.init(x)), length=num_steps)[1]

    return run(start())


# What it computes

PAIRS: dict[str, tuple[Any, Any]] = {
    "sgd": (sgd(0.3), optax.sgd(0.3)),
    "momentum": (sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "adam": (adam(0.05), optax.adam(0.05)),
    "lion": (lion(0.01), optax.lion(0.01)),
}
ADVERSARIES: dict[str, tuple[Any, Any]] = {
    "normalized": (adversary(), peer_adversary()),
    "adam": (adam(0.01), optax.adam(0.01)),  # With a state that can be reset or not.
}


@pytest.mark.usefixtures("x64")
@over_modes
@pytest.mark.parametrize("reset, period", [(True, 2), (False, 3)])
@pytest.mark.parametrize("attack", ADVERSARIES)
def test_as_optax(attack: str, reset: bool, period: int, opaque: bool):
    pairs = PAIRS["adam"], ADVERSARIES[attack]
    ours, theirs = (
        make(*parts, period, reset, opaque)
        for make, parts in zip((sam, peer.sam), zip(*pairs, strict=True), strict=True)
    )
    found = fit(ours, 160, opaque=opaque)
    with standard():
        expected = fit(theirs, 160, opaque=opaque)
    largest = tree.max_abs(tree.sub(expected, jax.tree.map(lambda x: x[None], start())))
    assert largest > 0.5
    assert tree.max_abs(tree.sub(found, expected)) <= 1e-10 * largest


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PAIRS)
def test_transparent_steps_are_opaque_ones_seen(name: str):
    optimizer, _ = PAIRS[name]
    shown = fit(sam(optimizer, adversary(), 3), 90, opaque=False)
    hidden = fit(sam(optimizer, adversary(), 3, opaque_mode=True), 30, opaque=True)
    outer = jax.tree.map(lambda x: x[2::3], shown)
    assert tree.max_abs(tree.sub(outer, hidden)) < 1e-12


@pytest.mark.parametrize("radius", [1e-3, 1e3])
def test_after_an_outer_step_the_parameters_are_the_cache_and_its_update(radius: float):
    """Rounded as they are, near by and far away: nothing is left of the way there."""
    rng = np.random.RandomState(0)
    x = jnp.asarray(rng.uniform(1, 2, 1000), jnp.float32)
    e, u = jnp.asarray(rng.uniform(-1, 1, (2, 1000)), jnp.float32) * radius
    opt = sam(scale(1e-3), scale(-1.0))
    updates, state = opt.update(e, opt.init(x), x)
    y = x + updates
    np.testing.assert_allclose(y, x + e, rtol=1e-6)
    updates, state = opt.update(u, state, y)
    found = np.asarray(y + updates)
    exact = np.float64(x) + np.float64(np.float32(1e-3) * u)
    if radius < 1:
        assert np.mean(found == exact.astype(np.float32)) > 0.98
    np.testing.assert_allclose(found, exact, rtol=1e-7, atol=1e-7 * radius)


@over_optimizers
@over_modes
def test_period_1_is_the_optimizer_bit_for_bit(opaque: bool, optimizer: Any):
    opt = sam(optimizer, adversary(), 1, opaque_mode=opaque)
    assert opt.needs == optimizer.needs
    assert opt.init(start()).cache is None
    found = fit(opt, 20, opaque=False)
    assert eqx.tree_equal(found, fit(optimizer, 20, opaque=False))


# Defects of optax 0.2.8


def test_period_1_diverges_in_optax_0_2_8():
    x = jnp.asarray(START, jnp.float32)
    with standard():
        theirs, _ = descend(
            peer.sam(optax.sgd(0.1), peer_adversary(), 1), x, quadratic, 200
        )
    assert sum_of_squares(theirs[-1]) > 1e14
    ours, _ = descend(sam(sgd(0.1), adversary(), 1), x, quadratic, 200)
    assert sum_of_squares(ours[-1]) < 1e-14


@pytest.mark.parametrize("null", [0, 1], ids=["adversarial", "outer"])
def test_zero_gradients_are_null_steps_where_optax_0_2_8_is_nan(null: int):
    x = jnp.asarray(START, jnp.float32)

    def grads(x: Array, i: Array) -> Array:
        return jnp.where(i == null, 0.0, 2 * x)

    with standard():
        theirs, _ = descend(peer.sam(optax.sgd(0.1), peer_adversary()), x, grads, 40)
    assert np.isnan(theirs[-1]).all()
    ours, _ = descend(sam(sgd(0.1), adversary()), x, grads, 40)
    assert np.isfinite(ours).all() and sum_of_squares(ours[-1]) < 0.02
    if null == 0:
        np.testing.assert_array_equal(ours[0], x)  # There is no way up.
    else:
        np.testing.assert_allclose(ours[1], x, rtol=1e-6)  # And here none down.


def test_value_reaches_the_optimizer_where_optax_0_2_8_does_not_take_it():
    x = jnp.asarray(START, jnp.float32)
    theirs: Any = peer.sam(optax.sgd(0.1), peer_adversary())
    with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
        theirs.update(x, theirs.init(x), x, value=1.0)
    opt = sam(momo(1.0), adversary())
    state, step = opt.init(x), jax.jit(opt.update)
    for _ in range(200):
        updates, state = step(2 * x, state, x, value=sum_of_squares(x))
        x = x + updates
    # It is at the least of the losses that are the worst within `RHO`.
    assert sum_of_squares(x) < (2 * RHO) ** 2


def test_states_with_keys_and_flags_survive_where_optax_0_2_8_fails():
    """Of optimizers that add noise from a typed key, and of DoG, which has a flag."""
    noise = optax.add_noise(1e-3, 0.55, jax.random.key(0))
    x = jnp.asarray(START, jnp.float32)

    def run(make: Any, *optimizers: Any) -> Any:
        return descend(make(*optimizers), x, quadratic, 200)[0]

    with standard(), pytest.raises((TypeError, ValueError)):
        run(peer.sam, optax.chain(noise, optax.sgd(0.1)), peer_adversary())
    for optimizer in (chain(noise, sgd(0.1)), dog(reps_rel=1e-2)):
        for attack in (adversary(), chain(noise, adversary())):
            assert sum_of_squares(run(sam, optimizer, attack)[-1]) < 0.05


def test_statistics_do_not_meet_infinities_where_those_of_optax_0_2_8_do():
    """One optimizer's overflow, at a step that is the other's."""
    x = jnp.full(3, 1e-3)
    grads = jnp.full(3, 1e25)  # Their square is infinite, and Adam would be NaN.
    theirs: Any = peer.sam(optax.adam(0.1), optax.sgd(1e-30))
    ours = sam(optax.adam(0.1), sgd(1e-30))
    with standard():
        _, state = theirs.update(grads, theirs.init(x), x)
        assert np.isnan(state.opt_state[0].nu).all()
    _, state = ours.update(grads, ours.init(x), x)
    np.testing.assert_array_equal(state.opt_state[0].nu, 0)


# Which optimizer is run


def counting(log: Callable[[str], None], name: str, inner: AbstractTransform) -> Any:
    """Logs its name whenever it is run."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        jax.debug.callback(lambda: log(name))
        return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def test_only_the_optimizer_that_is_due_is_run():
    runs: list[str] = []
    outer = counting(runs.append, "outer", sgd(0.1))
    opt = sam(outer, counting(runs.append, "adversary", adversary()), 3)
    jax.block_until_ready(descend(opt, jnp.ones(3), quadratic, 7))
    jax.effects_barrier()
    assert runs == 2 * ["adversary", "adversary", "outer"] + ["adversary"]


class Recording(AbstractTransform[Any]):
    """Remembers what it was given; does not move."""

    def start(self, params: Tree) -> Any:
        return jnp.zeros(()), params, params

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        value = extra.given.get("value", jnp.full((), -1, jnp.float32))
        return tree.scale(-1, grads), (value, params, grads)

    def metrics(self, state: Any) -> dict[str, Array]:
        return {"recording/value": state[0]}


def test_the_optimizer_sees_the_cache_and_the_loss_of_its_gradients():
    x = jnp.asarray(START, jnp.float32)
    opt = sam(Recording(), sgd(1.0))
    _, state = opt.update(jnp.ones(3), opt.init(x), x, value=5.0)
    assert state.opt_state[0] == 0
    y = x + 1
    updates, state = opt.update(jnp.full(3, 2.0), state, y, value=7.0)
    value, params, grads = state.opt_state
    assert value == 7
    np.testing.assert_array_equal(params, x)
    np.testing.assert_array_equal(grads, jnp.full(3, 2.0))
    np.testing.assert_array_equal(y + updates, x - 2)


def test_in_opaque_mode_there_is_no_value():
    """It would be that of other parameters."""
    x = jnp.asarray(START, jnp.float32)
    opt = sam(Recording(), Recording(), reset_state=False, opaque_mode=True)
    _, state = opt.update(x, opt.init(x), x, value=5.0, grad_fn=lambda x, i: x)
    assert state.opt_state[0] == state.adv_state[0] == -1
    np.testing.assert_array_equal(state.opt_state[1], x)
    np.testing.assert_array_equal(state.adv_state[1], x)


def test_gradients_of_adversarial_steps_are_asked_for_one_by_one():
    """By Python numbers, which index lists of batches."""
    batches, seen = [jnp.full(3, 10.0), jnp.full(3, 20.0)], []

    def grad_fn(x: Array, i: Any) -> Array:
        seen.append((i, x))
        return batches[i]

    x = jnp.asarray(START, jnp.float32)
    opt = sam(sgd(1.0), scale_by_learning_rate(0.5), 3, opaque_mode=True)
    updates, _ = opt.update(jnp.ones(3), opt.init(x), x, grad_fn=grad_fn)
    assert [i for i, _ in seen] == [0, 1]
    np.testing.assert_allclose(seen[0][1], x + 0.5)
    np.testing.assert_allclose(seen[1][1], x + 0.5 + 5)
    np.testing.assert_allclose(updates, -batches[1])


def test_gradients_are_averaged_over_the_axis_of_the_batch():
    x = jnp.asarray(START, jnp.float32)
    opt = sam(
        sgd(1.0), scale_by_learning_rate(0.5), opaque_mode=True, batch_axis_name="batch"
    )

    def update(shift: Array) -> Array:
        def grad_fn(x: Array, i: Any) -> Array:
            return x - shift

        return opt.update(x, opt.init(x), x, grad_fn=grad_fn)[0]

    updates = jax.vmap(update, axis_name="batch")(jnp.array([1.0, 5.0]))
    np.testing.assert_allclose(updates, 2 * [-(1.5 * x - 3)], rtol=1e-6)


@over_modes
def test_the_adversary_starts_anew_at_the_new_parameters(opaque: bool):
    """DoG keeps where it starts. Unless it is told not to."""
    x = jnp.asarray(START, jnp.float32)
    extra = {"grad_fn": lambda x, i: x} if opaque else {}
    for reset in (True, False):
        opt = sam(sgd(0.5), dog(), 2, reset, opaque)
        y, state = x, opt.init(x)
        for _ in range(1 if opaque else 2):
            updates, state = opt.update(y, state, y, **extra)
            y = y + updates
        expected = opt.adv_optimizer.init(y if reset else x)
        np.testing.assert_allclose(
            state.adv_state.init_params, expected.init_params, rtol=1e-6
        )
        assert (state.adv_state.sum_sq_norm_grads == 0) == reset


# Where to evaluate the model


def test_between_outer_steps_the_model_is_evaluated_at_the_cache():
    x = jnp.asarray(START, jnp.float32)
    opt = sam(sgd(0.1), adversary(), 3)
    points, states = descend(opt, x, quadratic, 9)
    found = jax.vmap(opt.eval_params)(states, points)
    outer = jnp.concatenate([x[None], points[2::3]])
    np.testing.assert_array_equal(found, jnp.repeat(outer, 3, axis=0)[1:10])
    assert not np.allclose(found[0], points[0])


@over_modes
def test_averages_are_those_of_the_optimizer(opaque: bool):
    """Schedule-free recovers its average from the parameters without the adversary."""
    opt = sam(schedule_free(sgd(0.5), 0.5), adversary(), opaque_mode=opaque)
    assert ("iterates" in opt.needs) and ("grad_fn" in opt.needs) == opaque
    x = start()
    state, points = opt.init(x), []

    @jax.jit
    def step(x: Any, state: Any) -> Any:
        grad_fn = {"grad_fn": lambda x, i: jax.grad(loss)(x)} if opaque else {}
        updates, state = opt.update(jax.grad(loss)(x), state, x, **grad_fn)
        return jax.tree.map(jnp.add, x, updates), state

    z = []
    for i in range(40):
        x, state = step(x, state)
        if opaque or i % 2:
            z.append(state.opt_state.z)
        if z:
            points.append((opt.eval_params(state, x), list(z)))
    for point, so_far in points:
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *so_far)
        assert tree.max_abs(tree.sub(point, mean)) < 1e-5


# The adaptive adversary


@pytest.mark.usefixtures("x64")
@over_modes
@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_adaptive_steps_are_those_of_the_paper(eta: float, opaque: bool):
    x, target = jnp.asarray([1.0, -20.0, 0.3]), jnp.asarray([0.5, 1.0, 1.0])

    def grad(x: Array, i: int = 0) -> Array:
        return x**3 - target

    size = jnp.abs(x) + eta
    g = grad(x)
    y = x + RHO * size**2 * g / jnp.linalg.norm(size * g)
    opt = sam(sgd(0.1), adversary(), opaque_mode=opaque, adaptive=True, eta=eta)
    state = opt.init(x)
    if opaque:
        updates, _ = opt.update(g, state, x, grad_fn=grad)
    else:
        updates, state = opt.update(g, state, x)
        np.testing.assert_allclose(x + updates, y, rtol=1e-14)
        updates, _ = opt.update(grad(x + updates), state, x + updates)
        updates = y + updates - x
    np.testing.assert_allclose(updates, -0.1 * grad(y), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_adaptive_adversaries_do_not_know_the_scale_of_parameters():
    """Which may differ from one to the next, as layers before a normalisation do."""
    unit = jnp.asarray([1.0, 1e3, 1e-2])

    def adversarial_step(adaptive: bool) -> tuple[Array, Array]:
        opt = sam(sgd(0.1), adversary(), adaptive=adaptive, eta=0.0)
        x, g = jnp.asarray(START), jnp.ones(3)
        a, _ = opt.update(g, opt.init(x), x)
        b, _ = opt.update(g / unit, opt.init(unit * x), unit * x)
        return b, unit * a

    np.testing.assert_allclose(*adversarial_step(True), rtol=1e-12)
    assert not np.allclose(*adversarial_step(False), rtol=0.1)


# What it survives


@over_modes
@pytest.mark.parametrize("step", [20, 21], ids=["adversarial", "outer"])
@pytest.mark.parametrize("spike", [1e12, 1e30])
@pytest.mark.parametrize("name", ["adam", "lion"])
def test_a_spike_is_forgotten(name: str, spike: float, step: int, opaque: bool):
    """As soon as the optimizer forgets it: here in some hundreds of steps."""
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
def test_gradients_of_one_size_for_ever(size: float, optimizer: Any, opaque: bool):
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


# Around and inside of others

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
def test_trains(wrapper: str, optimizer: AbstractTransform, opaque: bool):
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
    """It is a copy of the parameters, and as exact as they are. Optax's updates have as
    few bits, and ours more: either may be due."""
    x = jnp.asarray(START, dtype)
    opt = sam(adam(0.1), chain(normalize(), attack))
    points, states = descend(opt, x, lambda x, i: x, 200)
    optimizers = jax.tree.leaves((states.opt_state, states.adv_state))
    assert {str(leaf.dtype) for leaf in optimizers} <= {"float32", "int32"}
    np.testing.assert_array_equal(states.cache[2::2], points[1:-1:2])
    assert tree.norm(opt.eval_params(last(states), points[-1])) < 0.2 * tree.norm(x)


@over_modes
def test_raw_models(opaque: bool):
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
    """Then both optimizers are run, and each problem gets its own: keys too."""
    noise = optax.add_noise(1e-3, 0.55, jax.random.key(0))
    opt = sam(chain(noise, adam(0.1)), chain(noise, adversary()), 3)
    x = jnp.asarray(START, jnp.float32)
    alone, states = descend(opt, x, quadratic, 5)
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


def test_metrics_are_those_of_both():
    opt = sam(chain(Recording(), dog()), chain(dog(), Recording()))
    x = jnp.asarray(START, jnp.float32)
    state = opt.init(x)
    for value in (2.0, 3.0):
        _, state = opt.update(x, state, x, value=value)
    metrics = opt.metrics(state)
    names = {"recording/value", "dog/distance", "dog/step_size"}
    assert set(metrics) == names | {f"adv/{name}" for name in names}
    assert metrics["recording/value"] == 3
    assert metrics["adv/recording/value"] == 0  # Reset.


# What is refused


def test_adversaries_with_points_of_their_own_are_refused():
    for attack in (Hidden(), chain(scale(1.0), Hidden()), mechanize(sgd(1.0))):
        with pytest.raises(ValueError, match="against its updates.*chain.normalize"):
            sam(sgd(0.1), attack)
        assert sam(attack, sgd(0.1), opaque_mode=True).needs >= {"iterates"}
    assert "iterates" in sam(sgd(0.1), sgd(0.1)).needs
    assert sam(sgd(0.1), sgd(0.1), opaque_mode=True).needs == {"params", "grad_fn"}


def test_opaque_mode_refuses_what_needs_the_value():
    for optimizers in ((momo(), adversary()), (sgd(0.1), momo())):
        with pytest.raises(ValueError, match="opaque_mode=False"):
            sam(*optimizers, opaque_mode=True)
        assert "value" in sam(*optimizers).needs
    # Of one step, it is the value that belongs to the gradients.
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


# Hyperparameters


def test_sweeps_over_what_both_optimizers_learn_with():
    def final_loss(rho: Any, lr: Any, eta: Any) -> Array:
        opt = sam(sgd(lr), adversary(rho), adaptive=True, eta=eta)
        return sum_of_squares(descend(opt, jnp.ones(3), quadratic, 6)[0][-1])

    rhos, lrs, etas = jnp.array([[0.1, 0.2], [0.05, 0.1], [0.01, 0.5]])
    swept = eqx.filter_vmap(final_loss)(rhos, lrs, etas)
    looped = [final_loss(*v) for v in zip(rhos, lrs, etas, strict=True)]
    np.testing.assert_allclose(swept, looped, rtol=1e-5)
    numbers = final_loss(0.1, 0.05, 0.01)
    np.testing.assert_allclose(swept[0], numbers, rtol=1e-5)
    assert swept[0] != swept[1]


# Laws


@pytest.mark.thorough
@pytest.mark.parametrize(
    "opt",
    [
        sam(sgd(0.1), adversary()),
        sam(dog(), adversary()),
        sam(lion(0.03, weight_decay=0.0), adversary(), opaque_mode=True),
        sam(adam(0.1), adversary(), 1),
    ],
    ids=["sgd", "dog", "lion-opaque", "one"],
)
def test_claims(opt: SAM):
    """What it claims holds, and of what it does not claim there is a counterexample."""
    assert_lawful(opt, laws=["algebra", "wrapper"])


def test_adaptive_steps_of_huge_bfloat16_parameters_are_finite():
    x = jnp.full(3, 1e29, jnp.bfloat16)
    opt = sam(sgd(0.1), adversary(), adaptive=True)
    updates, state = opt.update(x, opt.init(x), x)  # |x| x overflows.
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))


def test_adaptive_products_do_not_overflow_in_float16():
    """|x| g is 9e4 and 4.5e4, and 65504 is the largest number."""
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


def test_what_optimizers_of_optax_require_is_known():
    with pytest.raises(ValueError, match="in opaque mode the `value`"):
        sam(peer.momo(), adversary(), opaque_mode=True)


def test_laws_of_sam():
    laws = {"sam_period", "sam_radius", "sam_modes"}
    assert_lawful(sam, declared=laws, laws="wrapper")
