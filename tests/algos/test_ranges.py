"""Hyperparameters outside of their ranges are refused."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.descent import twice

from contrib_algos import (
    Adam,
    adam,
    adamw,
    cocob,
    dadapt_adamw,
    DoG,
    dog,
    dowg,
    LinearWarmup,
    Lion,
    lion,
    Momentum,
    momo,
    momo_adam,
    Prodigy,
    prodigy,
    RMS,
    sgd,
)
from contrib_core import (
    AbstractTransform,
    add_decayed_weights,
    scale,
    scale_by_learning_rate,
)
from contrib_core.ranges import enforce_ranges, Fraction, NonNegative, Rate
from contrib_core.typing import Schedule
from contrib_wrappers import mechanize, PolynomialDecay, sam, schedule_free_sgd


# Hyperparameters

OUT_OF_RANGE: list[tuple[Callable[..., Any], str, float]] = [
    (Adam, "b1", 1.0),
    (Adam, "b2", -0.1),
    (Adam, "eps", -1e-8),
    (RMS, "b2", 1.0),
    (RMS, "eps", -1.0),
    (Momentum, "momentum", 1.0),
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
    (add_decayed_weights, "weight_decay", -0.1),
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


@pytest.mark.parametrize("recipe", [cocob, dog, dowg])
@pytest.mark.parametrize("rate", [-1.0, math.nan])
def test_negative_factors_are_refused(recipe, rate):
    with pytest.raises(ValueError, match="`learning_rate` must be at least 0"):
        recipe(rate)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("recipe", [dadapt_adamw, prodigy])
@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), ("0.9", 0.999)])
def test_betas_are_two_numbers(recipe, betas):
    with pytest.raises(ValueError, match="`betas` must be.* in \\[0, 1\\); got"):
        recipe(betas=betas)


@pytest.mark.usefixtures("unchecked")
def test_text_is_refused_as_a_hyperparameter():
    with pytest.raises(ValueError, match="`learning_rate` must be at least 0; got '1'"):
        make: Any = dadapt_adamw
        make("1")


def test_pairs_of_decay_rates_are_checked_one_by_one():
    with pytest.raises(ValueError, match="`betas` must be in"):
        prodigy(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="`betas` must be in"):
        prodigy(betas=(-0.1, 0.999))


class Numbers(eqx.Module):
    """A field that may be a schedule, under another name, and one that may not."""

    rate: Rate = 0.1
    eps: NonNegative = 0.1

    def __check_init__(self):
        enforce_ranges(self)


@pytest.mark.usefixtures("unchecked")
def test_a_field_may_be_a_schedule_if_its_range_says_so():
    untyped: Any = Numbers
    assert Numbers(rate=twice).rate is twice
    with pytest.raises(ValueError, match="`eps` must be at least 0, and not a sched"):
        untyped(eps=twice)
    with pytest.raises(ValueError, match="`rate` must be at least 0; got <class"):
        untyped(rate=Numbers)  # A class, and no schedule.


class Postponed(eqx.Module):
    """An annotation as text, as `from __future__ import annotations` makes it."""

    eps: "NonNegative" = 0.1

    def __check_init__(self):
        enforce_ranges(self)


@pytest.mark.usefixtures("unchecked")
def test_annotations_may_be_text():
    assert Postponed(0.2).eps == 0.2
    with pytest.raises(ValueError, match="Postponed: `eps` must be at least 0; got -1"):
        Postponed(-1)


class Shapes(eqx.Module):
    """Ranges inside of unions and tuples."""

    union: Fraction | Literal["auto"] = 0.5
    schedule: Fraction | Schedule = 0.5
    optional: Fraction | None = None
    many: tuple[Fraction, ...] = ()
    three: tuple[Fraction, Fraction, Fraction] = (0.1, 0.2, 0.3)
    empty: tuple[()] = ()

    def __check_init__(self):
        enforce_ranges(self)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "name, right, wrong",
    [
        ("union", ["auto", 0.1], ["automatic", 7.0, None]),
        ("schedule", [twice, 0.1], [7.0, None]),
        ("optional", [None, 0.1], [7.0, "0.1", twice]),
        ("many", [(), (0.1,), (0.1, 0.2, 0.3)], [(0.1, 7.0), 0.1]),
        ("three", [(0.1, 0.2, 0.3), [0.1, 0.2, 0.3]], [(0.1, 0.2), (0.1, 0.2, 7.0)]),
    ],
)
def test_ranges_hold_inside_of_unions_and_tuples(name, right, wrong):
    for value in right:
        Shapes(**{name: value})
    for value in wrong:
        with pytest.raises(ValueError, match=f"Shapes: `{name}` must be .*; got "):
            Shapes(**{name: value})


def test_numbers_of_numpy_are_checked_at_once_and_stay_numbers():
    with pytest.raises(ValueError, match="`learning_rate` must be at least 0; got"):
        prodigy(np.float64(-1))
    params = jnp.ones(2)
    assert type(dog(np.float64(1)).init(params)) is type(dog().init(params))


def test_one_check_of_a_traced_learning_rate_is_compiled():
    def checks(make: Callable[..., Any]) -> int:
        jaxpr = jax.make_jaxpr(lambda rate: make(rate).init(jnp.ones(2)))(0.1)
        return str(jaxpr).count("pure_callback[")

    assert checks(adam) == checks(dog) == checks(prodigy) > 0


def test_a_range_reads_as_words():
    annotation = inspect.signature(prodigy).parameters["eps"].annotation
    assert repr(annotation.__metadata__[0]) == "at least 0"


EVERY_RULE: dict[str, tuple[Callable[..., Any], str]] = {
    **{
        f"{make.__name__}({name})": (
            lambda x, make=make, name=name: make(**{name: x}),
            name,
        )
        for make in (adam, adamw, lion, sgd)
        for name in ("learning_rate",)
    },
    **{
        f"{make.__name__}({name})": (
            lambda x, make=make, name=name: make(**{"learning_rate": 0.1, name: x}),
            name,
        )
        for make, names in {
            adam: ["b1", "b2", "eps"],
            adamw: ["b1", "weight_decay"],
            lion: ["b2", "weight_decay"],
            cocob: ["learning_rate", "alpha", "eps"],
            dadapt_adamw: ["learning_rate", "eps", "estim_lr0", "weight_decay"],
            dog: ["learning_rate", "reps_rel", "eps", "weight_decay"],
            dowg: ["learning_rate", "eps", "weight_decay"],
            momo: ["learning_rate", "beta", "lower_bound", "weight_decay"],
            momo_adam: ["learning_rate", "b1", "eps", "lower_bound"],
            prodigy: ["learning_rate", "eps", "estim_lr0", "growth_rate"],
            schedule_free_sgd: ["learning_rate", "b1", "weight_lr_power"],
        }.items()
        for name in names
    },
    "sgd(momentum)": (lambda x: sgd(0.1, x), "momentum"),
    "scale": (scale, "factor"),
    "scale_by_learning_rate": (scale_by_learning_rate, "learning_rate"),
    "mechanize(s_init)": (lambda x: mechanize(sgd(1.0), s_init=x), "s_init"),
    "sam(eta)": (lambda x: sam(sgd(0.1), sgd(0.1), eta=x), "eta"),
    "LinearWarmup": (lambda x: LinearWarmup(0.1, x), "steps"),
    "PolynomialDecay": (PolynomialDecay, "gamma"),
}

# `None` is no momentum, and no decay.
MAY_BE_NONE = {
    "sgd(momentum)",
    *(f"{rule}(weight_decay)" for rule in ("adamw", "lion", "dog", "dowg")),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", [math.nan, "0.1", 1j, None, np.ones(2)], ids=repr)
@pytest.mark.parametrize("rule", EVERY_RULE)
def test_rules_refuse_values_that_are_not_numbers(rule: str, value: Any):
    make, name = EVERY_RULE[rule]
    if value is None and rule in MAY_BE_NONE:
        return make(None) and None
    with pytest.raises(ValueError, match=f": `{name}` must be "):
        make(value)


def test_warmup_needs_a_length():
    with pytest.raises(ValueError, match="`steps` must be above 0"):
        schedule_free_sgd(warmup_steps=-5)
