"""Wrappers that learn a scale for the sum of an optimizer's updates."""

import numpy as np

from .._law import Fault, Law
from .._problem import ARRAY, Case, STEPS
from .._rounding import UNIT
from .._run import run
from .._subject import Subject
from .._terms import lacks_terms, place_of
from .._write import numbers, steps_code
from ._probe import magnitude, small_cases


NAME = "scaled_sum"


def _is_off_line(subject: Subject, case: Case) -> Fault | None:
    (found, _) = run(subject, case.layout, case.problem)
    origin, scale = (found.terms[NAME][name][1:] for name in ("start", "scale"))
    total = np.sum(scale.reshape(STEPS, -1), axis=1)
    eps = _epsilon(subject)
    start, delta, kept = case.problem.start, np.zeros(ARRAY.size), 0.0
    for t, x in enumerate([start, *found.points[:-1]]):
        delta = kept * delta - 0.1 * case.problem.grad(x, t)  # The step of the base.
        kept = total[t] / (total[t] + eps)
        expected = start + total[t] * delta
        growth = np.max(total[: t + 1]) / np.min(total[: t + 1])
        largest = magnitude(case.problem, found, origin)
        tolerance = 2.0**8 * STEPS * UNIT * growth * largest
        if not np.all(np.abs(found.points[t] - expected) <= tolerance):
            return Fault(
                f"after step {t} the parameters are {numbers(found.points[t])}, those "
                f"on the line {numbers(expected)}",
                _code(subject, case, t, eps, tolerance),
            )
    return None


def _epsilon(subject: Subject) -> float:
    name = subject.parameter(NAME, "epsilon")
    return 0.0 if name is None else subject.parameters[name].default


def _code(subject: Subject, case: Case, t: int, eps: float, tolerance: float) -> str:
    place = place_of(subject, NAME)
    scale = "" if place is None else place.code["scale"]
    curved = " + curvature * (point - start)" if case.problem.curvature else ""
    lines = [
        f"delta = kept * delta - 0.1 * (grads[t - 1]{curved})",
        f"total = jnp.sum({scale})",
        f"point, kept = x, total / (total + {eps})",
        "expected = start + total * delta",
        f"np.testing.assert_allclose(x, expected, rtol=0, atol={tolerance:.2g})",
    ]
    before = "point, delta, kept = start, 0.0, 0.0"
    return steps_code(subject, case, t + 1, before, lines)


def _excuse(subject: Subject) -> str | None:
    if not subject.is_wrapper:
        return "it is not made by a wrapper, so its base is unknown"
    if reason := lacks_terms(NAME)(subject):
        return reason
    name = subject.parameter(NAME, "epsilon")
    if name is None or not isinstance(subject.parameters[name].default, int | float):
        return (
            f'no parameter stands for ε; to name one, pass terms={{"{NAME}": '
            '{"epsilon": ...}}'
        )
    return None


scaled_sum = Law(
    NAME,
    "wrapper",
    "The parameters are the start plus a learned scale s times the sum of the base's "
    "updates, where recovering that sum from the parameters keeps s / (s + ε) of it in "
    "each step.",
    r"x_t = x_0 + s_t \Delta_t, \quad "
    r"\Delta_{t+1} = \tfrac{s_t}{s_t + \epsilon} \Delta_t + u_t",
    "2⁸ T u of the largest parameter, times the growth of s, because differences of "
    "parameters are divided and multiplied by s",
    _is_off_line,
    drawn=small_cases,
    excuse=_excuse,
)
