r"""Symmetries: changing the problem changes the updates as it changes the parameters.

Notation: $U_t(x_0; f)$ is the update of a rule at step $t$ of a problem with losses
$f_0, f_1, \dots$, where the parameters start at $x_0$ and follow the updates.
"""

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np

from .._law import Fault, Law, Unsuited
from .._problem import (
    ARRAY,
    Case,
    Change,
    COMPLEX,
    coordinates,
    Layout,
    LEAVES,
    MIXED,
    problems,
)
from .._rounding import rounding
from .._run import run
from .._subject import Subject
from .._write import numbers, updates_code


_ROUNDING = (
    "2⁸ T u (κ + 1) of the largest update in double precision, with u = 2⁻⁵³, T = 24 "
    "steps and κ the measured factor by which a run amplifies rounding, plus 2⁴ u of "
    "the largest parameter; the larger bound of both runs counts"
)


def _symmetry(
    name: str,
    sentence: str,
    formula: str,
    changes: Callable[[int], st.SearchStrategy[Change]] = lambda n: st.just(Change()),
    layouts: tuple[tuple[Layout, Layout], ...] = ((ARRAY, ARRAY), (MIXED, MIXED)),
) -> Law:
    """The law of one kind of change.

    **Arguments:**

    - `changes`: a strategy for changes, given the number of coordinates.
    - `layouts`: pairs of trees: of the problem and of the changed problem.
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
        raise Unsuited("nothing moves in any drawn case")
    expected = case.change.updates(first.updates)
    # Rounding may hurt either run more: shifted parameters are larger.
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
    """Powers of two, which multiply exactly; the first is the simplest."""
    return st.sampled_from(exponents).map(lambda k: 2.0**k)


def _rotations(size: int) -> st.SearchStrategy[np.ndarray]:
    """One or two reflections; the normal of one may be the sum of all axes."""

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
    "Where the parameters start does not matter: shifted parameters receive the same "
    "updates.",
    r"U_t(x_0 + a; f(\cdot - a)) = U_t(x_0; f)",
    lambda n: coordinates(n).map(lambda a: Change(shift=a)),
)
gradient_scale = _symmetry(
    "gradient_scale",
    "The unit of the loss does not matter: multiplying all gradients by a positive "
    "number changes no update.",
    r"U_t(x_0; c f) = U_t(x_0; f), \quad c > 0",
    # About 1e-9, 1e9, 1e-12 and 1e12, where small constants in a rule are not small.
    lambda n: _powers(-30, 30, -40, 40, -10, 10).map(lambda c: Change(loss=c)),
)
units = _symmetry(
    "units",
    "The unit of the parameters does not matter: multiplying the parameters by a "
    "positive number multiplies the updates by it.",
    r"U_t(\lambda x_0; f(\cdot / \lambda)) = \lambda\, U_t(x_0; f), \quad \lambda > 0",
    lambda n: _powers(1, -1, 4, -4, 10, -10).map(lambda unit: Change(unit=unit)),
)
rotation = _symmetry(
    "rotation",
    "The axes do not matter: a rotated problem has rotated updates.",
    r"U_t(Q x_0; f(Q^\top \cdot)) = Q\, U_t(x_0; f), \quad Q^\top Q = I",
    lambda n: _rotations(n).map(lambda q: Change(rotation=q)),
)
permutation = _symmetry(
    "permutation",
    "The order of the coordinates does not matter, within leaves and across them.",
    r"U_t(P x_0; f(P^\top \cdot)) = P\, U_t(x_0; f), \quad P \text{ a permutation}",
    lambda n: _permutations(n).map(lambda p: Change(rotation=p)),
)
partition = _symmetry(
    "partition",
    "How the coordinates are split into leaves does not matter, nor do the shapes of "
    "the leaves.",
    r"U_t((x, y); f) = U_t(x \oplus y; f)",
    layouts=((ARRAY, LEAVES),),
)
complex_pairs = _symmetry(
    "complex",
    "A complex parameter moves like the pair of its real and imaginary parts.",
    r"U_t(x + i y; f) = U_t((x, y); f)",
    layouts=((LEAVES, COMPLEX),),
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
