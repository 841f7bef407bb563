"""A law: a promise, the cases that try to break it, and the outcome."""

import enum
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import hypothesis
import hypothesis.errors
import hypothesis.strategies as st

from ._names import Group
from ._subject import Subject


class Verdict(enum.Enum):
    """The result of checking a law."""

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
    """Raised by a law instead of returning a [`contrib_laws.Fault`][]."""

    def __init__(self, what: str, code: str = ""):
        super().__init__(what)
        self.fault = Fault(what, code)


class Unsuited(Exception):
    """Raised by a law, with a reason, for a case that says nothing about a subject."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of checking a law.

    **Arguments:**

    - `law`: the law.
    - `verdict`: whether it holds, fails, or does not apply.
    - `note`: why it does not apply or how it fails; if it holds, a qualification or
        nothing.
    - `counterexample`: a test that fails, ready to paste.
    - `examples`: how many cases were tried that could have broken it.
    - `seconds`: how long the check took.
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

    - `name`: an identifier; rules declare the law by it.
    - `group`: what the law is about.
    - `sentence`: the promise.
    - `formula`: the promise in LaTeX.
    - `tolerance`: which differences still count as equal, and why.
    - `fault`: a function that returns how a case breaks the law for a subject, or
        `None` if it does not. Any exception of the transform counts as a fault too.
        Raise [`contrib_laws.Unsuited`][] for a case that says nothing.
    - `first`: cases that are always tried, the simplest first.
    - `drawn`: a strategy for further cases. If a case of `first` breaks the law, the
        search for a smaller counterexample draws from this strategy.
    - `excuse`: a function that returns why the law does not apply to a subject, or
        `None` if it applies.
    - `hooks`: the hooks that the law checks besides `init` and `update`. For a
        transform without these hooks, such as optax's, it checks everything else.
    - `share`: the share of the requested examples that is drawn. It is small for cases
        that must be compiled, because they are expensive.
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
        """Tries to break the law.

        **Arguments:**

        - `subject`: the transform under test.
        - `examples`: how many cases to draw, besides those that are always tried.
        - `seed`: the same seed draws the same cases.
        - `shrink`: whether to search for the smallest counterexample; otherwise the
            first one is returned.
        """
        start = time.perf_counter()
        trial = _Trial(self, subject)
        try:
            if reason := self.excuse(subject):
                return Outcome(self, Verdict.DOES_NOT_APPLY, reason)
            fault = trial.search(max(1, round(self.share * examples)), seed, shrink)
        except Exception as error:  # Raised before any case was tried.
            fault = _raised(error)
        verdict, note = Verdict.HOLDS, subject.notes.get(self.name, "")
        if fault is not None:
            verdict, note = Verdict.FAILS, fault.what
        elif not trial.told:
            # No case that was tried could have broken it.
            verdict, note = Verdict.DOES_NOT_APPLY, trial.unsuited
        code = "" if fault is None else subject.as_test(self.name, fault.code)
        seconds = time.perf_counter() - start
        return Outcome(self, verdict, note, code, trial.told, seconds)


def _raised(error: Exception) -> Fault:
    return Fault(f"{type(error).__name__}: {' '.join(str(error).split())}")


class _Trial:
    """The cases of a law that were tried, and their results."""

    def __init__(self, law: Law, subject: Subject):
        self.law, self.subject = law, subject
        self.told = 0
        self.unsuited = "no case could have broken it"

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
    """A case that hypothesis does not print: printing takes seconds, and nobody reads
    it."""

    def __init__(self, case: Any):
        self.case = case

    def __repr__(self) -> str:
        return "..."


@st.composite
def _hidden(draw: Callable[..., Any], cases: st.SearchStrategy[Any]) -> _Hidden:
    return _Hidden(draw(cases))
