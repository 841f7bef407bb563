"""Checking a transform against many laws, in one call."""

import time
from collections.abc import Callable, Iterable
from typing import Any, get_args, TypeAlias

from contrib_core.claims import Terms

from ._law import Law, Outcome
from ._names import Group, Selection
from ._registry import LAWS
from ._report import did_you_mean, Report
from ._subject import Subject, Wrappers


Progress: TypeAlias = Callable[[Law, Outcome | None], None]
"""Called with each law and `None` before its check, and with its outcome after it."""


def check(
    transform: Any,
    *,
    laws: Selection | None = None,
    declared: Selection | None = None,
    examples: int = 20,
    seed: int = 0,
    name: str | None = None,
    code: str = "",
    wrappers: Wrappers | None = None,
    largest_gradient: float = 1e30,
    guess: str | None = None,
    terms: Terms | None = None,
    progress: Progress | None = None,
    shrink: bool = True,
) -> Report:
    """Checks a transform against laws.

    **Arguments:**

    - `transform`: anything with `init` and `update`, a function that makes such a
        thing, or a [`contrib_laws.Subject`][].
    - `laws`: names of laws, or of the groups "contract", "algebra" and "wrapper"; all
        by default.
    - `declared`: the laws that it must obey besides the contract, by name or group; by
        default those that it declares itself.
    - `examples`: how many cases to draw for each law, besides those that are always
        tried.
    - `seed`: the same seed draws the same cases.
    - `name`, `code`, `wrappers`, `largest_gradient`, `guess`, `terms`: as for
        [`contrib_laws.Subject`][]; a given `Subject` has its own.
    - `progress`: called with each law and `None` before its check, and with its outcome
        after it.
    - `shrink`: whether to search for the smallest counterexample also to laws that are
        not promised.

    **Raises:** `ValueError` for an unknown name in `laws` or for `examples` below 1;
    `TypeError` if `transform` is none of these.
    """
    subject = transform
    if not isinstance(subject, Subject):
        subject = Subject(
            transform,
            name=name,
            code=code,
            wrappers=wrappers,
            largest_gradient=largest_gradient,
            guess=guess,
            terms=terms,
        )
    promised = subject.rule.laws if declared is None else named(declared)
    return check_all(subject, select(laws), promised, examples, seed, progress, shrink)


def check_all(
    subject: Subject,
    laws: tuple[Law, ...],
    declared: Iterable[str],
    examples: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
    shrink: bool = True,
) -> Report:
    """Checks a subject against laws: `check`, for laws that are selected already."""
    if examples < 1:
        raise ValueError(f"examples={examples}: must be 1 or more.")
    promised = frozenset(declared)
    start, traces = time.perf_counter(), subject.traces
    outcomes = []
    for law in laws:
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
    transform: Any,
    declared: Selection | None = None,
    *,
    laws: Selection | None = None,
    **keywords: Any,
) -> None:
    """Asserts that a transform obeys the contract and the laws that it declares, and no
    other law: declarations are verified in both directions.

    To assert only some laws, pass `laws`: `assert_lawful(t, laws="contract")`.

    **Arguments:**

    - `transform`, `declared`, `laws`: as for [`contrib_laws.check`][].
    - `keywords`: any other argument of [`contrib_laws.check`][].

    **Raises:** `AssertionError`, with a counterexample to each law that fails.
    """
    settings: dict[str, Any] = {"shrink": False} | keywords
    report = check(transform, laws=laws, declared=declared, **settings)
    faults = []
    if report.failures:
        faults.append(f"{report.name} is not lawful: {', '.join(report.failures)}")
    if report.undeclared:
        faults.append(
            f"the declaration of {report.name} is too modest: it also obeys "
            f"{', '.join(report.undeclared)} in {report.examples} examples"
        )
    codes = [code.rstrip() for code in report.counterexamples().values()]
    assert not faults, "\n\n\n".join([*faults, *codes])


def select(names: str | Iterable[str] | None) -> tuple[Law, ...]:
    """The laws with these names, or in groups with these names.

    **Raises:** `ValueError` for an unknown name, with a list of those that exist.
    """
    if names is None:
        return tuple(LAWS.values())
    wanted = _texts(names)
    groups = get_args(Group)
    for name in sorted(wanted - {*LAWS, *groups}):
        hint = did_you_mean(name, [*LAWS, *groups])
        raise ValueError(
            f"there is no law `{name}`{hint or '.'} "
            f"Laws: {', '.join(LAWS)}. Groups: {', '.join(groups)}."
        )
    return tuple(x for x in LAWS.values() if wanted & {x.name, x.group})


def named(declared: str | Iterable[str]) -> set[str]:
    """The names of declared laws, with groups expanded. Unknown names stay, for the
    report to refuse."""
    given = _texts(declared)
    groups = given & {*get_args(Group)}
    return given - groups | {x.name for x in LAWS.values() if x.group in groups}


def _texts(names: str | Iterable[str]) -> set[str]:
    return {names} if isinstance(names, str) else set(names)
