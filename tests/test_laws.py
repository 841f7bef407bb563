"""The contract over every transform in the zoo, and what each of them claims."""

import functools as ft
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from zoo import Entry, NAMED, REFUSED, REGROUPING, RULES, WRAPPERS, ZOO

import contrib_wrappers
from contrib_algos import dog, prodigy, sgd
from contrib_core import add_decayed_weights, chain, scale
from contrib_core.laws import assert_lawful, check, LAWS, Problem, Subject, Verdict
from contrib_core.laws._problem import ARRAY, Case, Change


CONTRACT = [name for name, law in LAWS.items() if law.group == "contract"]

# Of others than the rules, the cases that are always tried, and one more.
EXAMPLES = dict.fromkeys(ZOO, 1) | dict.fromkeys(RULES, 4)

# Without `-m thorough`, only the rules of the packages are under all laws. Of the rest,
# every second is under one in turn, so that twenty neighbours are under all ten.
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
    """A transform of the zoo, whose compiled programs all laws use."""
    # Wrappers around wrappers are in the zoo; those around all else need not be.
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
def test_contract(name: str, law: str):
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
    """What it claims holds, and of what it does not claim there is a counterexample."""
    assert_lawful(subject(name), declared=NAMED[name].laws, laws=["algebra", "wrapper"])


@pytest.mark.parametrize(
    "recipe, laws",
    [
        (contrib_wrappers.schedule_free, {"average"}),
        (contrib_wrappers.split_real_and_imaginary, {"neutral"}),
        (contrib_wrappers.master_weights, {"neutral"}),
        (chain, {"monoid"}),
    ],
)
def test_wrappers_keep_their_laws(recipe, laws: set[str]):
    """Of what they are around, too: these need the function, and not what it makes."""
    assert_lawful(recipe, declared=laws, laws="wrapper")


def test_counterexamples_are_the_smallest():
    def decaying():
        return add_decayed_weights(0.1)

    (outcome,) = check(decaying, laws="translation", declared="translation").outcomes
    # One step without a gradient, from 0 and from 1.
    for size in ("start, grads", "[0, 0], float), np.array([[0, 0]], float)"):
        assert size in outcome.counterexample
    assert re.search(r"\[(0, 1|1, 0)\], float\)", outcome.counterexample)


def test_moved_parameters_may_be_rounded_as_they_are():
    """From 0 all that is computed is small, and exact; from elsewhere it is not."""
    problem = Problem(np.zeros(2), np.ones((24, 2)), np.ones(24), curvature=0.5)
    case = Case(ARRAY, problem, Change(shift=np.array([4.0, 3.0625])))
    for rule in (prodigy(), dog(init_learning_rate=1e-6)):
        assert LAWS["translation"].fault(Subject(rule), case) is None


def test_typed_random_keys_in_a_state_break_nothing_but_what_saves_them():
    noisy = chain(optax.add_noise(0.01, 0.55, jax.random.key(0)), sgd(0.1))
    report = check(noisy, laws=["C1", "C2", "C3", "C4", "C5", "C10"], examples=2)
    assert report.is_lawful, report


def test_wrappers_that_are_called_otherwise_are_not_judged():
    def mechanic():
        return optax.contrib.mechanize(optax.sgd(0.1))

    def sam(rho: float = 0.1, sync_period: int = 2):
        return optax.contrib.sam(optax.sgd(0.1), optax.sgd(rho), sync_period)

    names = ["mechanic", "sam_period", "sam_radius", "sam_modes"]
    for recipe in (mechanic, sam):
        outcomes = check(recipe, laws=names).outcomes
        assert {x.verdict for x in outcomes} == {Verdict.DOES_NOT_APPLY}


def test_a_guess_that_cannot_be_an_array_is_not_varied():
    def careful(reps_rel: float = 1e-6):
        if reps_rel <= 0:
            raise ValueError
        return dog(reps_rel=reps_rel)

    (outcome,) = check(careful, laws="initial_guess").outcomes
    assert outcome.verdict is Verdict.DOES_NOT_APPLY
    assert "reps_rel cannot be an array" in outcome.note


def test_losses_that_are_nan_depend_on_the_guess():
    def broken(reps_rel: float = 1e-6):
        return scale(jnp.nan * reps_rel)

    (outcome,) = check(broken, laws="initial_guess").outcomes
    assert outcome.verdict is Verdict.FAILS and "the loss is inf" in outcome.note


def test_a_first_guess_of_any_name_is_varied():
    def guessing(first: float = 0.01):
        return sgd(first)

    (named,) = check(guessing, laws="initial_guess", guess="first").outcomes
    assert named.verdict is Verdict.FAILS and "with first=1e-08" in named.note
    (nameless,) = check(guessing, laws="initial_guess").outcomes
    assert nameless.verdict is Verdict.DOES_NOT_APPLY


@pytest.mark.thorough  # It is C9 once more.
def test_16_bit_parameters_need_a_wide_copy_where_docstrings_say_so():
    needing = set()
    for name, entry in RULES.items():
        if "C9" not in entry.fails:
            (outcome,) = check(subject(name), laws="C9").outcomes
            said = "contrib_wrappers.master_weights" in (_doc(entry) or "")
            assert said or not outcome.note, name
            needing |= {name} if said else set()
    assert {"dog", "prodigy"} <= needing


def _doc(entry: Entry) -> str | None:
    return type(entry.transform).__doc__
