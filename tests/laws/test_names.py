"""The names of laws are types, and the kit names no single rule or wrapper."""

import dataclasses
import inspect
import re
import typing
from pathlib import Path

import equinox as eqx
import pytest

import contrib_algos
import contrib_laws
import contrib_wrappers
from contrib_core import AbstractState, LawName
from contrib_laws import ContractName, Group, LAWS, Name, WrapperName
from contrib_laws._terms import _TERMS


# Types


def test_types_and_laws_have_the_same_names():
    assert typing.get_args(Name) == tuple(LAWS)
    assert {law.group for law in LAWS.values()} == {*typing.get_args(Group)}


@pytest.mark.parametrize(
    "group, names", [("contract", ContractName), ("wrapper", WrapperName)]
)
def test_each_group_has_a_type(group: Group, names: typing.Any):
    members = [law.name for law in LAWS.values() if law.group == group]
    assert [*typing.get_args(names)] == members


def test_only_laws_of_rules_and_wrappers_can_be_claimed():
    claimed = {LAWS[name].group for name in typing.get_args(LawName)}
    assert claimed == {"algebra", "wrapper"}


def test_names_of_laws_are_identifiers_that_say_something():
    assert all(re.fullmatch("[a-z]{5,}(_[a-z]+)*", name) for name in LAWS)


# The kit

PACKAGES = (contrib_algos, contrib_wrappers)

# Words of English and of every theory of optimisers: the average of iterates, momentum,
# and the number ε.
WORDS = {"average", "epsilon", "momentum"}

# A hyperparameter that most optimizers require; and an argument of hypothesis.
WORDS |= {"learning_rate", "max_size"}


def public_names() -> set[str]:
    return {
        name
        for package in PACKAGES
        for name, member in vars(package).items()
        if name[0] != "_" and not inspect.ismodule(member)
    }


def fields() -> set[str]:
    """The fields of states and transforms with `_` or a digit; others are words."""
    classes = [
        member
        for package in PACKAGES
        for member in vars(package).values()
        if inspect.isclass(member) and issubclass(member, eqx.Module)
    ]
    found = {f.name for cls in classes for f in dataclasses.fields(cls)}
    assert any(issubclass(cls, AbstractState) for cls in classes)
    return {name for name in found if re.search(r"_|\d", name)}


def spellings(name: str) -> str:
    """A pattern for a name in prose too: `schedule_free` is "schedule-free" there."""
    words = "[-_ ]?".join(map(re.escape, name.split("_")))
    return rf"\b{words}\b"


PATTERN = re.compile(
    "|".join(
        [
            *(f"(?i:{spellings(name)})" for name in sorted(public_names() - WORDS)),
            *(rf"\b{name}\b" for name in sorted(fields() - WORDS)),
        ]
    )
)


def named_in(source: str) -> set[str]:
    """The names that a source contains outside the examples of the command line."""
    source = re.sub(r'(?s)_EPILOG = """.*?"""', "", source)
    return {x for x in PATTERN.findall(source) if x.lower() not in WORDS}


SOURCES = sorted(Path(contrib_laws.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_kit_names_no_rule_and_no_wrapper(path: Path):
    source = path.read_text()
    assert not named_in(source)
    assert not re.search("import (contrib_algos|contrib_wrappers)", source)


@pytest.mark.parametrize(
    "source",
    [
        'if name == "sync_period":',
        "state.weight_sum",
        "from contrib_algos import sgd",
        "x = contrib_algos.DoG()",
        '"Schedule-free: the parameters are an interpolation."',
        "progress only with a wide copy, as in `master_weights`",
        "# As in Prodigy, this may leap.",
    ],
)
def test_names_of_rules_and_wrappers_are_found(source: str):
    assert named_in(source)


@pytest.mark.parametrize(
    "source",
    [
        "the average of the iterates",
        'values = {"learning_rate": "0.1"}',
        '_EPILOG = """\npython -m contrib_laws contrib_algos:prodigy"""',
        "the same sample",
    ],
)
def test_words_are_allowed(source: str):
    assert not named_in(source)


# Terms


def declared_terms() -> list[tuple[type, str, str, str]]:
    return [
        (cls, law, term, field)
        for package in PACKAGES
        for cls in vars(package).values()
        if inspect.isclass(cls) and issubclass(cls, eqx.Module)
        for law, terms in getattr(cls, "terms", {}).items()
        for term, field in terms.items()
    ]


def test_declared_terms_are_fields_and_belong_to_laws():
    found = declared_terms()
    assert {law for _, law, _, _ in found} == {*_TERMS} - {
        "monotone",
        "bounded_growth",
    } | {"period_one", "radius_zero", "opaque"}
    for cls, law, _, field in found:
        assert law in LAWS
        assert field in {f.name for f in dataclasses.fields(cls)}, cls
