"""What wrappers are tried around, and on what."""

from typing import Any

import hypothesis.strategies as st
import numpy as np

from .. import tree
from .._state import AbstractState, Extra
from .._transform import AbstractTransform
from .._types import P, Tree
from ._law import Fault
from ._problem import ARRAY, Case, MIXED, Problem, problems
from ._run import rounding, Run, run
from ._subject import Subject
from ._write import difference_code, numbers


ROUNDING = "2⁸ T u (κ + 1) of the largest update, as for the symmetries"


def cases(subject: Subject) -> st.SearchStrategy[Case]:
    """Problems of one array, and of several leaves."""
    layouts = (ARRAY, MIXED)
    return st.one_of([st.builds(Case, st.just(x), problems(x.size)) for x in layouts])


def small_cases(subject: Subject) -> st.SearchStrategy[Case]:
    """Problems of one array."""
    return st.builds(Case, st.just(ARRAY), problems(ARRAY.size))


class ProbeState(AbstractState[P]):
    """State of the probe."""

    momentum: P


class Probe(AbstractTransform[ProbeState[Tree]]):
    """What wrappers are tried around: decay and momentum, so that they must show it the
    parameters and keep its state."""

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, which decay."""
        return frozenset({"params"})

    def start(self, params: Tree) -> ProbeState[Tree]:
        return ProbeState(tree.accumulator_like(params))

    def step(
        self, grads: Tree, state: ProbeState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, ProbeState[Tree]]:
        decayed = tree.axpy(0.01, params, tree.widen(grads))
        momentum = tree.axpy(0.9, state.momentum, decayed)
        return tree.scale(-0.1, momentum), ProbeState(momentum)


PROBE = Probe()
PROBE_CODE = """\
probe = contrib_core.chain(
    contrib_core.add_decayed_weights(0.01), contrib_algos.sgd(0.1, momentum=0.9)
)
"""


def around_probe(subject: Subject, **more: Any) -> Any:
    """The wrapper around the probe; other optimisers are the base."""
    first = next(iter(subject.parameters))
    return subject.make(**{first: PROBE}, **more)


def around_probe_code(subject: Subject, **more: str) -> str:
    """`around_probe`, as code, of the code of each keyword."""
    first = next(iter(subject.parameters))
    return subject.make_code(**{first: "probe"}, **more)


def difference(
    subject: Subject,
    other: Subject,
    case: Case,
    how: str,
    codes: tuple[str, str],
    before: str = "",
) -> Fault | None:
    """The first update that is not that of another transform.

    **Arguments:**

    - `how`: what the other one is, for a sentence.
    - `codes`: both, for a test.
    - `before`: lines that come before.
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
        f"update {t} is {numbers(a, b)}, that of {how} {numbers(b, a)}",
        before + difference_code(subject, case, codes, t, float(allowed[t])),
    )


def magnitude(problem: Problem, found: Run, *others: np.ndarray) -> float:
    """The largest number among the parameters, and others: they round each other."""
    return max(np.max(np.abs(x)) for x in (problem.start, found.points, *others))
