"""The optimizer that wrappers are tried around, the problems, and the comparison."""

from typing import Any

import hypothesis.strategies as st
import numpy as np

from contrib_core import AbstractState, AbstractTransform, Extra, P, Tree, tree
from contrib_core.claims import ISOMETRIES, Laws, Needs

from .._law import Fault
from .._problem import ARRAY, Case, MIXED, Problem, problems
from .._rounding import rounding
from .._run import Run, run
from .._subject import Subject
from .._write import difference_code, numbers


ROUNDING = "2⁸ T u (κ + 1) of the largest update, as for the symmetries"


def cases(subject: Subject) -> st.SearchStrategy[Case]:
    """Problems of one array, and of several leaves."""
    layouts = (ARRAY, MIXED)
    return st.one_of([st.builds(Case, st.just(x), problems(x.size)) for x in layouts])


def small_cases(subject: Subject) -> st.SearchStrategy[Case]:
    """Problems of one array."""
    return st.builds(Case, st.just(ARRAY), problems(ARRAY.size))


class ProbeState(AbstractState):
    """State of the probe."""

    momentum: P


class Probe(AbstractTransform[ProbeState]):
    """Decay and momentum: a wrapper must show it the parameters and keep its state."""

    @property
    def needs(self) -> Needs:
        """The parameters, because they decay."""
        return frozenset({"params"})

    @property
    def laws(self) -> Laws:
        """The symmetries of decay and momentum, which some wrappers require."""
        return ISOMETRIES - {"translation"}

    def start(self, params: Tree) -> ProbeState:
        return ProbeState(tree.accumulator_like(params))

    def step(
        self, grads: Tree, state: ProbeState, params: Tree, extra: Extra
    ) -> tuple[Tree, ProbeState]:
        decayed = tree.axpy(0.01, params, tree.widen(grads))
        momentum = tree.axpy(0.9, state.momentum, decayed)
        return tree.scale(-0.1, momentum), ProbeState(momentum)


probe = Probe()
"""The optimizer that wrappers are tried around: decay by 0.01 and momentum of 0.9, with
a learning rate of 0.1. Counterexamples import it."""

PROBE_CODE = "contrib_laws.probe"


def around_probe(subject: Subject, **more: Any) -> Any:
    """The wrapper around the probe."""
    first = next(iter(subject.parameters))
    return subject.make(**{first: probe}, **more)


def around_probe_code(subject: Subject, **more: str) -> str:
    """The call of `around_probe`, as code; keywords are code too."""
    first = next(iter(subject.parameters))
    return subject.make_code(**{first: PROBE_CODE}, **more)


def difference(
    subject: Subject,
    other: Subject,
    case: Case,
    how: str,
    codes: tuple[str, str],
    before: str = "",
) -> Fault | None:
    """The first update that differs from the update of another transform.

    **Arguments:**

    - `how`: the name of the other transform in a sentence.
    - `codes`: both transforms, as code.
    - `before`: lines of code that come before.
    """
    wanted, jittered = run(other, case.layout, case.problem)
    found, _ = run(subject, case.layout, case.problem)
    allowed = rounding(wanted, jittered)
    error = np.max(np.abs(found.updates - wanted.updates), axis=1)
    # Not `error > allowed`, which is false for NaN.
    wrong = np.flatnonzero(~(error <= allowed))
    if not len(wrong):
        return None
    t = int(wrong[0])
    a, b = found.updates[t], wanted.updates[t]
    return Fault(
        f"update {t} is {numbers(a, b)}, but the update of {how} is {numbers(b, a)}",
        before + difference_code(subject, case, codes, t, float(allowed[t])),
    )


def magnitude(problem: Problem, found: Run, *others: np.ndarray) -> float:
    """The largest number among the parameters and `others`, which bounds rounding."""
    return max(np.max(np.abs(x)) for x in (problem.start, found.points, *others))
