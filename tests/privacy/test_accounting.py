"""Epsilon of private training, and noise that is calibrated to it."""

import math
from typing import Any

import jax.numpy as jnp
import pytest

from contrib_algos import calibrate_noise, epsilon


@pytest.mark.parametrize(
    "arguments, expected",
    [
        # The Gaussian mechanism without sampling: see `gaussian_delta`.
        ((1, 1.0, 4.0, 1e-5), 0.926342),
        ((100, 1.0, 4.0, 1e-5), 13.20671),
        ((2250, 0.04, 1.5, 1e-5), 6.7688),
    ],
)
def test_epsilon_is_that_of_the_formula(
    arguments: tuple[int, float, float, float], expected: float
):
    steps, sampling_prob, noise, delta = arguments
    found = epsilon(
        steps=jnp.asarray(steps),
        sampling_prob=sampling_prob,
        noise_multiplier=jnp.asarray(noise),
        delta=delta,
    )
    assert found == pytest.approx(expected, rel=1e-5)


def gaussian_delta(eps: float, noise: float, steps: int) -> float:
    """Delta of `steps` steps, by theorem 8 of Balle and Wang, arXiv 1805.06530."""
    mu = math.sqrt(steps) / noise

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return normal(mu / 2 - eps / mu) - math.exp(eps) * normal(-mu / 2 - eps / mu)


@pytest.mark.parametrize("steps, eps", [(1, 0.926342), (100, 13.20671)])
def test_references_are_those_of_the_formula(steps: int, eps: float):
    assert gaussian_delta(eps, 4.0, steps) == pytest.approx(1e-5, rel=1e-4)


def test_epsilon_by_renyi_divergences():
    found = epsilon(
        steps=2250,
        sampling_prob=0.04,
        noise_multiplier=1.5,
        delta=1e-5,
        accountant="rdp",
    )
    assert found == pytest.approx(7.3293, abs=5e-5)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_calibrated_noise_is_the_least_that_keeps_the_promise(accountant: Any):
    arguments: Any = {"steps": 512, "sampling_prob": 0.1, "delta": 1e-6}
    noise = calibrate_noise(epsilon=1.0, accountant=accountant, **arguments)
    if accountant == "pld":
        assert noise == pytest.approx(9.662, abs=5e-4)
    for factor, is_kept in ((1.0, True), (1 - 1e-4, False)):
        found = epsilon(
            noise_multiplier=factor * noise, accountant=accountant, **arguments
        )
        assert (found <= 1.0) is is_kept


@pytest.mark.parametrize(
    "target, delta",
    [
        (0.05, 1e-6),
        pytest.param(1.0, 0.5, marks=pytest.mark.thorough),
        pytest.param(8.0, 1e-5, marks=pytest.mark.thorough),
    ],
)
def test_calibration_of_much_and_little_noise(target: float, delta: float):
    arguments: Any = {"steps": 100, "sampling_prob": 0.1, "delta": delta}
    noise = calibrate_noise(epsilon=target, **arguments)
    assert 0.999 * target < epsilon(noise_multiplier=noise, **arguments) <= target


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": 1, "sampling_prob": 1e-3, "epsilon": 1.0, "delta": 0.01},
        {"steps": 1, "sampling_prob": 1.0, "epsilon": 1000.0, "delta": 1e-5},
        {
            "steps": 5,
            "sampling_prob": 0.1,
            "epsilon": 20000.0,
            "delta": 1e-5,
            "accountant": "rdp",
        },
    ],
)
def test_calibrated_noise_is_at_least_a_tenth(arguments: Any):
    assert calibrate_noise(**arguments) == 0.1


def test_distributions_of_little_noise_are_not_computed():
    common: Any = {"steps": 100, "sampling_prob": 0.1, "delta": 1e-5}
    little = epsilon(noise_multiplier=0.05, **common)
    assert little == epsilon(noise_multiplier=0.05, accountant="rdp", **common)
    assert little > 1000


def test_no_steps_cost_nothing_and_no_noise_costs_everything():
    common: Any = {"sampling_prob": 0.1, "delta": 1e-5}
    assert epsilon(steps=0, noise_multiplier=1.0, **common) == 0
    assert epsilon(steps=0, noise_multiplier=0.0, **common) == 0
    assert epsilon(steps=5, noise_multiplier=0.0, **common) == math.inf
    assert epsilon(steps=5, noise_multiplier=1.0, sampling_prob=0.0, delta=1e-5) == 0
    assert calibrate_noise(steps=0, epsilon=1.0, **common) == 0


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", -1),
        ("steps", 1.5),
        ("sampling_prob", 1.1),
        ("sampling_prob", math.nan),
        ("delta", 0.0),
        ("delta", 1.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.nan),
        ("epsilon", 0.0),
        ("epsilon", math.inf),
        ("accountant", "moments"),
    ],
)
def test_accounting_refuses_numbers_out_of_range(
    name: str, value: Any, unchecked: None
):
    arguments: Any = {"steps": 3, "sampling_prob": 0.1, "delta": 1e-5, name: value}
    if name != "epsilon":
        with pytest.raises(ValueError, match=f"epsilon: `{name}`"):
            epsilon(**{"noise_multiplier": 1.0} | arguments)
    if name != "noise_multiplier":
        with pytest.raises(ValueError, match=f"calibrate_noise: `{name}`"):
            calibrate_noise(**{"epsilon": 1.0} | arguments)


def test_accounting_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"contrib-algebra\[dp\]"):
        epsilon(steps=3, sampling_prob=0.1, noise_multiplier=1.0, delta=1e-5)
