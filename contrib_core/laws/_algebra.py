r"""What rules declare: their symmetries, and how their estimates behave.

Notation: $U_t(x_0; f)$ is the update that a rule makes at step $t$ of a problem with
losses $f_0, f_1, \dots$, where the parameters start at $x_0$ and follow the updates.
"""

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np

from ._law import Fault, Law, Unsuited
from ._problem import (
    ARRAY,
    Case,
    Change,
    COMPLEX,
    coordinates,
    Layout,
    LEAVES,
    MIXED,
    Problem,
    problems,
    STEPS,
)
from ._run import distance_of, rounding, run, UNIT
from ._subject import Subject
from ._write import distances_code, numbers, updates_code


_ROUNDING = (
    "2⁸ T u (κ + 1) of the largest update, in double precision: u = 2⁻⁵³, T = 24 "
    "steps, κ the measured factor by which a run amplifies rounding; and 2⁴ u of the "
    "largest parameter; of both runs the larger"
)


def _symmetry(
    name: str,
    sentence: str,
    formula: str,
    changes: Callable[[int], st.SearchStrategy[Change]] = lambda n: st.just(Change()),
    layouts: tuple[tuple[Layout, Layout], ...] = ((ARRAY, ARRAY), (MIXED, MIXED)),
) -> Law:
    """The law that changing the problem changes the updates as it does the parameters.

    **Arguments:**

    - `changes`: a strategy of changes, for a number of coordinates.
    - `layouts`: the trees of the problem, and of the changed problem.
    """

    def drawn(subject: Subject) -> st.SearchStrategy[Case]:
        def cases(layout: Layout, other: Layout) -> st.SearchStrategy[Case]:
            size = layout.size
            parts = problems(size), changes(size), st.just(other)
            return st.builds(Case, st.just(layout), *parts)

        return st.one_of([cases(*pair) for pair in layouts])

    return Law(name, "algebra", sentence, formula, _ROUNDING, _asymmetry, drawn=drawn)


def _asymmetry(subject: Subject, case: Case) -> Fault | None:
    """The first update of the changed problem that is not the changed update."""
    changed = case.change.problem(case.problem)
    other = case.other or case.layout
    if other == case.layout:
        first, second, *jittered = run(subject, other, case.problem, changed)
    else:
        first, jittered_first = run(subject, case.layout, case.problem)
        second, jittered_second = run(subject, other, changed)
        jittered = jittered_first, jittered_second
    if not (first.updates.any() or second.updates.any()):
        raise Unsuited("in each case drawn nothing moves")
    expected = case.change.updates(first.updates)
    # Either may be the one that rounding hurts more: moved parameters are larger.
    allowed = np.maximum(
        case.change.unit * rounding(first, jittered[0]), rounding(second, jittered[1])
    )
    error = np.max(np.abs(second.updates - expected), axis=1)
    # Not `error > allowed`, which is false for NaN.
    wrong = np.flatnonzero(~(error <= allowed))
    if not len(wrong):
        return None
    t = int(wrong[0])
    return Fault(
        f"update {t} is {numbers(second.updates[t], expected[t])}, not "
        f"{numbers(expected[t], second.updates[t])}",
        updates_code(subject, case, changed, t, float(allowed[t])),
    )


def _powers(*exponents: int) -> st.SearchStrategy[float]:
    """Powers of two, by which multiplying is exact; the first one is the simplest."""
    return st.sampled_from(exponents).map(lambda k: 2.0**k)


def _rotations(size: int) -> st.SearchStrategy[np.ndarray]:
    """Two reflections, of which one may be in the sum of all coordinates."""

    def reflect(normals: np.ndarray) -> np.ndarray:
        q = np.eye(size)
        for normal in normals:
            if normal.any():
                q -= np.outer(q @ normal, normal) * (2 / (normal @ normal))
        return q

    normals = st.just(np.ones(size)) | coordinates(size)
    return st.lists(normals, min_size=1, max_size=2).map(np.array).map(reflect)


def _permutations(size: int) -> st.SearchStrategy[np.ndarray]:
    order = st.permutations(range(size))
    return order.map(lambda order: np.eye(size)[list(order)])


translation = _symmetry(
    "translation",
    "Where the parameters start does not matter: moved parameters move alike.",
    r"U_t(x_0 + a; f(\cdot - a)) = U_t(x_0; f)",
    lambda n: coordinates(n).map(lambda a: Change(shift=a)),
)
gradient_scale = _symmetry(
    "gradient_scale",
    "The unit of the loss does not matter: multiplied gradients move the parameters "
    "as they were.",
    r"U_t(x_0; c f) = U_t(x_0; f), \quad c > 0",
    # About 1e-9, 1e9, 1e-12 and 1e12, where small numbers in a rule are not small.
    lambda n: _powers(-30, 30, -40, 40, -10, 10).map(lambda c: Change(loss=c)),
)
units = _symmetry(
    "units",
    "The unit of the parameters does not matter: those measured in another one move "
    "by as much, in it.",
    r"U_t(\lambda x_0; f(\cdot / \lambda)) = \lambda\, U_t(x_0; f), \quad \lambda > 0",
    lambda n: _powers(1, -1, 4, -4, 10, -10).map(lambda unit: Change(unit=unit)),
)
rotation = _symmetry(
    "rotation",
    "The axes do not matter: rotated problems have rotated iterates.",
    r"U_t(Q x_0; f(Q^\top \cdot)) = Q\, U_t(x_0; f), \quad Q^\top Q = I",
    lambda n: _rotations(n).map(lambda q: Change(rotation=q)),
)
permutation = _symmetry(
    "permutation",
    "The order of the coordinates does not matter, across leaves too.",
    r"U_t(P x_0; f(P^\top \cdot)) = P\, U_t(x_0; f), \quad P \text{ a permutation}",
    lambda n: _permutations(n).map(lambda p: Change(rotation=p)),
)
partition = _symmetry(
    "partition",
    "How coordinates are split into leaves, and the leaves' shapes, do not matter.",
    r"U_t((x, y); f) = U_t(x \oplus y; f)",
    layouts=((ARRAY, LEAVES),),
)
complex_pairs = _symmetry(
    "complex",
    "A complex parameter moves as the pair of its real and imaginary parts.",
    r"U_t(x + i y; f) = U_t((x, y); f)",
    layouts=((LEAVES, COMPLEX),),
)


# Estimates


def _run_up(subject: Subject) -> list[Case]:
    """Momentum carries the parameters away, and then a large gradient points back."""
    size = ARRAY.size
    grads, values = np.zeros((STEPS, size)), np.ones(STEPS)
    grads[0], grads[-2] = 1, 1024
    # And one there and back, where it stays.
    back = np.zeros((STEPS, size))
    back[:4] = [[1], [1], [-1], [-1]]
    return [Case(ARRAY, Problem(np.zeros(size), g, values)) for g in (grads, back)]


def _drawn_problems(subject: Subject) -> st.SearchStrategy[Case]:
    return st.builds(Case, st.just(ARRAY), problems(ARRAY.size))


def _no_distance(subject: Subject) -> str | None:
    if distance_of(subject) is None:
        return "it has no metric `.../distance`"
    return None


def _decrease(subject: Subject, case: Case) -> Fault | None:
    (found, _) = run(subject, case.layout, case.problem)
    before, after = found.distance[:-1], found.distance[1:]
    return _bad_distance(subject, case, found.distance, before <= after, ">= before")


monotone = Law(
    "monotone",
    "algebra",
    "The estimate of the distance to the solution never falls.",
    r"d_{t+1} \ge d_t",
    "none: a maximum is exact",
    _decrease,
    first=_run_up,
    drawn=_drawn_problems,
    excuse=_no_distance,
    hooks=("metrics",),
)


def _leap(subject: Subject, case: Case) -> Fault | None:
    (found, _) = run(subject, case.layout, case.problem)
    before, after = found.distance[:-1], found.distance[1:]
    # What is NaN says nothing of the steps before.
    largest = np.nanmax(np.abs([case.problem.start, *found.points]))
    rounded = 2.0**8 * STEPS * UNIT * (before + largest)
    # Before the first step there may be no estimate yet, which is 0.
    is_none = (before == 0) & (np.arange(STEPS) == 0)
    grown = is_none | (after <= 2 * before + rounded)
    bound = f"<= 2 * before + {np.nanmax(rounded):.2g}"
    return _bad_distance(subject, case, found.distance, grown, bound)


bounded_growth = Law(
    "bounded_growth",
    "algebra",
    "The estimate of the distance at most doubles in a step, whatever the gradient.",
    r"d_{t+1} \le 2 d_t",
    "2⁸ T u of the estimate and of the largest parameter, of which distances are "
    "differences",
    _leap,
    first=_run_up,
    drawn=_drawn_problems,
    excuse=_no_distance,
    hooks=("metrics",),
)


def _bad_distance(
    subject: Subject, case: Case, found: np.ndarray, is_right: np.ndarray, bound: str
) -> Fault | None:
    wrong = np.flatnonzero(~is_right)  # NaN too, of which no comparison is true.
    if not len(wrong):
        return None
    t = int(wrong[0])
    code, _ = distance_of(subject) or ("", None)
    return Fault(
        f"after step {t} it is {found[t + 1]:.6g}, before it was {found[t]:.6g}",
        distances_code(subject, case, code, t, bound),
    )


SYMMETRIES = (
    translation,
    gradient_scale,
    units,
    rotation,
    permutation,
    partition,
    complex_pairs,
)
ESTIMATES = (monotone, bounded_growth)
