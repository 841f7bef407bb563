"""What a law is: a promise, the cases that try it, and what comes of trying."""

import enum
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import hypothesis
import hypothesis.errors
import hypothesis.strategies as st

from ._subject import Subject


Group: TypeAlias = Literal["contract", "algebra", "wrapper"]
"""What a law is about: every transform, its symmetries, or what a wrapper does."""


class Verdict(enum.Enum):
    """What a check found."""

    HOLDS = "holds"
    FAILS = "fails"
    DOES_NOT_APPLY = "does not apply"


@dataclass(frozen=True)
class Fault:
    """How a case breaks a law.

    **Arguments:**

    - `what`: a sentence, with the numbers.
    - `code`: the lines of a test of `transform` that fails for this reason.
    """

    what: str
    code: str = ""


class Broken(Exception):
    """Raised by a law in place of returning a [`contrib_core.laws.Fault`][]."""

    def __init__(self, what: str, code: str = ""):
        super().__init__(what)
        self.fault = Fault(what, code)


class Unsuited(Exception):
    """Raised by a law for a case that says nothing about this subject, and why."""


@dataclass(frozen=True)
class Outcome:
    """What came of checking a law.

    **Arguments:**

    - `law`: which.
    - `verdict`: whether it holds, fails, or does not apply.
    - `note`: why it does not apply, or how it fails; else empty, or a qualification.
    - `counterexample`: a test that fails, to be pasted.
    - `examples`: how many cases were tried that could have broken it.
    - `seconds`: how long that took.
    """

    law: "Law"
    verdict: Verdict
    note: str = ""
    counterexample: str = ""
    examples: int = 0
    seconds: float = 0.0


def _always(subject: Subject) -> None:
    return None


def _none(subject: Subject) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Law:
    r"""A promise about transforms, and how to try to break it.

    **Arguments:**

    - `name`: an identifier, by which rules declare it.
    - `group`: what it is about.
    - `sentence`: what it promises.
    - `formula`: the same in LaTeX.
    - `tolerance`: what counts as equal in it, and why.
    - `fault`: how a case breaks it for a subject; `None` if it does not. Whatever the
        transform raises is a fault too; `Unsuited` is raised for a case that says
        nothing.
    - `first`: cases that are always tried, from the simplest.
    - `drawn`: a strategy of further cases, which are also what a counterexample is
        looked for in that is smaller than one of `first`.
    - `excuse`: why it does not apply to a subject; `None` if it does.
    - `hooks`: of what a transform may have besides `init` and `update`, what it looks
        at; where that is missing, as of optax, it looks at the rest.
    - `share`: of the number of examples that are asked for, those that it is worth:
        cases that have to be compiled are dear.
    """

    name: str
    group: Group
    sentence: str
    formula: str
    tolerance: str
    fault: Callable[[Subject, Any], Fault | None]
    first: Callable[[Subject], Iterable[Any]] = _none
    drawn: Callable[[Subject], st.SearchStrategy[Any]] | None = None
    excuse: Callable[[Subject], str | None] = _always
    hooks: tuple[str, ...] = ()
    share: float = 1.0

    def check(
        self,
        subject: Subject,
        *,
        examples: int = 20,
        seed: int = 0,
        shrink: bool = True,
    ) -> Outcome:
        """Tries to break it: by the cases that are always tried, and as many as
        `examples` that are drawn. The same `seed` draws the same ones. Unless `shrink`,
        the counterexample is the first that is found, and not the smallest."""
        start = time.perf_counter()
        trial = _Trial(self, subject)
        try:
            if reason := self.excuse(subject):
                return Outcome(self, Verdict.DOES_NOT_APPLY, reason)
            fault = trial.search(max(1, round(self.share * examples)), seed, shrink)
        except Exception as error:  # In what it looks at before it tries a case.
            fault = _raised(error)
        verdict, note = Verdict.HOLDS, subject.notes.get(self.name, "")
        if fault is not None:
            verdict, note = Verdict.FAILS, fault.what
        elif not trial.told:
            # Nothing that was tried could have broken it.
            verdict, note = Verdict.DOES_NOT_APPLY, trial.unsuited
        code = "" if fault is None else subject.as_test(self.name, fault.code)
        seconds = time.perf_counter() - start
        return Outcome(self, verdict, note, code, trial.told, seconds)


def _raised(error: Exception) -> Fault:
    return Fault(f"{type(error).__name__}: {' '.join(str(error).split())}")


class _Trial:
    """The cases that were tried of a law, and what they told."""

    def __init__(self, law: Law, subject: Subject):
        self.law, self.subject = law, subject
        self.told = 0
        self.unsuited = "no case told anything"

    def fault(self, case: Any) -> Fault | None:
        try:
            fault = self.law.fault(self.subject, case)
        except Unsuited as reason:
            self.unsuited = str(reason)
            return None
        except Broken as broken:
            fault = broken.fault
        except Exception as error:
            fault = _raised(error)
        self.told += 1
        return fault

    def search(self, examples: int, seed: int, shrink: bool) -> Fault | None:
        """The fault of the smallest case that is found."""
        known = None
        for case in self.law.first(self.subject):
            if known := self.fault(case):
                break
        if self.law.drawn is None or (known and not shrink):
            return known
        return (
            self._drawn(self.law.drawn(self.subject), examples, seed, shrink) or known
        )

    def _drawn(
        self, cases: st.SearchStrategy[Any], examples: int, seed: int, shrink: bool
    ) -> Fault | None:
        faults: list[Fault] = []

        def broken(case: _Hidden) -> bool:
            fault = self.fault(case.case)
            if fault is not None:
                faults.append(fault)
            return fault is not None

        phases = [hypothesis.Phase.generate, hypothesis.Phase.shrink]
        settings = hypothesis.settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=phases if shrink else phases[:1],
        )
        try:
            smallest = hypothesis.find(
                _hidden(cases), broken, settings=settings, random=random.Random(seed)
            )
        except (hypothesis.errors.NoSuchExample, hypothesis.errors.Unsatisfiable):
            return None
        return self.fault(smallest.case) or faults[-1]


class _Hidden:
    """A case that hypothesis does not print, which takes seconds, and nobody reads."""

    def __init__(self, case: Any):
        self.case = case

    def __repr__(self) -> str:
        return "..."


@st.composite
def _hidden(draw: Callable[..., Any], cases: st.SearchStrategy[Any]) -> _Hidden:
    return _Hidden(draw(cases))
