"""Sharpness-aware minimisation: its steps, and where the model is evaluated."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array
from optax import contrib as peer
from support.descent import descend, standard_promotion, sum_of_squares, twice
from support.sharpness import (
    adversary,
    fit,
    loss,
    over_modes,
    over_optimizers,
    peer_adversary,
    RHO,
    START,
    start,
)

from contrib_algos import adam, dog, lion, sgd
from contrib_core import (
    AbstractTransform,
    chain,
    Extra,
    scale,
    scale_by_learning_rate,
    Tree,
    tree,
)
from contrib_laws import assert_lawful
from contrib_wrappers import SAM, sam, schedule_free


# Steps

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
def test_trajectories_match_optax(attack: str, reset: bool, period: int, opaque: bool):
    pairs = PAIRS["adam"], ADVERSARIES[attack]
    ours, theirs = (
        make(*parts, period, reset, opaque)
        for make, parts in zip((sam, peer.sam), zip(*pairs, strict=True), strict=True)
    )
    found = fit(ours, 160, opaque=opaque)
    with standard_promotion():
        expected = fit(theirs, 160, opaque=opaque)
    largest = tree.max_abs(tree.sub(expected, jax.tree.map(lambda x: x[None], start())))
    assert largest > 0.5
    assert tree.max_abs(tree.sub(found, expected)) <= 1e-10 * largest


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PAIRS)
def test_transparent_mode_takes_the_steps_of_opaque_mode(name: str):
    optimizer, _ = PAIRS[name]
    shown = fit(sam(optimizer, adversary(), 3), 90, opaque=False)
    hidden = fit(sam(optimizer, adversary(), 3, opaque_mode=True), 30, opaque=True)
    outer = jax.tree.map(lambda x: x[2::3], shown)
    assert tree.max_abs(tree.sub(outer, hidden)) < 1e-12


@pytest.mark.parametrize("radius", [1e-3, 1e3])
def test_after_an_outer_step_the_parameters_are_the_cache_and_its_update(radius: float):
    """The detour leaves no rounding error, whether its radius is small or large."""
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


# The optimizer that is due


def counting(log: Callable[[str], None], name: str, inner: AbstractTransform) -> Any:
    """`inner`, which logs `name` whenever it runs."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        jax.debug.callback(lambda: log(name))
        return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def test_only_the_optimizer_that_is_due_is_run():
    runs: list[str] = []
    outer = counting(runs.append, "outer", sgd(0.1))
    opt = sam(outer, counting(runs.append, "adversary", adversary()), 3)
    jax.block_until_ready(descend(opt, jnp.ones(3), twice, 7))
    jax.effects_barrier()
    assert runs == 2 * ["adversary", "adversary", "outer"] + ["adversary"]


class Recording(AbstractTransform[Any]):
    """Remembers its arguments, and steps along the negative gradient."""

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
    """The given value would belong to other parameters."""
    x = jnp.asarray(START, jnp.float32)
    opt = sam(Recording(), Recording(), reset_state=False, opaque_mode=True)
    _, state = opt.update(x, opt.init(x), x, value=5.0, grad_fn=lambda x, i: x)
    assert state.opt_state[0] == state.adv_state[0] == -1
    np.testing.assert_array_equal(state.opt_state[1], x)
    np.testing.assert_array_equal(state.adv_state[1], x)


def test_gradients_of_adversarial_steps_are_asked_for_one_by_one():
    """`grad_fn` receives Python numbers, which can index a list of batches."""
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
    """DoG stores where it starts; `reset_state=False` keeps the old start."""
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
    points, states = descend(opt, x, twice, 9)
    found = jax.vmap(opt.eval_params)(states, points)
    outer = jnp.concatenate([x[None], points[2::3]])
    np.testing.assert_array_equal(found, jnp.repeat(outer, 3, axis=0)[1:10])
    assert not np.allclose(found[0], points[0])


@over_modes
def test_averages_are_those_of_the_optimizer(opaque: bool):
    """Schedule-free recovers its average from the parameters without the adversary."""
    opt = sam(schedule_free(sgd(0.5), 0.5), adversary(), opaque_mode=opaque)
    assert opt.owns_iterates and ("grad_fn" in opt.needs) == opaque
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
def test_adaptive_adversaries_are_invariant_to_the_scale_of_parameters():
    """Scales differ between parameters, as in layers before a normalisation."""
    unit = jnp.asarray([1.0, 1e3, 1e-2])

    def adversarial_step(adaptive: bool) -> tuple[Array, Array]:
        opt = sam(sgd(0.1), adversary(), adaptive=adaptive, eta=0.0)
        x, g = jnp.asarray(START), jnp.ones(3)
        a, _ = opt.update(g, opt.init(x), x)
        b, _ = opt.update(g / unit, opt.init(unit * x), unit * x)
        return b, unit * a

    np.testing.assert_allclose(*adversarial_step(True), rtol=1e-12)
    assert not np.allclose(*adversarial_step(False), rtol=0.1)


def test_metrics_of_both_optimizers_are_reported():
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


# Hyperparameters


def test_sweeps_over_what_both_optimizers_learn_with():
    def final_loss(rho: Any, lr: Any, eta: Any) -> Array:
        opt = sam(sgd(lr), adversary(rho), adaptive=True, eta=eta)
        return sum_of_squares(descend(opt, jnp.ones(3), twice, 6)[0][-1])

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
def test_claims_are_true_and_complete(opt: SAM):
    """Every claimed law holds, and every other law has a counterexample."""
    assert_lawful(opt, laws=["algebra", "wrapper"])


def test_laws_of_sam():
    assert_lawful(sam, declared=["period_one", "radius_zero", "opaque"], laws="wrapper")
