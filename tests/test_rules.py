"""What single rules and wrappers promise beyond the contract that all of them keep."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jaxtyping import Array

from contrib_algos import (
    Adam,
    adam,
    adamw,
    cocob,
    dadapt_adamw,
    DoG,
    dog,
    dowg,
    Lion,
    lion,
    Momentum,
    momo,
    momo_adam,
    normalize,
    Prodigy,
    prodigy,
    RMS,
    sgd,
)
from contrib_core import (
    AbstractTransform,
    add_decayed_weights,
    apply_updates,
    chain,
    check_nonnegative,
    LinearWarmup,
    masked,
    scale,
    scale_by_learning_rate,
    to_optax,
    tree,
)
from contrib_wrappers import (
    average,
    master_weights,
    mechanize,
    RealAndImaginary,
    sam,
    schedule_free,
    schedule_free_adamw,
    schedule_free_eval_params,
    schedule_free_sgd,
    split_real_and_imaginary,
)


def descend(
    opt: Any, params: Any, grads: Callable[[Any, Array], Any], num_steps: int
) -> tuple[Any, Any]:
    """Parameters and states after each step, on a leading axis; one compilation. The
    loss is that of which gradients are twice the parameters."""

    def step(carry, i):
        params, state = carry
        g = grads(params, i)
        updates, state = opt.update(g, state, params, value=tree.sq_norm(g) / 4)
        carry = apply_updates(params, updates), state
        return carry, carry

    @jax.jit
    def run(params):
        start = params, opt.init(params)
        return lax.scan(step, start, jnp.arange(num_steps))[1]

    return run(params)


def last(trajectory: Any) -> Any:
    return jax.tree.map(lambda x: x[-1], trajectory)


def sum_of_squares(x: Array) -> Array:
    return jnp.sum(x**2)


def its_gradient(x: Array, i: Array) -> Array:
    del i
    return 2 * x


# The examples of the manual

EXAMPLES = [
    (dog(), [13.999965, 13.999939, 13.999904, 13.999857, 13.999793], 5e-7),
    (dowg(), [13.925367, 13.872763, 13.775433, 13.596172, 13.268837], 1e-6),
    (momo(), [3.5, 3.3182133, 3.1418587, 2.9713084, 2.8068557], 5e-8),
    (momo_adam(), [13.8803, 13.761216, 13.642758, 13.524937, 13.407762], 1e-6),
    (schedule_free_sgd(), [14.0, 0.0, 0.996, 0.806, 0.241], 5e-4),
    (schedule_free_adamw(1.0), [5.00, 3.05, 1.73, 0.894, 0.413], 5e-3),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "opt, expected, atol",
    EXAMPLES,
    ids=["dog", "dowg", "momo", "momo_adam", "sgd", "adamw"],
)
def test_losses_of_the_manual(opt, expected, atol):
    params, states = descend(opt, jnp.array([1.0, 2.0, 3.0]), its_gradient, 5)
    evaluated = jax.vmap(opt.eval_params)(states, params)
    np.testing.assert_allclose(
        jax.vmap(sum_of_squares)(evaluated), expected, rtol=0, atol=atol
    )


# Null first steps

NULL_STEPS = 3


def null_then(rate: float) -> Callable[[Any], Array]:
    return lambda count: jnp.where(count < NULL_STEPS, 0.0, rate)


@pytest.mark.parametrize(
    "make",
    [
        dog,
        lambda rate=1.0: dog(rate, init_learning_rate=1e-3),
        lambda rate=1.0: dog(rate, eps=0.0),
        prodigy,
        lambda rate=1.0: prodigy(rate, safeguard_warmup=True, growth_rate=2.0),
        lambda rate=1.0: dowg(rate, init_estim_sq_dist=1e-4, eps=0.0),
        dadapt_adamw,
        lambda rate=1.0: dadapt_adamw(rate, eps=0.0, use_bias_correction=False),
        lambda rate=1.0: cocob(rate, eps=0.0),
        lambda rate=0.1: momo(rate, adapt_lower_bound=True),
        lambda rate=0.3: momo_adam(rate, eps=0.0),
    ],
    ids=[
        "dog",
        "dog-init_learning_rate",
        "dog-eps-0",
        "prodigy",
        "prodigy-options",
        "dowg-eps-0",
        "dadapt_adamw",
        "dadapt_adamw-options",
        "cocob-eps-0",
        "momo",
        "momo_adam",
    ],
)
@pytest.mark.parametrize("null", ["gradient", "learning_rate"])
def test_null_first_steps_only_delay_training(make, null):
    start = jnp.array([1.0, 2.0, 3.0])

    def grads(x, i):
        return jnp.where((null == "gradient") & (i < NULL_STEPS), 0.0, 2 * x)

    opt = make(null_then(1.0)) if null == "learning_rate" else make()
    params, states = descend(opt, start, grads, 500)
    inexact = eqx.filter((params, states), eqx.is_inexact_array)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(inexact))
    np.testing.assert_array_equal(params[:NULL_STEPS], [start] * NULL_STEPS)
    assert not np.array_equal(params[NULL_STEPS], start)
    assert sum_of_squares(params[-1]) < 1e-2


def test_init_learning_rate_is_used_until_the_parameters_have_moved():
    start = jnp.array([1.0, 2.0, 3.0])
    opt = dog(init_learning_rate=1e-3)
    params, states = descend(
        opt, start, lambda x, i: jnp.where(i < NULL_STEPS, 0.0, 2 * x), 6
    )
    np.testing.assert_allclose(params[NULL_STEPS], start - 2e-3 * start, rtol=1e-6)
    np.testing.assert_array_equal(states.first_step, [1, 1, 1, 1, 0, 0])


def test_growth_is_bounded_after_a_free_first_jump():
    """`d` may jump once, from `d0`; then it grows by at most `growth_rate` towards the
    largest estimate so far, even where later ones are smaller."""
    start = jnp.array([1.0, 2.0, 3.0])
    options: dict[str, Any] = {"estim_lr0": 1e-3, "estim_lr_coef": 50.0}
    _, free = descend(prodigy(**options), start, its_gradient, 60)
    _, bounded = descend(prodigy(**options, growth_rate=1.3), start, its_gradient, 60)
    d, d_max = np.asarray(bounded.estim_lr), np.asarray(bounded.max_estim_lr)
    (jump, *_) = np.flatnonzero(d > d[0])
    assert d[jump] > 10 * d[0] and d[jump] == free.estim_lr[jump] == d_max[jump]
    growth = d[jump + 1 :] / d[jump:-1]
    # It hits the bound, and later, at the largest estimate, it stays.
    np.testing.assert_allclose(growth[:10], 1.3, rtol=1e-6)
    assert np.all(growth <= 1.3 + 1e-6) and growth[-1] == 1 and d[-1] == d_max[-1]
    assert np.all(d <= d_max) and np.all(np.diff(d_max) >= 0)
    assert free.max_estim_lr is None


# Statistics of 16-bit parameters

TRANSFORMS: dict[str, AbstractTransform] = {
    "sgd": sgd(0.1, 0.9),
    "adam": adam(lambda count: 0.1),
    "adamw": adamw(0.1),
    "lion": lion(0.1),
    "dog": dog(weight_decay=0.1),
    "dog-init_learning_rate": dog(init_learning_rate=0.1),
    "dowg": dowg(),
    "prodigy": prodigy(growth_rate=2.0),
    "dadapt_adamw": dadapt_adamw(weight_decay=0.1),
    "cocob": cocob(),
    "momo": momo(weight_decay=0.1, adapt_lower_bound=True),
    "momo_adam": momo_adam(weight_decay=0.1, adapt_lower_bound=True),
    "mechanize": mechanize(adam(1.0)),
    "sam": sam(prodigy(), chain(normalize(), sgd(0.05))),
    "average": average(dog()),
    "schedule_free": schedule_free(sgd(0.1), 0.1, state_dtype=None),
    "schedule_free_sgd": schedule_free_sgd(warmup_steps=3),
    "schedule_free_adamw": schedule_free_adamw(weight_decay=0.1),
    "split": split_real_and_imaginary(prodigy()),
    "masked": masked(prodigy(), True),
    "master_weights": master_weights(schedule_free(dog(), 1.0)),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_scalars_of_16_bit_parameters_are_float32(name, dtype):
    opt = TRANSFORMS[name]
    params = {"a": jnp.ones(3, dtype), "b": jnp.ones((2, 2), dtype)}
    state = opt.init(params)
    _, new_state = opt.update(params, state, params, value=1.0)
    scalars = [x for x in jax.tree.leaves((state, new_state)) if x.ndim == 0]
    dtypes = {str(x.dtype) for x in scalars}
    assert dtypes <= {"float32", "int32", "bool"}
    assert "float32" in dtypes or name in (
        "sgd",
        "adam",
        "adamw",
        "lion",
        "cocob",
        "mechanize",
    )


def test_sum_of_squares_of_3000_unit_steps_in_bfloat16():
    start = jnp.zeros(4, jnp.bfloat16)
    _, state = last(descend(dog(), start, lambda x, i: jnp.full_like(x, 0.5), 3000))
    np.testing.assert_allclose(state.sum_sq_norm_grads, 3000, rtol=1e-6)


# Schedule-free

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


def rates(values: np.ndarray) -> Callable[[Any], Array]:
    return lambda count: jnp.asarray(values)[count]


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
    opt = schedule_free(sgd(rates(base)), rates(weights), b1, weight_lr_power=1.5)
    params, states = descend(opt, jnp.zeros(3), lambda y, i: y - TARGET, STEPS)
    xs, ys, zs = three_sequences(weights, base, b1, 1.5)
    np.testing.assert_allclose(params, ys, rtol=0, atol=1e-13)
    np.testing.assert_allclose(states.z, zs, rtol=0, atol=1e-13)
    evaluated = jax.vmap(opt.eval_params)(states, params)
    np.testing.assert_allclose(evaluated, xs if b1 else zs, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay_at", ["y", "z"])
def test_decay_is_at_the_point_that_is_asked_for(decay_at):
    opt = schedule_free_sgd(0.5, 10, 0.7, 0.2, 1.0, decay_at=decay_at)
    params, states = descend(opt, jnp.zeros(3), lambda y, i: y - TARGET, STEPS)
    xs, ys, _ = three_sequences(WARMUP, WARMUP, 0.7, 1.0, decay_at, 0.2)
    np.testing.assert_allclose(params, ys, rtol=0, atol=1e-13)
    evaluated = jax.vmap(opt.eval_params)(states, params)
    np.testing.assert_allclose(evaluated, xs, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_decay_leaves_out_what_the_mask_leaves_out():
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


# Evaluating a schedule-free model from its state alone

KEY = jax.random.key(0)


def after_two_steps(opt: Any, params: Any) -> tuple[Any, Any]:
    state = opt.init(params)
    for _ in range(2):
        grads = jax.tree.map(lambda x: x**2 + 1, eqx.filter(params, eqx.is_array))
        updates, state = opt.update(grads, state, params, value=1.0)
        params = eqx.apply_updates(params, updates)
    return state, params


SF = schedule_free_sgd(0.1)
NESTED: dict[str, Callable[[AbstractTransform], AbstractTransform]] = {
    "bare": lambda t: t,
    "chain": lambda t: chain(scale(1.0), t),
    "masked": lambda t: masked(t, {"a": True, "b": True}),
    "split": split_real_and_imaginary,
    "master_weights": master_weights,
    "all": lambda t: chain(scale(1.0), masked(split_real_and_imaginary(t), True)),
}


@pytest.mark.parametrize("name", NESTED)
def test_eval_params_from_any_state_that_contains_a_schedule_free_one(name):
    params = {"a": jnp.arange(3.0), "b": jnp.array([1 + 2j, 3 - 1j])}
    bare_state, bare_params = after_two_steps(SF, params)
    z = jax.tree.map(lambda y, z: (y - 0.1 * z) / 0.9, bare_params, bare_state.z)
    opt = NESTED[name](SF)
    state, params = after_two_steps(opt, params)
    for evaluated in (
        schedule_free_eval_params(state, params),
        opt.eval_params(state, params),
        schedule_free_eval_params((optax.EmptyState(), {"opt": state}), params),
    ):
        for leaf, expected in zip(
            jax.tree.leaves(evaluated), jax.tree.leaves(z), strict=True
        ):
            assert leaf.dtype == expected.dtype
            np.testing.assert_allclose(leaf, expected, rtol=1e-5)


def test_eval_params_inside_optax_chain():
    params = {"a": jnp.arange(3.0), "b": jnp.ones(2)}
    expected = SF.eval_params(*after_two_steps(SF, params))
    opt = optax.chain(optax.scale(1.0), to_optax(SF))
    evaluated = schedule_free_eval_params(*after_two_steps(opt, params))
    for name in params:
        np.testing.assert_allclose(evaluated[name], expected[name], rtol=1e-6)


def test_eval_params_of_what_a_mask_leaves_out_are_the_parameters():
    params = {"a": jnp.arange(3.0), "b": jnp.ones(2)}
    opt = masked(SF, {"a": True, "b": False})
    state, params = after_two_steps(opt, params)
    evaluated = schedule_free_eval_params(state, params)
    np.testing.assert_array_equal(evaluated["b"], params["b"])
    assert not np.allclose(evaluated["a"], params["a"])


def test_eval_params_of_a_raw_model():
    model = eqx.nn.MLP(2, 2, 4, 1, key=KEY)
    state, model = after_two_steps(SF, model)
    evaluated = schedule_free_eval_params(state, model)
    assert evaluated.activation is model.activation
    expected = SF.eval_params(state, model)
    assert eqx.tree_equal(evaluated, expected, rtol=1e-6)
    assert not eqx.tree_equal(evaluated, model, rtol=1e-3)
    assert evaluated(jnp.ones(2)).shape == (2,)


def test_eval_params_need_exactly_one_schedule_free_state():
    params = jnp.ones(3)
    with pytest.raises(ValueError, match="must contain one.*found 0.*eval_params"):
        schedule_free_eval_params(adam(0.1).init(params), params)
    two = chain(SF, scale(1.0), SF)
    with pytest.raises(ValueError, match="found 2"):
        schedule_free_eval_params(two.init(params), params)


# Complex parameters as pairs


class Pair(NamedTuple):
    real: Array
    imaginary: Array


@pytest.mark.parametrize("opt", [adam(0.1), prodigy()], ids=["adam", "prodigy"])
def test_split_of_a_real_tree_is_the_identity(opt):
    params = Pair(jnp.arange(3.0), jnp.ones(2))
    split = split_real_and_imaginary(opt)
    state, split_state = opt.init(params), split.init(params)
    assert eqx.tree_equal(split_state.inner_state, state)
    updates, state = opt.update(params, state, params)
    split_updates, split_state = split.update(params, split_state, params)
    assert eqx.tree_equal(split_updates, updates)
    assert eqx.tree_equal(split_state.inner_state, state)


def test_split_leaves_pairs_of_the_user_alone():
    params = Pair(jnp.array([1 + 2j]), jnp.ones(2))
    opt = split_real_and_imaginary(sgd(0.5, 0.9))
    state = opt.init(params)
    seen = jax.tree.leaves(
        state, is_leaf=lambda x: isinstance(x, Pair | RealAndImaginary)
    )
    (pair,) = seen
    assert isinstance(pair, Pair) and isinstance(pair.real, RealAndImaginary)
    updates, _ = opt.update(params, state, params)
    assert isinstance(updates, Pair)
    np.testing.assert_array_equal(updates.real, [-0.5 - 1j])
    np.testing.assert_array_equal(updates.imaginary, [-0.5, -0.5])


def test_split_conjugates_gradients_straight_from_jax():
    z = jnp.array([1 + 2j, -3 + 0.5j])
    target = jnp.array([0.5 - 1j, 2j])

    def loss(z):
        return jnp.sum(jnp.abs(z - target) ** 2) / 2

    grads = jax.grad(loss)(z)
    opt = split_real_and_imaginary(sgd(1.0), conjugate=True)
    updates, _ = opt.update(grads, opt.init(z), z)
    np.testing.assert_allclose(z + updates, target, rtol=1e-6)
    plain = split_real_and_imaginary(sgd(1.0))
    updates, _ = plain.update(jnp.conj(grads), plain.init(z), z)
    np.testing.assert_allclose(z + updates, target, rtol=1e-6)


def test_split_keeps_the_finite_part_beside_an_infinite_one():
    params = jnp.ones(1, jnp.complex64)
    grads = lax.complex(jnp.array([3.0]), jnp.array([jnp.inf]))
    opt = split_real_and_imaginary(scale_by_learning_rate(1.0))
    updates, _ = opt.update(grads, opt.init(params), params)
    np.testing.assert_array_equal(updates.real, [-3.0])
    np.testing.assert_array_equal(updates.imag, [-np.inf])


# Master weights

MATRIX = jnp.asarray(np.linspace(0.5, 1, 8))
SOLUTION = jnp.asarray(np.linspace(-1, 1, 8) + 0.3)


def least_squares(x: Array) -> Array:
    return jnp.sum((MATRIX * (x.astype(jnp.float32) - SOLUTION)) ** 2)


def least_squares_grads(x: Array, i: Array) -> Array:
    del i
    return (2 * MATRIX**2 * (x.astype(jnp.float32) - SOLUTION)).astype(x.dtype)


@pytest.mark.parametrize("rule", [prodigy(), dog()], ids=["prodigy", "dog"])
def test_bfloat16_trains_on_master_weights_and_not_without(rule):
    # Away from 0, where bfloat16 resolves steps of 1e-6.
    start = SOLUTION.astype(jnp.bfloat16) + jnp.ones(8, jnp.bfloat16)
    before = least_squares(start)
    alone, _ = last(descend(rule, start, least_squares_grads, 300))
    wrapped, _ = last(descend(master_weights(rule), start, least_squares_grads, 300))
    assert least_squares(alone) > 0.9 * before
    assert least_squares(wrapped) < 1e-3 * before


def test_rounding_never_accumulates_in_master_weights():
    """Steps of a thousandth of the resolution arrive, rounded once."""
    start = jnp.array([1.0, 3.0, -2.0], jnp.bfloat16)
    size = jnp.array([1e-5, 2e-5, -1e-5], jnp.bfloat16)
    opt = master_weights(scale(1.0))
    params, states = descend(opt, start, lambda x, i: size, 3000)
    moved = np.float64(start) + np.arange(1, 3001)[:, None] * np.float64(size)
    np.testing.assert_allclose(states.master, moved, rtol=1e-3)
    rounded = states.master.astype(jnp.bfloat16)
    np.testing.assert_array_equal(params, rounded)
    assert np.abs(params[-1] - start).min() > 0.025


def test_master_weights_do_not_copy_wide_leaves():
    params = {"narrow": jnp.ones(3, jnp.float16), "wide": jnp.ones(3)}
    opt = master_weights(sgd(0.1))
    state = opt.init(params)
    _, new_state = opt.update(params, state, params)
    for master in (state.master, new_state.master):
        assert master["wide"] is None
        assert master["narrow"].dtype == jnp.float32


# Metrics

DOG = {"dog/distance", "dog/step_size"}
PRODIGY = {"prodigy/distance", "prodigy/step_size"}


def of(rule: str, *quantities: str) -> set[str]:
    return {f"{rule}/{quantity}" for quantity in quantities}


METRICS: dict[str, tuple[AbstractTransform, set[str]]] = {
    "sgd": (sgd(0.1), set()),
    "dog": (dog(weight_decay=0.1), DOG),
    "prodigy": (prodigy(), PRODIGY),
    "schedule_free": (schedule_free(dog(), 1.0), DOG | {"schedule_free/weight"}),
    "dowg": (dowg(), of("dowg", "distance", "step_size")),
    "cocob": (cocob(), of("cocob", "reward")),
    "dadapt_adamw": (dadapt_adamw(), of("dadapt_adamw", "distance", "step_size")),
    "momo": (momo(), of("momo", "lower_bound", "step_size")),
    "momo_adam": (momo_adam(), of("momo_adam", "lower_bound", "step_size")),
    "mechanize": (mechanize(dog()), DOG | of("mechanize", "reward", "step_size")),
    "average": (average(dog()), DOG | of("average", "weight")),
    "sam": (sam(dog(), prodigy()), DOG | PRODIGY),
    "sam-twice": (sam(dog(), dog()), DOG | {f"adv/{name}" for name in DOG}),
    "split": (split_real_and_imaginary(dog()), DOG),
    "masked": (masked(dog(), True), DOG),
    "master_weights": (master_weights(dog()), DOG),
    "chain": (chain(dog(), prodigy()), DOG | PRODIGY),
    "twice": (chain(scale(1.0), dog(), dog()), DOG | {f"2/{name}" for name in DOG}),
    "thrice": (
        chain(masked(chain(dog(), dog()), True), dog()),
        DOG | {f"1/{name}" for name in DOG} | {f"1/1/{name}" for name in DOG},
    ),
    "schedule_free-twice": (
        schedule_free(schedule_free_sgd(), 1.0, base_at="z"),
        {"schedule_free/weight", "base/schedule_free/weight"},
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_come_through_every_wrapper(name):
    opt, expected = METRICS[name]
    params = jnp.arange(3.0)
    state, _ = after_two_steps(opt, params)
    metrics = opt.metrics(state)
    assert set(metrics) == expected
    for value in metrics.values():
        assert value.shape == () and value.dtype == jnp.float32


def test_metrics_are_the_step_sizes_that_were_taken():
    params = jnp.arange(3.0)
    state, moved = after_two_steps(dog(), params)
    updates, new_state = dog().update(jnp.ones(3), state, moved)
    np.testing.assert_allclose(
        updates, -dog().metrics(new_state)["dog/step_size"] * jnp.ones(3), rtol=1e-6
    )
    state, _ = after_two_steps(prodigy(), params)
    assert prodigy().metrics(state)["prodigy/step_size"] == state.estim_lr
    state, _ = after_two_steps(SF, params)
    np.testing.assert_allclose(SF.metrics(state)["schedule_free/weight"], 1 / 2)


@pytest.mark.parametrize(
    "opt, direction",
    [
        (dowg(), lambda g, state: g),
        (momo(), lambda g, state: state.exp_avg),
        # The third step, with the bias of second moments corrected.
        (
            momo_adam(eps=0.0),
            lambda g, state: (
                state.exp_avg / jnp.sqrt(state.exp_avg_sq / (1 - 0.999**3))
            ),
        ),
    ],
    ids=["dowg", "momo", "momo_adam"],
)
def test_the_step_size_reported_is_what_multiplied_the_direction(opt, direction):
    state, moved = after_two_steps(opt, jnp.arange(1, 4.0))
    g = jnp.array([1.0, -2.0, 3.0])
    updates, state = opt.update(g, state, moved, value=1.0)
    (name,) = [name for name in opt.metrics(state) if name.endswith("/step_size")]
    expected = -opt.metrics(state)[name] * direction(g, state)
    assert np.abs(expected).min() > 0
    np.testing.assert_allclose(updates, expected, rtol=1e-4)


def test_estimates_and_rewards_are_reported():
    params = jnp.arange(3.0)
    state, _ = after_two_steps(dadapt_adamw(), params)
    metrics = dadapt_adamw().metrics(state)
    assert metrics["dadapt_adamw/distance"] == state.estim_lr > 0
    assert metrics["dadapt_adamw/step_size"] == state.estim_lr
    state, moved = after_two_steps(cocob(), params)
    assert cocob().metrics(state)["cocob/reward"] == jnp.sum(state.reward) > 0
    for rule in (momo(lower_bound=-2.0), momo_adam(lower_bound=-2.0)):
        state, _ = after_two_steps(rule, params)
        (name,) = [x for x in rule.metrics(state) if x.endswith("/lower_bound")]
        assert rule.metrics(state)[name] == -2.0


@pytest.mark.parametrize(
    "rule, distance", [(dowg(), 3.0), (momo_adam(), 10.0)], ids=["dowg", "momo_adam"]
)
def test_steps_below_the_resolution_need_a_wide_copy(rule, distance):
    assert "contrib_wrappers.master_weights" in (type(rule).__doc__ or "")
    start = jnp.full(3, distance, jnp.bfloat16)
    stuck, _ = descend(rule, start, its_gradient, 1000)
    np.testing.assert_array_equal(stuck[-1], start)
    moved, _ = descend(master_weights(rule), start, its_gradient, 3000)
    assert np.abs(moved[-1].astype(jnp.float32)).max() < 0.1 * distance


# Hyperparameters

OUT_OF_RANGE: list[tuple[Callable[..., Any], str, float]] = [
    (Adam, "b1", 1.0),
    (Adam, "b2", -0.1),
    (Adam, "eps", -1e-8),
    (RMS, "b2", 1.0),
    (RMS, "eps", -1.0),
    (Momentum, "decay", 1.0),
    (Lion, "b1", -0.5),
    (Lion, "b2", 1.5),
    (DoG, "reps_rel", -1e-6),
    (DoG, "eps", -1e-8),
    (DoG, "init_learning_rate", 0.0),
    (dowg, "init_estim_sq_dist", 0.0),
    (dowg, "eps", -1.0),
    (cocob, "alpha", -1.0),
    (cocob, "eps", -1.0),
    (dadapt_adamw, "eps", -1.0),
    (dadapt_adamw, "estim_lr0", 0.0),
    (dadapt_adamw, "weight_decay", -0.1),
    (dadapt_adamw, "learning_rate", -1.0),
    (momo, "beta", 1.0),
    (momo, "learning_rate", -1.0),
    (momo, "weight_decay", -0.1),
    (momo_adam, "b1", 1.0),
    (momo_adam, "b2", -0.5),
    (momo_adam, "eps", -1.0),
    (momo_adam, "learning_rate", -1.0),
    (momo_adam, "weight_decay", -0.1),
    (Prodigy, "learning_rate", -1.0),
    (Prodigy, "beta3", 1.0),
    (Prodigy, "eps", -1.0),
    (Prodigy, "estim_lr0", 0.0),
    (Prodigy, "estim_lr_coef", 0.0),
    (Prodigy, "weight_decay", -0.1),
    (Prodigy, "growth_rate", 0.9),
    (add_decayed_weights, "rate", -0.1),
    (schedule_free_sgd, "b1", 1.0),
    (schedule_free_sgd, "learning_rate", -0.1),
    (schedule_free_sgd, "weight_lr_power", -1.0),
    (Adam, "b1", float("nan")),
    (DoG, "eps", float("nan")),
]


def named(case: tuple[Callable[..., Any], str, float]) -> str:
    make, name, value = case
    return f"{make.__name__}-{name}-{value}"


def make_with(make: Callable[..., Any], name: str, value: Any) -> AbstractTransform:
    return make(value) if make is add_decayed_weights else make(**{name: value})


@pytest.mark.parametrize("case", OUT_OF_RANGE, ids=named)
def test_numbers_out_of_range_are_refused_at_once(case):
    make, name, value = case
    with pytest.raises(ValueError, match=f"`{name}` must be .*; got {value}"):
        make_with(make, name, value)


@pytest.mark.parametrize("case", OUT_OF_RANGE, ids=named)
def test_arrays_out_of_range_are_refused_when_they_are_known(case):
    make, name, value = case
    params = jnp.ones(2)

    @eqx.filter_jit
    def step(value):
        opt = make_with(make, name, value)
        _, state = opt.update(params, opt.init(params), params, value=1.0)
        return opt.update(params, state, params, value=1.0)

    with pytest.raises(RuntimeError, match=f"`{name}` must be"):
        jax.block_until_ready(step(jnp.asarray(value)))


def test_dowg_is_not_left_without_a_first_guess():
    with pytest.raises(ValueError, match=r"DoWG\(init_estim_sq_dist=1e-4, eps=0\)"):
        dowg(eps=0.0)


def test_a_polyak_step_without_a_learning_rate_has_none_to_decay_by():
    for rule in (momo, momo_adam):
        with pytest.raises(ValueError, match="must then be finite"):
            rule(math.inf, weight_decay=0.1)
        rule(math.inf, weight_decay=0.0)


@pytest.mark.parametrize("rule", [momo, momo_adam])
@pytest.mark.parametrize("weight_decay", [0.1, jnp.array(0.0)])
@pytest.mark.parametrize("rate", [jnp.array(math.inf), lambda count: jnp.inf])
def test_infinite_rates_that_are_not_known_to_be_do_no_harm(rule, weight_decay, rate):
    points, states = descend(
        rule(rate, weight_decay=weight_decay), jnp.arange(3.0), its_gradient, 5
    )
    assert np.isfinite(points).all() and np.isfinite(states.step_size).all()
    assert np.abs(points[-1]).max() < 1  # To the origin, which it decays to.


@pytest.mark.parametrize("rule", [momo, momo_adam])
def test_null_steps_do_not_halve_a_learned_bound(rule):
    def rate(count):
        return jnp.where(count == 0, 0.1, 0.0)

    opt, x = rule(rate, adapt_lower_bound=True), jnp.arange(1, 4.0)
    _, state = opt.update(2 * x, opt.init(x), x, value=14.0)
    assert state.lb > 1
    _, new_state = opt.update(2 * x, state, x, value=1e-3)  # Far below the bound.
    assert new_state.lb == state.lb


def test_an_eps_of_0_as_an_array_is_a_number_of_0():
    grads, params = jnp.array([1.0, 0.0, 2.0]), jnp.arange(3.0)
    for make in (adam, cocob, dadapt_adamw, momo_adam, prodigy):

        def update(eps: Any, make: Any = make) -> Array:
            opt = make(1.0, eps=eps)
            return opt.update(grads, opt.init(params), params, value=1.0)[0]

        expected = update(0.0)
        assert expected[1] == 0 and np.abs(expected[::2]).min() > 0
        found = jax.vmap(update)(jnp.array([1.0, 0.0]))[1]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("recipe", [cocob, dog, dowg])
@pytest.mark.parametrize("rate", [-1.0, math.nan])
def test_negative_factors_are_refused(recipe, rate):
    with pytest.raises(ValueError, match=f"{recipe.__name__}: `learning_rate` must be"):
        recipe(rate)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("recipe", [dadapt_adamw, prodigy])
@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), ("0.9", 0.999)])
def test_betas_are_two_numbers(recipe, betas):
    with pytest.raises(ValueError, match="`betas` must be.* in \\[0, 1\\); got"):
        recipe(betas=betas)


@pytest.mark.usefixtures("unchecked")
def test_text_is_no_hyperparameter():
    with pytest.raises(ValueError, match="`learning_rate` must be at least 0; got '1'"):
        make: Any = dadapt_adamw
        make("1")


def test_pairs_of_decay_rates_are_checked_one_by_one():
    with pytest.raises(ValueError, match="`betas` must be in"):
        prodigy(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="`betas` must be in"):
        prodigy(betas=(-0.1, 0.999))


# Every hyperparameter, at a value that bfloat16 has too.
HYPERPARAMETERS: dict[str, tuple[Callable[..., AbstractTransform], dict[str, float]]]
HYPERPARAMETERS = {
    "sgd": (
        lambda **kw: sgd(nesterov=True, **kw),
        {"learning_rate": 0.5, "momentum": 0.75},
    ),
    "adamw": (
        adamw,
        {
            "learning_rate": 0.5,
            "b1": 0.75,
            "b2": 0.875,
            "eps": 0.125,
            "weight_decay": 0.25,
        },
    ),
    "lion": (
        lion,
        {"learning_rate": 0.5, "b1": 0.75, "b2": 0.875, "weight_decay": 0.25},
    ),
    "scale": (scale, {"factor": 0.5}),
    "dog": (
        dog,
        {
            "learning_rate": 0.5,
            "reps_rel": 0.125,
            "eps": 0.25,
            "init_learning_rate": 0.5,
            "weight_decay": 0.25,
        },
    ),
    "dog-reps_rel": (dog, {"reps_rel": 0.125}),
    "prodigy": (
        lambda b1, b2, **kw: prodigy(betas=(b1, b2), **kw),
        {
            "learning_rate": 0.5,
            "b1": 0.75,
            "b2": 0.875,
            "beta3": 0.5,
            "eps": 0.125,
            "estim_lr0": 0.125,
            "estim_lr_coef": 0.5,
            "weight_decay": 0.25,
            "growth_rate": 2.0,  # Above 1 also where the tests scale it.
        },
    ),
    "dowg": (
        dowg,
        {
            "learning_rate": 0.5,
            "init_estim_sq_dist": 0.125,
            "eps": 0.25,
            "weight_decay": 0.25,
        },
    ),
    "dadapt_adamw": (
        lambda b1, b2, **kw: dadapt_adamw(betas=(b1, b2), **kw),
        {
            "learning_rate": 0.5,
            "b1": 0.75,
            "b2": 0.875,
            "eps": 0.125,
            "estim_lr0": 0.125,
            "weight_decay": 0.25,
        },
    ),
    "cocob": (
        cocob,
        {"learning_rate": 0.5, "alpha": 4.0, "eps": 0.25, "weight_decay": 0.25},
    ),
    "momo": (
        lambda **kw: momo(adapt_lower_bound=True, **kw),
        {
            "learning_rate": 0.5,
            "beta": 0.75,
            "lower_bound": 0.125,
            "weight_decay": 0.25,
        },
    ),
    "momo_adam": (
        momo_adam,
        {
            "learning_rate": 0.5,
            "b1": 0.75,
            "b2": 0.875,
            "eps": 0.125,
            "lower_bound": 0.125,
            "weight_decay": 0.25,
        },
    ),
    "mechanize": (
        lambda **kw: mechanize(sgd(1.0), **kw),
        {"weight_decay": 0.25, "eps": 0.125, "s_init": 0.125},
    ),
    "prodigy-beta3": (
        lambda b2: prodigy(betas=(0.5, b2), estim_lr0=0.125),
        {"b2": 0.875},
    ),
    "schedule_free_sgd": (
        schedule_free_sgd,
        {
            "learning_rate": 0.5,
            "warmup_steps": 4.5,
            "b1": 0.75,
            "weight_decay": 0.25,
            "weight_lr_power": 1.5,
        },
    ),
    "schedule_free_adamw": (
        schedule_free_adamw,
        {
            "learning_rate": 0.5,
            "warmup_steps": 4.5,
            "b1": 0.75,
            "b2": 0.875,
            "eps": 0.125,
            "weight_decay": 0.25,
            "weight_lr_power": 1.5,
        },
    ),
}


def quadratic_grads(params: Any, i: Array) -> Any:
    del i
    return jax.tree.map(lambda x: 2 * x - 1, params)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_arrays_of_any_type_as_hyperparameters_are_as_numbers(name):
    """Also under jit, and without any drift of the state, which `lax.scan` refuses."""
    make, values = HYPERPARAMETERS[name]
    params = {"a": jnp.arange(3, dtype=jnp.float32), "b": jnp.ones(2, jnp.bfloat16)}
    expected, _ = descend(make(**values), params, quadratic_grads, 4)
    for typed in (jnp.float64, jnp.bfloat16):
        arrays = {k: typed(v) for k, v in values.items()}
        actual, _ = descend(make(**arrays), params, quadratic_grads, 4)
        np.testing.assert_allclose(actual["a"], expected["a"], rtol=1e-5)
        np.testing.assert_allclose(
            actual["b"].astype(jnp.float32),
            expected["b"].astype(jnp.float32),
            rtol=2**-7,
        )
        assert actual["a"].dtype == jnp.float32 and actual["b"].dtype == jnp.bfloat16


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "float64": lambda count: jnp.asarray(2.0, jnp.float64) / (count + 2),
    "bfloat16": lambda count: jnp.where(
        count < 2, jnp.ones((), jnp.bfloat16), jnp.full((), 0.5, jnp.bfloat16)
    ),
    "int32": lambda count: jnp.where(count < 2, 1, 2).astype(jnp.int32),
    "int64": lambda count: jnp.where(count < 2, 1, 2).astype(jnp.int64),
    "number": lambda count: 1,
    "module": LinearWarmup(1.0, 3),
}


@pytest.mark.one_in(7)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    "make",
    [
        *(adam, cocob, dadapt_adamw, dog, dowg, momo, momo_adam, prodigy),
        schedule_free_sgd,
        lambda lr: schedule_free(sgd(lr), lr),
        lambda lr: mechanize(sgd(lr), s_init=0.01),
        lambda lr: sam(sgd(lr), scale_by_learning_rate(0.05)),
        lambda lr: average(sgd(0.1), lambda count: jnp.minimum(1, lr(count - 1))),
    ],
    ids=[
        *("adam", "cocob", "dadapt_adamw", "dog", "dowg", "momo", "momo_adam"),
        *("prodigy", "schedule_free_sgd", "schedule_free", "mechanize", "sam"),
        "average",
    ],
)
def test_schedules_may_return_any_type(make, name):
    """Nothing drifts, and the values are those that the schedule returned."""
    with jax.numpy_dtype_promotion("standard"):
        values = [float(SCHEDULES[name](jnp.int32(k))) for k in range(4)]

    def schedule(count):
        with jax.numpy_dtype_promotion("standard"):
            return SCHEDULES[name](count)

    params = jnp.arange(3, dtype=jnp.float32)
    actual, _ = descend(make(schedule), params, quadratic_grads, 4)
    expected, _ = descend(make(rates(np.array(values))), params, quadratic_grads, 4)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_another_value_of_an_array_does_not_retrace(name):
    make, values = HYPERPARAMETERS[name]
    params = jnp.arange(3.0)
    num_traces = 0

    @eqx.filter_jit
    def step(opt, state, params):
        nonlocal num_traces
        num_traces += 1
        return opt.update(2 * params, state, params, value=1.0)

    outputs = []
    for factor in (1.0, 0.75):
        opt = make(**{k: jnp.asarray(factor * v) for k, v in values.items()})
        outputs.append(step(opt, opt.init(params), params)[0])
    assert num_traces == 1
    assert not np.array_equal(*outputs)


def final_loss(opt: AbstractTransform) -> Array:
    params, _ = descend(opt, jnp.array([1.0, 2.0, -1.0]), quadratic_grads, 6)
    return sum_of_squares(params[-1])


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_losses_are_differentiable_in_every_hyperparameter(name):
    make, values = HYPERPARAMETERS[name]

    def loss(values):
        return final_loss(make(**values))

    arrays = {k: jnp.asarray(v) for k, v in values.items()}
    derivatives = jax.jit(jax.jacfwd(loss))(arrays)
    reverse = jax.jit(jax.grad(loss))(arrays)
    step = 1e-6
    compiled = jax.jit(loss)
    for k, value in arrays.items():
        above = compiled(arrays | {k: value + step})
        below = compiled(arrays | {k: value - step})
        difference = (above - below) / (2 * step)
        np.testing.assert_allclose(derivatives[k], difference, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(reverse[k], difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_a_sweep_is_the_loop_over_its_values(name):
    make, values = HYPERPARAMETERS[name]
    factors = jnp.array([1.0, 0.9, 0.8])

    def run(factor):
        return final_loss(make(**{k: factor * v for k, v in values.items()}))

    swept = eqx.filter_jit(eqx.filter_vmap(run))(factors)
    looped = jnp.stack([run(factor) for factor in factors])
    np.testing.assert_allclose(swept, looped, rtol=1e-5)
    assert len(set(np.asarray(swept).tolist())) > 1


def test_a_sweep_over_the_field_of_an_optimiser():
    """As `eqx.filter_vmap` is used: an ensemble of optimisers, made outside."""
    opts = eqx.filter_vmap(lambda lr: adamw(lr))(jnp.array([0.1, 0.01]))
    axes = jax.tree.map(eqx.if_array(0), opts)
    swept = eqx.filter_vmap(final_loss, in_axes=(axes,))(opts)
    np.testing.assert_allclose(
        swept, [final_loss(adamw(0.1)), final_loss(adamw(0.01))], rtol=1e-5
    )


def test_normalize_is_the_gradient_over_its_norm_and_zero_at_zero():
    grads = {"a": jnp.array([3.0]), "b": jnp.array([[0.0, 4.0]])}
    opt = normalize()
    updates, _ = opt.update(grads, opt.init(grads))
    np.testing.assert_allclose(updates["a"], [0.6], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [[0.0, 0.8]], rtol=1e-6)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = opt.update(zeros, opt.init(grads))
    assert eqx.tree_equal(updates, zeros)


def test_init_learning_rate_is_not_used_again_back_at_the_start():
    opt = DoG(init_learning_rate=0.1)
    start = jnp.zeros(2)
    state = opt.init(start)
    _, state = opt.update(jnp.ones(2), state, start)
    assert opt.metrics(state)["dog/step_size"] == jnp.float32(0.1)
    _, state = opt.update(jnp.ones(2), state, start - 0.1)
    updates, state = opt.update(jnp.ones(2), state, start)
    assert not state.first_step
    expected = np.sqrt(2 * 0.1**2) / np.sqrt(3 * 2)
    np.testing.assert_allclose(updates, -expected, rtol=1e-6)
    np.testing.assert_allclose(opt.metrics(state)["dog/step_size"], expected, rtol=1e-6)


def _quadratic(params: Array, _: Any) -> Array:
    return 2 * params


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: chain(inner, scale(2.0)),
        lambda inner: schedule_free(inner, 0.1),
    ],
    ids=["scaled", "schedule_free"],
)
def test_master_weights_follow_parameters_that_something_else_moves(wrap):
    """The copy must not drift away from them: bfloat16 does what float32 does."""
    opt = wrap(master_weights(sgd(0.1)))
    start = jnp.array([1.0, 2.0, 3.0])
    wide, _ = descend(opt, start, _quadratic, 60)
    narrow, _ = descend(opt, start.astype(jnp.bfloat16), _quadratic, 60)
    gap = np.abs(np.asarray(narrow, np.float32) - np.asarray(wide)).max()
    assert gap < 0.02


def test_master_weights_start_anew_from_restored_parameters():
    opt = master_weights(sgd(0.1))
    params = jnp.ones(2, jnp.bfloat16)
    _, state = opt.update(params, opt.init(params), params)
    restored = jnp.array([5.0, -3.0], jnp.bfloat16)
    updates, _ = opt.update(jnp.zeros_like(params), state, restored)
    np.testing.assert_array_equal(np.asarray(updates, np.float32), 0)


def test_schedule_free_at_z_refuses_a_base_that_needs_the_value():
    class NeedsValue(AbstractTransform[None]):
        @property
        def needs(self):
            return frozenset({"value"})

        def start(self, params):
            return None

        def step(self, grads, state, params, extra):
            return grads, None

    needs = schedule_free(NeedsValue(), 0.1).needs
    assert needs == {"params", "iterates", "value"}
    with pytest.raises(ValueError, match='base_at="y"'):
        schedule_free(NeedsValue(), 0.1, base_at="z")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("point", ["x", "Z", "y ", None])
def test_schedule_free_knows_two_points(point):
    message = f"ScheduleFree: `base_at` must be 'y' or 'z'; got {point!r}"
    with pytest.raises(ValueError, match=message):
        schedule_free(sgd(0.1), 0.1, base_at=point)
    for recipe in (schedule_free_sgd, schedule_free_adamw):
        with pytest.raises(ValueError, match="`base_at` must be 'y' or 'z'"):
            recipe(decay_at=point)


class AnyNumbers(eqx.Module):
    """Fields without types, which would refuse schedules first."""

    learning_rate: Any = 0.1
    eps: Any = 0.1

    def __post_init__(self):
        check_nonnegative(self, "learning_rate", "eps")


def test_only_learning_rates_may_be_schedules():
    assert callable(AnyNumbers(learning_rate=_quadratic).learning_rate)
    with pytest.raises(ValueError, match="`eps` must be at least 0, and not a sched"):
        AnyNumbers(eps=_quadratic)


def test_warmup_needs_a_length():
    with pytest.raises(ValueError, match="`steps` must be above 0"):
        schedule_free_sgd(warmup_steps=-5)


# D-Adaptation in 16 bits


def test_dadapt_adamw_finds_its_distance_while_bfloat16_rounds_its_steps_off():
    start = jnp.array([1.0, 2.0, 3.0], jnp.bfloat16)
    params, _ = descend(dadapt_adamw(), start, its_gradient, 300)
    np.testing.assert_array_equal(params[:5], [start] * 5)
    assert sum_of_squares(params[-1].astype(jnp.float32)) < 1e-2


# MoMo


@pytest.mark.parametrize("rule", [momo, momo_adam])
def test_a_learned_bound_is_above_the_given_one_and_below_the_losses(rule):
    opt = rule(0.1, lower_bound=-5.0, adapt_lower_bound=True)
    params, states = descend(opt, jnp.array([1.0, 2.0, 3.0]), its_gradient, 100)
    assert np.all((states.lb >= -5) & (states.lb <= 14))
    assert len(np.unique(states.lb)) > 10
    metrics = opt.metrics(jax.tree.map(lambda x: x[-1], states))
    assert metrics[f"{rule.__name__}/lower_bound"] == states.lb[-1]


def test_the_first_momentum_of_momo_is_the_gradient_whatever_beta_is():
    params, states = descend(momo(beta=0.99), jnp.array([1.0, 2.0]), its_gradient, 1)
    np.testing.assert_array_equal(states.exp_avg[0], [2.0, 4.0])
    # f = 5, and the step takes its linearisation to 0.
    np.testing.assert_allclose(states.step_size[0], 5 / 20, rtol=1e-6)
    np.testing.assert_allclose(params[0], [0.5, 1.0], rtol=1e-6)


# COCOB


def test_cocob_is_blind_to_a_constant_learning_rate():
    start = jnp.array([1.0, -2.0, 3.0])
    plain, _ = descend(cocob(eps=0.0), start, its_gradient, 30)
    scaled, _ = descend(cocob(64.0, eps=0.0), start, its_gradient, 30)
    np.testing.assert_allclose(scaled, plain, rtol=1e-6)


def test_a_complex_coordinate_of_cocob_bets_in_the_plane():
    """In a fixed direction, it is a real one in that direction."""
    direction = np.exp(0.7j)
    real, _ = descend(cocob(), jnp.array([3.0]), its_gradient, 50)
    start = jnp.array([3.0 * direction], jnp.complex64)
    plane, states = descend(cocob(), start, its_gradient, 50)
    expected = np.asarray(real) * direction
    np.testing.assert_allclose(plane, expected, rtol=1e-4, atol=1e-5)
    assert states.reward.dtype == jnp.float32
