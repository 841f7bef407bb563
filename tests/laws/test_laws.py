"""Every transform in the zoo keeps the contract and what it claims."""

import functools as ft
import re
import typing
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from support.zoo import Entry, NAMED, REFUSED, REGROUPING, RULES, WRAPPERS, ZOO

import contrib_wrappers
from contrib_algos import dog, prodigy, sgd
from contrib_core import (
    AbstractTransform,
    add_decayed_weights,
    chain,
    Extra,
    RealLike,
    scale,
    Schedule,
    Terms,
    Tree,
    tree,
)
from contrib_core.ranges import Guess
from contrib_laws import (
    assert_lawful,
    check,
    ContractName,
    LAWS,
    Name,
    probe,
    Problem,
    Subject,
    Verdict,
)
from contrib_laws._problem import ARRAY, Case, Change


CONTRACT = typing.get_args(ContractName)
# The laws that a state with typed random keys can keep.
KEYED: list[Name] = [
    "types",
    "constant_state",
    "transformations",
    "purity",
    "finiteness",
    "composition",
]

# The terms of optax's wrappers, which declare none.
OPAQUE = {"adversary": "adv_optimizer", "opaque": "opaque_mode"}
TERMS: dict[Any, Terms] = {
    optax.contrib.schedule_free: {
        "average": {"z": "z", "weight": "weight_sum", "beta": "b1"}
    },
    optax.contrib.mechanize: {
        "scaled_sum": {"start": "x0", "scale": "s", "epsilon": "eps"}
    },
    optax.contrib.sam: {
        "period_one": {"period": "sync_period"},
        "radius_zero": OPAQUE,
        "opaque": OPAQUE,
    },
}
WITH_TERMS: list[Name] = [
    "average",
    "scaled_sum",
    "period_one",
    "radius_zero",
    "opaque",
]

# Rules get more drawn cases, besides those that are always tried.
EXAMPLES = dict.fromkeys(ZOO, 1) | dict.fromkeys(RULES, 4)

# Without `-m thorough`, only our rules are under all laws. Every second transform of
# the rest is under one law, in turn, so that twenty neighbours are under all ten.
OURS = [name for name in RULES if not name.startswith("optax_")]
SAMPLED = {
    (name, law)
    for i, name in enumerate(ZOO)
    for k, law in enumerate(CONTRACT)
    if name in OURS or 2 * k == i % (2 * len(CONTRACT))
}


def unless(is_sampled: bool) -> Any:
    return () if is_sampled else pytest.mark.thorough


@ft.lru_cache(maxsize=4)  # Programs take memory.
def subject(name: str) -> Subject:
    """A transform of the zoo, with compiled programs that all laws share."""
    # The zoo has wrappers around wrappers, so only rules are tried inside of them.
    fitting = {w: f for w, f in WRAPPERS.items() if f"{w}({name})" not in REFUSED}
    wrappers = fitting if name in RULES else {}
    return Subject(ZOO[name].transform, name=name, wrappers=wrappers)


@pytest.mark.parametrize(
    "name, law",
    [
        pytest.param(name, law, marks=unless((name, law) in SAMPLED))
        for name in ZOO
        for law in CONTRACT
    ],
)
def test_contract(name: str, law: ContractName):
    report = check(subject(name), laws=law, examples=EXAMPLES[name])
    (outcome,) = report.outcomes
    expected = Verdict.FAILS if law in ZOO[name].fails else Verdict.HOLDS
    assert outcome.verdict is expected, report


@pytest.mark.parametrize("name", REFUSED)
def test_meaningless_compositions_are_refused(name: str):
    wrapper, inner = name.removesuffix(")").split("(", 1)
    with pytest.raises(ValueError, match=REFUSED[name]):
        (WRAPPERS | REGROUPING)[wrapper](ZOO[inner].transform)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=unless(name in OURS)) for name in NAMED]
)
def test_claims(name: str):
    """Claimed laws hold, and other laws have counterexamples."""
    claimed: Any = NAMED[name].laws
    assert_lawful(subject(name), declared=claimed, laws=["algebra", "wrapper"])


@pytest.mark.parametrize(
    "recipe, laws",
    [
        (contrib_wrappers.schedule_free, {"average"}),
        (contrib_wrappers.split_real_and_imaginary, {"neutral"}),
        (contrib_wrappers.master_weights, {"neutral"}),
        (contrib_wrappers.bucketed, {"neutral"}),
        (chain, {"monoid"}),
    ],
)
def test_wrappers_keep_their_laws(recipe: Any, laws: Any):
    """Given the function, the laws can compare the wrapper with its base."""
    assert_lawful(recipe, declared=laws, laws="wrapper")


def test_the_probe_of_wrappers_is_lawful():
    assert_lawful(probe)


def test_counterexamples_are_the_smallest():
    def decaying():
        return add_decayed_weights(0.1)

    (outcome,) = check(decaying, laws="translation", declared="translation").outcomes
    # It is one step with a zero gradient, from 0 and from 1.
    for size in ("start, grads", "[0, 0], float), np.array([[0, 0]], float)"):
        assert size in outcome.counterexample
    assert re.search(r"\[(0, 1|1, 0)\], float\)", outcome.counterexample)


def test_moved_parameters_may_be_rounded_as_they_are():
    """Numbers near 0 are computed exactly; elsewhere they are rounded."""
    problem = Problem(np.zeros(2), np.ones((24, 2)), np.ones(24), curvature=0.5)
    case = Case(ARRAY, problem, Change(shift=np.array([4.0, 3.0625])))
    for rule in (prodigy(), dog(init_learning_rate=1e-6)):
        assert LAWS["translation"].fault(Subject(rule), case) is None


def test_typed_random_keys_in_a_state_break_only_checkpoints():
    noisy = chain(optax.add_noise(0.01, 0.55, jax.random.key(0)), sgd(0.1))
    report = check(noisy, laws=KEYED, examples=2)
    assert report.is_lawful, report


@pytest.mark.parametrize(
    "recipe", [optax.contrib.mechanize, optax.contrib.sam, optax.contrib.schedule_free]
)
def test_wrappers_that_name_no_terms_are_not_judged(recipe: Any):
    outcomes = check(recipe, laws=WITH_TERMS).outcomes
    assert {x.verdict for x in outcomes} == {Verdict.DOES_NOT_APPLY}
    assert all(f'terms={{"{x.law.name}": ' in x.note for x in outcomes)


@pytest.mark.parametrize("recipe", TERMS, ids=lambda recipe: recipe.__name__)
def test_callers_can_name_the_terms_of_others(recipe: Any):
    """The verdicts on optax's wrappers; SAM of period 1 never updates its start."""
    verdicts = {
        outcome.law.name: outcome.verdict is Verdict.HOLDS
        for outcome in check(recipe, terms=TERMS[recipe], laws=WITH_TERMS).outcomes
        if outcome.verdict is not Verdict.DOES_NOT_APPLY
    }
    assert verdicts == {name: name != "period_one" for name in TERMS[recipe]}


@pytest.mark.parametrize(
    "recipe, law, terms, says",
    [
        (
            optax.contrib.schedule_free,
            "average",
            {"z": "zz", "weight": "weight_sum", "beta": "b1"},
            "no single part of its state has the fields of {'z': 'zz', ",
        ),
        (
            optax.contrib.sam,
            "period_one",
            {"period": "perid"},
            "it lacks some of the parameters of {'period': 'perid'}",
        ),
    ],
)
def test_wrong_terms_are_told(recipe: Any, law: Name, terms: Any, says: str):
    (outcome,) = check(recipe, terms={law: terms}, laws=law).outcomes
    assert outcome.verdict is Verdict.DOES_NOT_APPLY
    assert outcome.note.startswith(says)


@pytest.mark.parametrize(
    "recipe, terms",
    [
        (optax.contrib.prodigy, {"distance": "estim_lr"}),
        (optax.contrib.dowg, {"squared_distance": "estim_sq_dist"}),
    ],
)
def test_callers_can_name_a_distance(recipe: Any, terms: dict[str, str]):
    """Laws and counterexamples read it; the distance of prodigy becomes NaN."""
    named = {"monotone": terms, "bounded_growth": terms}
    report = check(recipe, terms=named, laws=["monotone", "bounded_growth"])
    verdicts = {outcome.verdict for outcome in report.outcomes}
    is_prodigy = recipe is optax.contrib.prodigy
    assert verdicts == {Verdict.FAILS if is_prodigy else Verdict.HOLDS}
    for outcome in report.outcomes:
        assert ("before = state.estim_lr" in outcome.counterexample) == is_prodigy


def test_a_guess_that_cannot_be_an_array_is_not_varied():
    def careful(reps_rel: Guess = 1e-6):
        if reps_rel <= 0:
            raise ValueError
        return dog(reps_rel=reps_rel)

    (outcome,) = check(careful, laws="initial_guess").outcomes
    assert outcome.verdict is Verdict.DOES_NOT_APPLY
    assert "reps_rel cannot be an array" in outcome.note


def test_losses_that_are_nan_depend_on_the_guess():
    def broken(reps_rel: Guess = 1e-6):
        return scale(lambda _: jnp.nan * reps_rel)

    (outcome,) = check(broken, laws="initial_guess").outcomes
    assert outcome.verdict is Verdict.FAILS and "the loss is inf" in outcome.note


@pytest.mark.parametrize(
    "annotation",
    [
        Guess,
        Guess | None,
        Annotated[Guess | None, "more"],
        Guess | Schedule,
        "Guess",
        "Guess | None",
    ],
)
def test_a_marked_parameter_is_a_first_guess(annotation: Any):
    def guessing(first=0.01):
        return sgd(first)

    guessing.__annotations__["first"] = annotation
    (outcome,) = check(guessing, laws="initial_guess").outcomes
    assert outcome.verdict is Verdict.FAILS and "with first=1e-08" in outcome.note


class Guessing(AbstractTransform[None]):
    """A rule that steps by its guess; its first field is no guess."""

    scale: RealLike
    first: "Guess | None" = 0.01

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        rate = 0.01 if self.first is None else self.first
        return tree.scale(-self.scale * rate, grads), None


@pytest.mark.parametrize(
    "rule", [Guessing(1.0), Guessing(1.0, None), chain(scale(1.0), Guessing(1.0))]
)
def test_a_marked_field_is_a_first_guess(rule: AbstractTransform):
    (outcome,) = check(rule, laws="initial_guess").outcomes
    assert outcome.verdict is Verdict.FAILS and "with first=1e-08" in outcome.note


def test_the_caller_can_name_the_first_guess():
    def guessing(first: float = 0.01):
        return sgd(first)

    (named,) = check(guessing, laws="initial_guess", guess="first").outcomes
    assert named.verdict is Verdict.FAILS and "with first=1e-08" in named.note
    (nameless,) = check(guessing, laws="initial_guess").outcomes
    assert nameless.verdict is Verdict.DOES_NOT_APPLY


@pytest.mark.thorough  # It checks `precision` once more.
def test_16_bit_parameters_need_a_wide_copy_where_docstrings_say_so():
    needing = set()
    for name, entry in RULES.items():
        if "precision" not in entry.fails:
            (outcome,) = check(subject(name), laws="precision").outcomes
            words = " ".join((_doc(entry) or "").split())
            said = "master weights" in words or "master_weights" in words
            assert said or not outcome.note, name
            needing |= {name} if said else set()
    assert {"dog", "prodigy"} <= needing


def _doc(entry: Entry) -> str | None:
    return type(entry.transform).__doc__
