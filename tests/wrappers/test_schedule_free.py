"""Schedule-free: its three sequences, weight decay, dtypes and options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.descent import descend, tabulated

from contrib_algos import sgd
from contrib_core import AbstractTransform
from contrib_core.claims import Needs
from contrib_wrappers import schedule_free, schedule_free_adamw, schedule_free_sgd


TARGET = np.array([1.0, -2.0, 0.5])


def three_sequences(
    learning_rates: np.ndarray,
    base_rates: np.ndarray,
    b1: float,
    power: float,
    decay_at: str = "y",
    decay: float = 0.0,
) -> tuple[np.ndarray, ...]:
    """x, y and z as the paper has them, each stored, on ||v - TARGET||^2 / 2."""
    x = z = y = np.zeros(3)
    weight_sum, points = 0.0, []
    for k, (rate, base_rate) in enumerate(zip(learning_rates, base_rates, strict=True)):
        shrunk = y if decay_at == "y" else z
        z = z - base_rate * (y - TARGET + decay * shrunk)
        weight = max(learning_rates[: k + 1]) ** power
        weight_sum += weight
        c = weight / weight_sum if weight_sum > 0 else 0.0
        x = (1 - c) * x + c * z
        y = (1 - b1) * z + b1 * x
        points.append((x, y, z))
    return tuple(map(np.array, zip(*points, strict=True)))


STEPS = 40

WARMUP = 0.5 * np.minimum(np.arange(1, STEPS + 1) / 10, 1)

CONSTANT = np.full(STEPS, 0.5)

LATE = np.where(np.arange(STEPS) < 5, 0.0, 0.3)

RISE_AND_FALL = 0.5 * np.sin(np.arange(1, STEPS + 1) / 10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("b1", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(
    "weights, base",
    [
        (WARMUP, WARMUP),
        (CONSTANT, CONSTANT),
        (RISE_AND_FALL, RISE_AND_FALL),
        (LATE, LATE),
        (LATE, CONSTANT),  # z moves while no weight has been gathered.
    ],
    ids=["warmup", "constant", "rise-and-fall", "late", "late-weights"],
)
def test_y_is_between_z_and_x_at_all_times(weights, base, b1):
    opt = schedule_free(
        sgd(tabulated(base)), tabulated(weights), b1, weight_lr_power=1.5
    )
    params, states = descend(opt, jnp.zeros(3), lambda y, i: y - TARGET, STEPS)
    xs, ys, zs = three_sequences(weights, base, b1, 1.5)
    np.testing.assert_allclose(params, ys, rtol=0, atol=1e-13)
    np.testing.assert_allclose(states.z, zs, rtol=0, atol=1e-13)
    evaluated = jax.vmap(opt.eval_params)(states, params)
    np.testing.assert_allclose(evaluated, xs if b1 else zs, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay_at", ["y", "z"])
def test_decay_is_at_the_requested_point(decay_at):
    opt = schedule_free_sgd(0.5, 10, 0.7, 0.2, 1.0, decay_at=decay_at)
    params, states = descend(opt, jnp.zeros(3), lambda y, i: y - TARGET, STEPS)
    xs, ys, _ = three_sequences(WARMUP, WARMUP, 0.7, 1.0, decay_at, 0.2)
    np.testing.assert_allclose(params, ys, rtol=0, atol=1e-13)
    evaluated = jax.vmap(opt.eval_params)(states, params)
    np.testing.assert_allclose(evaluated, xs, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_decay_leaves_out_leaves_outside_the_mask():
    mask = {"a": True, "b": False}
    opt = schedule_free_sgd(0.5, 10, 0.7, 0.2, 1.0, mask=mask)
    params, _ = descend(
        opt,
        {"a": jnp.zeros(3), "b": jnp.zeros(3)},
        lambda y, i: jax.tree.map(lambda leaf: leaf - TARGET, y),
        STEPS,
    )
    _, decayed, _ = three_sequences(WARMUP, WARMUP, 0.7, 1.0, "y", 0.2)
    _, plain, _ = three_sequences(WARMUP, WARMUP, 0.7, 1.0)
    np.testing.assert_allclose(params["a"], decayed, rtol=0, atol=1e-13)
    np.testing.assert_allclose(params["b"], plain, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "state_dtype, param_dtype, expected",
    [
        (None, "bfloat16", "bfloat16"),
        (None, "float64", "float64"),
        ("float32", "bfloat16", "float32"),
        ("float32", "float16", "float32"),
        ("float32", "float64", "float64"),
        ("float32", "complex64", "complex64"),
        ("bfloat16", "float32", "float32"),
        ("float16", "bfloat16", "float32"),
        ("float64", "float32", "float64"),
        ("float64", "complex64", "complex128"),
    ],
)
def test_state_dtype_never_narrows(state_dtype, param_dtype, expected):
    opt = schedule_free(sgd(0.1), 0.1, state_dtype=state_dtype)
    params = jnp.ones(3, param_dtype)
    state = opt.init(params)
    updates, new_state = opt.update(params, state, params)
    assert state.z.dtype == new_state.z.dtype == expected
    assert updates.dtype == param_dtype


def test_schedule_free_at_z_refuses_a_base_that_needs_the_value():
    class NeedsValue(AbstractTransform[None]):
        @property
        def needs(self) -> Needs:
            return frozenset({"value"})

        def start(self, params):
            return None

        def step(self, grads, state, params, extra):
            return grads, None

    needs = schedule_free(NeedsValue(), 0.1).needs
    assert needs == {"params", "value"}
    with pytest.raises(ValueError, match='base_at="y"'):
        schedule_free(NeedsValue(), 0.1, base_at="z")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("point", ["x", "Z", "y ", None])
def test_base_at_and_decay_at_must_be_y_or_z(point):
    message = f"ScheduleFree: `base_at` must be 'y' or 'z'; got {point!r}"
    with pytest.raises(ValueError, match=message):
        schedule_free(sgd(0.1), 0.1, base_at=point)
    for recipe in (schedule_free_sgd, schedule_free_adamw):
        with pytest.raises(ValueError, match="`base_at` must be 'y' or 'z'"):
            recipe(decay_at=point)
