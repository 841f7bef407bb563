"""How the estimate of the distance to the solution may change."""

import hypothesis.strategies as st
import numpy as np

from .._law import Fault, Law
from .._problem import ARRAY, Case, Problem, problems, STEPS
from .._rounding import UNIT
from .._run import run
from .._subject import Subject
from .._terms import lacks_terms, place_of
from .._write import distances_code


def _run_up(subject: Subject) -> list[Case]:
    """Two problems on which estimates misbehave: momentum carries the parameters away
    until a large gradient points back; and the parameters return and stay."""
    size = ARRAY.size
    grads, values = np.zeros((STEPS, size)), np.ones(STEPS)
    grads[0], grads[-2] = 1, 1024
    back = np.zeros((STEPS, size))
    back[:4] = [[1], [1], [-1], [-1]]
    return [Case(ARRAY, Problem(np.zeros(size), g, values)) for g in (grads, back)]


def _drawn_problems(subject: Subject) -> st.SearchStrategy[Case]:
    return st.builds(Case, st.just(ARRAY), problems(ARRAY.size))


def _decrease(subject: Subject, case: Case) -> Fault | None:
    (found, _) = run(subject, case.layout, case.problem)
    distance = found.terms["monotone"]["distance"]
    is_right = distance[:-1] <= distance[1:]
    return _bad_distance(subject, case, "monotone", distance, is_right, ">= before")


monotone = Law(
    "monotone",
    "algebra",
    "The estimate of the distance to the solution never falls.",
    r"d_{t+1} \ge d_t",
    "none: a maximum is exact",
    _decrease,
    first=_run_up,
    drawn=_drawn_problems,
    excuse=lacks_terms("monotone"),
    hooks=("metrics",),
)


def _leap(subject: Subject, case: Case) -> Fault | None:
    (found, _) = run(subject, case.layout, case.problem)
    distance = found.terms["bounded_growth"]["distance"]
    before, after = distance[:-1], distance[1:]
    # NaN parameters say nothing about the steps before them.
    largest = np.nanmax(np.abs([case.problem.start, *found.points]))
    rounded = 2.0**8 * STEPS * UNIT * (before + largest)
    # There may be no estimate before the first step; it is 0 then.
    is_none = (before == 0) & (np.arange(STEPS) == 0)
    grown = is_none | (after <= 2 * before + rounded)
    bound = f"<= 2 * before + {np.nanmax(rounded):.2g}"
    return _bad_distance(subject, case, "bounded_growth", distance, grown, bound)


bounded_growth = Law(
    "bounded_growth",
    "algebra",
    "The estimate of the distance at most doubles in one step, whatever the gradient.",
    r"d_{t+1} \le 2 d_t",
    "2⁸ T u of the estimate and of the largest parameter, because distances are "
    "differences of parameters",
    _leap,
    first=_run_up,
    drawn=_drawn_problems,
    excuse=lacks_terms("bounded_growth"),
    hooks=("metrics",),
)


def _bad_distance(
    subject: Subject,
    case: Case,
    law: str,
    found: np.ndarray,
    is_right: np.ndarray,
    bound: str,
) -> Fault | None:
    wrong = np.flatnonzero(~is_right)  # NaN too, because comparisons with it are false.
    if not len(wrong):
        return None
    t = int(wrong[0])
    place = place_of(subject, law)
    code = "" if place is None else place.code["distance"]
    return Fault(
        f"after step {t} it is {found[t + 1]:.6g}, before it was {found[t]:.6g}",
        distances_code(subject, case, code, t, bound),
    )


ESTIMATES = (monotone, bounded_growth)
