"""The contract over every transform in the zoo, and what each of them claims."""

import functools as ft

import pytest
from zoo import Entry, GENERATED, NAMED, RULES, WRAPPERS, ZOO

import contrib_wrappers
from contrib_algos import sgd
from contrib_core import chain
from contrib_core.laws import assert_lawful, check, LAWS, Subject, Verdict


CONTRACT = [name for name, law in LAWS.items() if law.group == "contract"]

# Of transforms that are generated, the cases that are always tried, and one more.
EXAMPLES = dict.fromkeys(GENERATED, 1) | dict.fromkeys(NAMED, 6)


@ft.lru_cache(maxsize=4)  # Programs take memory.
def subject(name: str) -> Subject:
    """A transform of the zoo, whose compiled programs all laws use."""
    # Wrappers around wrappers are in the zoo; those around these need not be.
    wrappers = WRAPPERS if name in NAMED else {}
    return Subject(ZOO[name].transform, name=name, wrappers=wrappers)


@pytest.mark.parametrize("law", CONTRACT)
@pytest.mark.parametrize("name", ZOO)
def test_contract(name: str, law: str):
    report = check(subject(name), laws=law, examples=EXAMPLES[name])
    (outcome,) = report.outcomes
    expected = Verdict.FAILS if law in ZOO[name].fails else Verdict.HOLDS
    assert outcome.verdict is expected, report


@pytest.mark.parametrize("name", NAMED)
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


def test_a_first_guess_of_any_name_is_varied():
    def guessing(first: float = 0.01):
        return sgd(first)

    (named,) = check(guessing, laws="initial_guess", guess="first").outcomes
    assert named.verdict is Verdict.FAILS and "with first=1e-08" in named.note
    (nameless,) = check(guessing, laws="initial_guess").outcomes
    assert nameless.verdict is Verdict.DOES_NOT_APPLY


def test_16_bit_parameters_need_a_wide_copy_where_docstrings_say_so():
    needing = set()
    for name, entry in RULES.items():
        if "C9" not in entry.fails:
            (outcome,) = check(subject(name), laws="C9").outcomes
            said = "contrib_wrappers.master_weights" in (_doc(entry) or "")
            assert bool(outcome.note) == said, name
            needing |= {name} if said else set()
    assert {"dog", "prodigy"} <= needing


def _doc(entry: Entry) -> str | None:
    return type(entry.transform).__doc__
