"""Every law catches its mutants, with code that shows the mistake, and nothing else."""

import re
from collections.abc import Callable
from typing import Any

import jax
import pytest
from support import mutants_algebra, mutants_contract, mutants_wrappers
from support.mutants_laws import check, LAWFUL, Mutant, MUTANTS

from contrib_laws import LAWS, Verdict


# Importing them registers the mutants.
MODULES = (mutants_algebra, mutants_contract, mutants_wrappers)

# For the first mutant of each law, the code also runs on lawful recipes, where it must
# not fail. Without `-m thorough`, only these mutants are checked.
FIRST = {m.law: m for m in reversed(MUTANTS)}


def _name(mutant: Mutant) -> str:
    return f"{mutant.law}-{mutant.name}"


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(m, marks=() if m is FIRST[m.law] else pytest.mark.thorough)
        for m in MUTANTS
    ],
    ids=_name,
)
def test_mutant_is_killed(mutant: Mutant):
    # Searching for the smallest counterexample takes time and shows no more.
    outcome = check(mutant.law, mutant.recipe, shrink=False)
    assert outcome.verdict is Verdict.FAILS, outcome.note
    assert bool(outcome.counterexample) == mutant.coded, outcome.note
    if not mutant.coded:
        return
    error = failure(mutant.law, outcome.counterexample)
    # XLA itself refuses to donate a buffer twice.
    expected = isinstance(error, AssertionError | jax.errors.JaxRuntimeError)
    assert expected or type(error).__name__ in outcome.note, (error, outcome.note)
    if mutant is FIRST[mutant.law]:
        passed = [
            failure(mutant.law, of_another(outcome.counterexample, mutant, recipe))
            for recipe in LAWFUL[mutant.law]
        ]
        assert None in passed, passed


def failure(law: str, code: str) -> Exception | None:
    """The error that a counterexample raises as it is; `None` if it passes."""
    names: dict[str, Any] = {}
    try:
        exec(code, names)
        names[f"test_{law}"]()
    except Exception as error:
        return error
    return None


def of_another(code: str, mutant: Mutant, recipe: Callable[..., Any]) -> str:
    """A counterexample with a lawful recipe in place of the mutant."""
    broken, lawful = (
        f"from {r.__module__} import {r.__name__}" for r in (mutant.recipe, recipe)
    )
    return re.sub(rf"{broken}\b", f"{lawful} as {mutant.name}", code)


# Sorted by recipe, so that its programs are compiled once.
PAIRS = sorted(
    ((recipe, law) for law, recipes in LAWFUL.items() for recipe in recipes),
    key=lambda pair: pair[0].__name__,
)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("recipe", "law"), PAIRS, ids=[f"{law}-{r.__name__}" for r, law in PAIRS]
)
def test_no_false_alarm(recipe: Callable[..., Any], law: str):
    outcome = check(law, recipe)
    assert outcome.verdict is Verdict.HOLDS, outcome.note


def test_every_law_has_mutants():
    """Every law has two mutants or more, and a lawful recipe."""
    killers = [mutant.law for mutant in MUTANTS]
    assert set(killers) == set(LAWFUL) == set(LAWS)
    assert not [law for law in LAWS if killers.count(law) < 2]


def test_mutants_have_names_of_their_own():
    recipes = {m.name: m.recipe for m in MUTANTS}
    for mutant in MUTANTS:
        assert recipes[mutant.name] is mutant.recipe
        assert any(mutant.recipe is vars(m).get(mutant.name) for m in MODULES)
