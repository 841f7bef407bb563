"""Averages of iterates: the iterates, their weights, and the price."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.hlo import bytes_accessed, bytes_of, temporary_bytes
from benchmarks.step.program import compiled
from contrib_algos import adam, dog, sgd
from contrib_core import (
    add_decayed_weights,
    apply_updates,
    Chain,
    chain,
    masked,
    scale,
    scale_by_learning_rate,
    tree,
)
from contrib_laws import assert_lawful
from contrib_wrappers import (
    Average,
    average,
    Exponential,
    exponential,
    master_weights,
    polynomial_decay,
    schedule_free_sgd,
    uniform,
)


TARGET = np.array([1.0, -2.0, 0.5])
STEPS = 40


def descend(opt: Any, params: Any, num_steps: int = STEPS) -> tuple[Any, Any, Any]:
    """Parameters, states and evaluation points after each step towards TARGET."""

    def step(carry, i):
        params, state = carry
        # Points also go up, so that averages differ from the points.
        grads = jax.tree.map(
            lambda x: x - jnp.asarray(TARGET, x.dtype) + jnp.sin(i.astype(x.dtype)),
            params,
        )
        updates, state = opt.update(grads, state, params)
        params = apply_updates(params, updates)
        return (params, state), (params, state, opt.eval_params(state, params))

    @jax.jit
    def run(params):
        start = params, opt.init(params)
        return lax.scan(step, start, jnp.arange(num_steps))[1]

    return run(params)


# Weights


def polynomial_weights(t: int, gamma: float) -> np.ndarray:
    """The weight of each of the first `t` iterates, as products of the recursion."""
    first = np.array([(1 + gamma) / (i + gamma) for i in range(1, t + 1)])
    later = [np.prod(1 - first[i + 1 :]) for i in range(t)]
    return first * later


def exponential_weights(t: int, decay: float) -> np.ndarray:
    powers = decay ** np.arange(t - 1, -1, -1.0)
    return powers / powers.sum()


WEIGHTS = {
    "default": (None, lambda t: polynomial_weights(t, 8.0)),
    "polynomial": (polynomial_decay(2.5), lambda t: polynomial_weights(t, 2.5)),
    "uniform": (uniform(), lambda t: np.full(t, 1 / t)),
    "exponential": (exponential(0.9), lambda t: exponential_weights(t, 0.9)),
    "last": (exponential(0.0), lambda t: exponential_weights(t, 0.0)),
    "own": (lambda t: jnp.where(t <= 5, 1.0, 0.25), None),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", WEIGHTS)
def test_average_is_the_weighted_mean_of_the_iterates(name):
    weight, weights_of = WEIGHTS[name]
    opt = average(sgd(0.3)) if weight is None else average(sgd(0.3), weight)
    iterates, _, evaluated = descend(opt, jnp.zeros(3))
    for t in range(1, STEPS + 1):
        if weights_of is None:  # From the fifth on, each has a quarter.
            kept = 0.75 ** max(0, t - 5)
            mean = kept * iterates[min(t, 5) - 1]
            for i in range(6, t + 1):
                mean = mean + 0.25 * 0.75 ** (t - i) * iterates[i - 1]
        else:
            assert weights_of(t).sum() == pytest.approx(1, abs=1e-13)
            mean = weights_of(t) @ iterates[:t]
        np.testing.assert_allclose(evaluated[t - 1], mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("weight", [polynomial_decay(), uniform(), exponential()])
def test_the_start_is_not_part_of_the_average(weight):
    start = jnp.array([1e8, -3.0, 1e-4])
    opt = average(sgd(1.0), weight)
    grads = start - jnp.array([1e-8, 7.0, 1e-12])
    updates, state = opt.update(grads, opt.init(start), start)
    np.testing.assert_array_equal(state.average, start + updates)


@pytest.mark.parametrize("decay", [0.999, jnp.asarray(0.999)])
def test_weights_add_up_to_one_in_float32(decay):
    """If 1 - w were rounded by itself, the average would be 1.3e-5 of itself off."""
    opt = average(sgd(1.0), exponential(decay))
    points = jax.random.uniform(jax.random.key(0), (20_000, 8), minval=0.5)

    def step(carry, point):
        x, state = carry
        updates, state = opt.update(x - point, state, x)
        x = x + updates
        return (x, state), x

    start = jnp.zeros(8)
    carry = start, opt.init(start)
    (_, state), iterates = jax.jit(lambda c: lax.scan(step, c, points))(carry)
    mean = exponential_weights(len(points), 0.999) @ np.asarray(iterates, np.float64)
    np.testing.assert_allclose(state.average, mean, rtol=3e-6)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: polynomial_decay(-0.5), "`gamma` must be at least 0"),
        (lambda: exponential(1.0), r"`decay` must be in \[0, 1\)"),
        (lambda: exponential(-0.1), r"`decay` must be in \[0, 1\)"),
    ],
)
def test_weights_outside_their_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_sweep_of_weights_is_one_program():
    gammas = jnp.array([0.0, 1.0, 8.0])

    def evaluated(gamma):
        return descend(average(sgd(0.3), polynomial_decay(gamma)), jnp.zeros(3))[2]

    swept = eqx.filter_vmap(evaluated)(gammas)
    for found, gamma in zip(swept, gammas, strict=True):
        alone = descend(average(sgd(0.3), polynomial_decay(float(gamma))), jnp.zeros(3))
        np.testing.assert_allclose(found, alone[2], rtol=1e-5, atol=1e-6)
    assert not np.allclose(swept[0, -1], swept[2, -1], atol=1e-2)


# Points that are averaged


def test_updates_and_inner_state_are_those_of_the_inner_transform():
    for inner in (dog(), schedule_free_sgd(0.5), chain(adam(0.1), scale(0.5))):
        params, states, _ = descend(average(inner), jnp.zeros(3))
        plain_params, plain_states, _ = descend(inner, jnp.zeros(3))
        np.testing.assert_array_equal(params, plain_params)
        assert eqx.tree_equal(states.inner_state, plain_states)


def test_before_the_first_step_it_is_the_parameters():
    params = {"a": jnp.arange(3.0), "b": jnp.ones(2, jnp.bfloat16), "c": None}
    opt = average(adam(0.1))
    assert eqx.tree_equal(opt.eval_params(opt.init(params), params), params)


@pytest.mark.usefixtures("x64")
def test_evaluation_points_are_averaged_instead_of_parameters():
    """Evaluation points of schedule-free are averages already; those of master weights
    are the wide copies."""
    inner = schedule_free_sgd(0.5)
    _, _, evaluated = descend(average(inner, uniform()), jnp.zeros(3))
    params, _, points = descend(inner, jnp.zeros(3))
    np.testing.assert_allclose(evaluated[-1], np.mean(points, axis=0), atol=1e-14)
    assert not np.allclose(evaluated[-1], np.mean(params, axis=0), atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_iterates_are_averaged_as_they_are_rounded(dtype):
    """Steps below half the resolution move neither the model nor the average. The
    average keeps more bits than the iterates."""
    params = jnp.ones(3, dtype)
    step = float(jnp.finfo(dtype).eps) / 64
    _, states, evaluated = descend(average(sgd(step), uniform()), params)
    assert states.average.dtype == jnp.float32 and evaluated.dtype == dtype
    np.testing.assert_array_equal(states.average, jnp.ones((STEPS, 3)))

    iterates, states, _ = descend(average(sgd(0.3), uniform()), params)
    mean = np.mean(np.asarray(iterates, np.float64), axis=0)
    np.testing.assert_allclose(states.average[-1], mean, rtol=1e-6)


@pytest.mark.parametrize("outside", [True, False])
def test_with_master_weights_the_wide_copy_is_averaged(outside):
    inner = sgd(1e-4)
    params = jnp.ones(3, jnp.bfloat16)
    if outside:
        _, own, _ = descend(average(master_weights(inner), uniform()), params)
    else:
        opt = master_weights(average(inner, uniform()))
        own = descend(opt, params)[1].inner_state
    wide, _, _ = descend(inner, params.astype(jnp.float32))
    # The gradients are taken at rounded parameters.
    np.testing.assert_allclose(
        own.average[-1], np.mean(wide, axis=0), rtol=0, atol=1e-5
    )
    assert not np.allclose(np.mean(wide, axis=0), 1, rtol=0, atol=5e-5)


def test_averaged_noise_is_less():
    """On a noisy bowl DoG does not settle; its average does, as its authors say."""
    keys = jax.random.split(jax.random.key(0), 2000)
    opt = average(dog(reps_rel=1e-3))

    def step(carry, key):
        x, state = carry
        grads = x - 1 + 3 * jax.random.normal(key, x.shape)
        updates, state = opt.update(grads, state, x)
        return (x + updates, state), None

    start = jnp.zeros(50)
    (x, state), _ = jax.jit(lambda c: lax.scan(step, c, keys))((start, opt.init(start)))
    assert tree.sq_norm(state.average - 1) < 0.5 * tree.sq_norm(x - 1)


# As a wrapper


def test_only_its_updates_may_move_the_parameters():
    opt = average(sgd(0.1))
    assert opt.needs == {"params"} and opt.owns_iterates


def test_metrics():
    opt = average(average(dog(), uniform()))
    params = jnp.ones(3)
    state = opt.init(params)
    before = opt.metrics(state)
    names = {"average/weight", "inner/average/weight", "dog/distance", "dog/step_size"}
    assert set(before) == names
    assert before["average/weight"] == before["inner/average/weight"] == 1
    for _ in range(4):
        _, state = opt.update(params, state, params)
    after = opt.metrics(state)
    assert after["average/weight"] == pytest.approx(9 / 12)
    assert after["inner/average/weight"] == pytest.approx(1 / 4)


def test_raw_model():
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    opt = average(adam(0.1))
    state = opt.init(model)
    grads = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    for _ in range(2):
        updates, state = opt.update(grads, state, model)
        model = eqx.apply_updates(model, updates)
    evaluated = opt.eval_params(state, model)
    assert evaluated.activation is model.activation
    # The first iterate is 0.1 away and has a tenth of the weight.
    np.testing.assert_allclose(
        evaluated.layers[0].weight - model.layers[0].weight, 0.01, rtol=1e-3
    )


def test_in_a_mask_the_rest_is_as_it_is():
    params = {"t": jnp.zeros(3), "w": jnp.zeros(3)}
    opt = masked(average(adam(0.1)), {"w": True, "t": False})
    iterates, _, evaluated = descend(opt, params)
    np.testing.assert_array_equal(evaluated["t"], iterates["t"])
    assert not np.allclose(evaluated["w"][-1], iterates["w"][-1], atol=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "opt, more",
    [
        (average(sgd(0.1)), set()),
        (average(schedule_free_sgd(0.5)), set()),
        # How far back it looks decides whether the first guess still shows.
        (average(dog(), uniform()), set()),
        (average(dog()), {"initial_guess"}),
    ],
)
def test_claims_are_true_and_complete(opt, more):
    assert_lawful(opt, declared=opt.laws | more, laws=["algebra", "wrapper"])


@pytest.mark.parametrize("inner", [sgd(0.1), adam(0.1), dog()])
def test_price_is_one_tree_read_and_written_and_the_iterates_once_more(inner):
    """The average is updated in place. XLA on a CPU writes each tree in a loop of its
    own, so that the new parameters are read back."""
    params = jax.ShapeDtypeStruct((2**16,), jnp.float32)
    plain, averaged = compiled(inner, params), compiled(average(inner), params)
    unit = bytes_of(params)
    more = (bytes_accessed(averaged) - bytes_accessed(plain)) / unit
    assert more == pytest.approx(3, abs=0.01)
    assert temporary_bytes(averaged) <= temporary_bytes(plain) + 0.01 * unit


@pytest.mark.parametrize(
    "weight, what",
    [
        (uniform, r"`average\(inner, uniform\(\)\)`"),
        (polynomial_decay, r"`average\(inner, PolynomialDecay\(\)\)`"),
        (exponential, r"`average\(inner, Exponential\(\)\)`"),
        (Exponential, r"`average\(inner, Exponential\(\)\)`"),
        (0.5, "must be a function of the count .*; got 0.5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_other_objects_are_refused_as_weights(weight: Any, what: str):
    with pytest.raises(ValueError, match=f"Average: .*{what}"):
        Average(sgd(0.1), weight)


@pytest.mark.parametrize(
    "behind",
    [scale(0.5), scale_by_learning_rate(0.1), add_decayed_weights(0.1)],
    ids=["scale", "learning-rate", "decay"],
)
def test_transforms_after_an_average_may_not_change_its_updates(behind):
    averaging = average(sgd(0.1))
    for inner in (averaging, chain(scale(1.0), masked(averaging, True))):
        with pytest.raises(
            ValueError, match=r"^Chain: .*Average\(Scale\).* Put .* last: "
        ):
            chain(inner, scale(1.0), behind)
    for right in (Chain(behind, averaging, scale(1.0)), Chain(behind, averaging)):
        assert right.owns_iterates
