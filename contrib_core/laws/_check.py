"""Checking a transform against many laws, in one call."""

import time
from collections.abc import Callable, Iterable
from typing import Any, get_args, TypeAlias

from ._law import Group, Law, Outcome
from ._registry import LAWS
from ._report import did_you_mean, Report
from ._subject import Subject, Wrappers


Progress: TypeAlias = Callable[[Law, Outcome | None], None]
"""Called with each law before it is checked, and then with what came of it."""


def check(
    transform: Any,
    *,
    laws: str | Iterable[str] | None = None,
    declared: str | Iterable[str] | None = None,
    examples: int = 20,
    seed: int = 0,
    name: str | None = None,
    code: str = "",
    wrappers: Wrappers | None = None,
    largest_gradient: float = 1e30,
    guess: str | None = None,
    progress: Progress | None = None,
    shrink: bool = True,
) -> Report:
    """Checks a transform against laws.

    **Arguments:**

    - `transform`: anything with `init` and `update`, a function that makes such a
        thing, or a [`contrib_core.laws.Subject`][].
    - `laws`: names of laws, or of their groups "contract", "algebra" and "wrapper"; all
        by default.
    - `declared`: the name, or the names, of the laws that it must obey besides the
        contract; by default those that it declares itself.
    - `examples`: how many cases are drawn for a law, besides those that are always
        tried.
    - `seed`: the same one draws the same cases.
    - `name`, `code`, `wrappers`, `largest_gradient`, `guess`: as for
        [`contrib_core.laws.Subject`][], which if given has its own.
    - `progress`: called with each law before it is checked, and `None`, and then with
        what came of it.
    - `shrink`: whether to look for the smallest counterexample also to laws that are
        not promised.

    **Raises:** `ValueError` for the name of no law and for less than one example, and
    `TypeError` for what is no transform.
    """
    if examples < 1:
        raise ValueError(f"examples={examples}: it takes one or more.")
    start = time.perf_counter()
    selected = select(laws)
    subject = transform
    if not isinstance(subject, Subject):
        subject = Subject(
            transform,
            name=name,
            code=code,
            wrappers=wrappers,
            largest_gradient=largest_gradient,
            guess=guess,
        )
    promised = frozenset(subject.rule.laws if declared is None else _names(declared))
    traces = subject.traces
    outcomes = []
    for law in selected:
        if progress is not None:
            progress(law, None)
        small = shrink or law.group == "contract" or law.name in promised
        outcomes.append(law.check(subject, examples=examples, seed=seed, shrink=small))
        if progress is not None:
            progress(law, outcomes[-1])
    return Report(
        subject.name,
        tuple(outcomes),
        promised,
        compilations=subject.traces - traces,
        seconds=time.perf_counter() - start,
        seed=seed,
        examples=examples,
    )


def assert_lawful(
    transform: Any, declared: str | Iterable[str] | None = None, **keywords: Any
) -> None:
    """Asserts that a transform obeys the contract and the laws that it declares, and no
    other law: what a rule declares is verified in both directions.

    For a part of that, name the `laws`: `assert_lawful(t, laws="contract")`.

    **Arguments:**

    - `transform`, `declared`: as for [`contrib_core.laws.check`][].
    - `keywords`: any other argument of [`contrib_core.laws.check`][].

    **Raises:** `AssertionError`, with a counterexample to each law that fails.
    """
    settings: dict[str, Any] = {"shrink": False} | keywords
    report = check(transform, declared=declared, **settings)
    faults = []
    if report.failures:
        faults.append(f"{report.name} is not lawful: {', '.join(report.failures)}")
    if report.undeclared:
        faults.append(
            f"the declaration of {report.name} is too modest: it obeys "
            f"{', '.join(report.undeclared)} too, by {report.examples} examples"
        )
    codes = [code.rstrip() for code in report.counterexamples().values()]
    assert not faults, "\n\n\n".join([*faults, *codes])


def select(names: str | Iterable[str] | None) -> tuple[Law, ...]:
    """The laws that have these names, or are in groups that have.

    **Raises:** `ValueError` for other names, listing the known ones.
    """
    if names is None:
        return tuple(LAWS.values())
    wanted = _names(names)
    groups = get_args(Group)
    for name in sorted(wanted - {*LAWS, *groups}):
        hint = did_you_mean(name, [*LAWS, *groups])
        raise ValueError(
            f"there is no law `{name}`{hint or '.'} "
            f"Laws: {', '.join(LAWS)}. Groups: {', '.join(groups)}."
        )
    return tuple(x for x in LAWS.values() if wanted & {x.name, x.group})


def _names(names: str | Iterable[str]) -> set[str]:
    return {names} if isinstance(names, str) else set(names)
