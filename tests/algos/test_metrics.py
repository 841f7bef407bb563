"""Metrics of rules, and how wrappers pass them on."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.descent import after_two_steps

from contrib_algos import cocob, dadapt_adamw, dog, dowg, momo, momo_adam, prodigy, sgd
from contrib_core import AbstractTransform, chain, masked, scale
from contrib_wrappers import (
    average,
    master_weights,
    mechanize,
    sam,
    schedule_free,
    schedule_free_sgd,
    split_real_and_imaginary,
)


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
    opt = schedule_free_sgd()
    state, _ = after_two_steps(opt, params)
    np.testing.assert_allclose(opt.metrics(state)["schedule_free/weight"], 1 / 2)


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
def test_the_reported_step_size_multiplied_the_direction(opt, direction):
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
