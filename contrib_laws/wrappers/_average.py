"""Wrappers that train at an interpolation of iterates with their weighted average."""

import numpy as np

from .._law import Fault, Law
from .._problem import Case, STEPS
from .._rounding import UNIT
from .._run import run
from .._subject import Subject
from .._terms import lacks_terms, place_of
from .._write import numbers, steps_code
from ._probe import magnitude, small_cases


def _is_no_average(subject: Subject, case: Case) -> Fault | None:
    (found, _) = run(subject, case.layout, case.problem)
    terms = found.terms["average"]
    z, total, beta = (terms[name][1:] for name in ("z", "weight", "beta"))
    mean, before = case.problem.start, 0.0
    tolerance = 2.0**8 * STEPS * UNIT * magnitude(case.problem, found, z)
    for t in range(STEPS):
        weight = (total[t] - before) / total[t] if total[t] else 0.0
        mean, before = mean + weight * (z[t] - mean), total[t]
        expected = (1 - beta[t]) * z[t] + beta[t] * mean
        off = found.points[t] - expected
        if not np.all(np.abs(off) <= tolerance):
            return Fault(
                f"after step {t} the parameters are {numbers(found.points[t])}, the "
                f"interpolation of z and its average {numbers(expected)}",
                _code(subject, case, t, tolerance),
            )
        off = (found.evaluated[t] - mean) * beta[t]
        # At beta = 0 there is no average, and optax has no `eval_params`.
        if subject.is_ours and not np.all(np.abs(off) <= tolerance):
            return Fault(
                f"after step {t} `eval_params` is {numbers(found.evaluated[t])}, the "
                f"average of z is {numbers(mean)}",
                _code(subject, case, t, tolerance),
            )
    return None


def _code(subject: Subject, case: Case, t: int, tolerance: float) -> str:
    place = place_of(subject, "average")
    read = {} if place is None else place.code
    close = f"rtol=0, atol={tolerance:.2g})"
    evaluated = "(transform.eval_params(state, x) - mean) * beta"
    check = [f"np.testing.assert_allclose({evaluated}, 0, {close}"]
    lines = [
        *(f"{name} = {code}" for name, code in read.items()),
        "c = (weight - before) / weight if weight else 0.0",
        "mean, before = mean + c * (z - mean), weight",
        "expected = (1 - beta) * z + beta * mean",
        f"np.testing.assert_allclose(x, expected, {close}",
        *(check if subject.is_ours else []),
    ]
    return steps_code(subject, case, t + 1, "mean, before = start, 0.0", lines)


average = Law(
    "average",
    "wrapper",
    "The parameters are always the interpolation of the base's iterates and their "
    "weighted average, and the model is evaluated at the average.",
    r"y_t = (1 - \beta) z_t + \beta x_t, \quad x_t = \sum w_i z_i / \sum w_i",
    "2⁸ T u of the largest parameter, divided by β for the average",
    _is_no_average,
    drawn=small_cases,
    excuse=lacks_terms("average"),
    hooks=("eval_params",),
)
