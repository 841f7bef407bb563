"""Where the iterates of wrappers are that keep points of their own: each law is about
the wrappers whose state has the fields that it speaks of."""

from collections.abc import Callable

import numpy as np

from ._law import Fault, Law
from ._probe import magnitude, small_cases
from ._problem import ARRAY, Case, STEPS
from ._run import AVERAGE, MECHANIC, parts_of, run, UNIT
from ._subject import Subject, wraps
from ._write import numbers, steps_code


def _lacks(names: tuple[str, ...]) -> Callable[[Subject], str | None]:
    def excuse(subject: Subject) -> str | None:
        if parts_of(subject, names) is None:
            return f"its state has no fields {', '.join(names)}"
        return None

    return excuse


# Schedule-free


def _is_no_average(subject: Subject, case: Case) -> Fault | None:
    (found, _) = run(subject, case.layout, case.problem)
    z, total, b1 = (found.parts[name] for name in AVERAGE)
    mean, before = case.problem.start, 0.0
    tolerance = 2.0**8 * STEPS * UNIT * magnitude(case.problem, found, z)
    for t in range(STEPS):
        weight = (total[t] - before) / total[t] if total[t] else 0.0
        mean, before = mean + weight * (z[t] - mean), total[t]
        expected = (1 - b1[t]) * z[t] + b1[t] * mean
        off = found.points[t] - expected
        if not np.all(np.abs(off) <= tolerance):
            return Fault(
                f"after step {t} the parameters are {numbers(found.points[t])}, the "
                f"interpolation of z and its average {numbers(expected)}",
                _average_code(subject, case, t, tolerance),
            )
        off = (found.evaluated[t] - mean) * b1[t]
        # At b1 = 0 there is no average, and optax does not tell.
        if subject.is_ours and not np.all(np.abs(off) <= tolerance):
            return Fault(
                f"after step {t} `eval_params` is {numbers(found.evaluated[t])}, the "
                f"average of z is {numbers(mean)}",
                _average_code(subject, case, t, tolerance),
            )
    return None


def _average_code(subject: Subject, case: Case, t: int, tolerance: float) -> str:
    place, _ = parts_of(subject, AVERAGE) or ("state", None)
    close = f"rtol=0, atol={tolerance:.2g})"
    evaluated = "(transform.eval_params(state, x) - mean) * s.b1"
    check = [f"np.testing.assert_allclose({evaluated}, 0, {close}"]
    lines = [
        f"s = {place}",
        "weight = (s.weight_sum - before) / s.weight_sum if s.weight_sum else 0.0",
        "mean, before = mean + weight * (s.z - mean), s.weight_sum",
        "expected = (1 - s.b1) * s.z + s.b1 * mean",
        f"np.testing.assert_allclose(x, expected, {close}",
        *(check if subject.is_ours else []),
    ]
    return steps_code(subject, case, t + 1, "mean, before = start, 0.0", lines)


average = Law(
    "average",
    "wrapper",
    "Schedule-free: the parameters are at all times the interpolation of the base's "
    "iterates and their weighted average, where the model is evaluated.",
    r"y_t = (1 - \beta) z_t + \beta x_t, \quad x_t = \sum w_i z_i / \sum w_i",
    "2⁸ T u of the largest parameter, divided by β for the average",
    _is_no_average,
    drawn=small_cases,
    excuse=_lacks(AVERAGE),
    hooks=("eval_params",),
)


# Mechanic


def _is_off_line(subject: Subject, case: Case) -> Fault | None:
    (found, _) = run(subject, case.layout, case.problem)
    x0, s = (found.parts[name] for name in MECHANIC)
    total = np.sum(s.reshape(STEPS, -1), axis=1)
    eps = subject.parameters["eps"].default
    start, delta, kept = case.problem.start, np.zeros(ARRAY.size), 0.0
    for t, x in enumerate([start, *found.points[:-1]]):
        delta = kept * delta - 0.1 * case.problem.grad(x, t)  # The step of the base.
        kept = total[t] / (total[t] + eps)
        expected = start + total[t] * delta
        growth = np.max(total[: t + 1]) / np.min(total[: t + 1])
        tolerance = 2.0**8 * STEPS * UNIT * growth * magnitude(case.problem, found, x0)
        if not np.all(np.abs(found.points[t] - expected) <= tolerance):
            return Fault(
                f"after step {t} the parameters are {numbers(found.points[t])}, those "
                f"on the line {numbers(expected)}",
                _line_code(subject, case, t, eps, tolerance),
            )
    return None


def _line_code(
    subject: Subject, case: Case, t: int, eps: float, tolerance: float
) -> str:
    place, _ = parts_of(subject, MECHANIC) or ("state", None)
    curved = " + curvature * (point - start)" if case.problem.curvature else ""
    lines = [
        f"delta = kept * delta - 0.1 * (grads[t - 1]{curved})",
        f"total = jnp.sum({place}.s)",
        f"point, kept = x, total / (total + {eps})",
        "expected = start + total * delta",
        f"np.testing.assert_allclose(x, expected, rtol=0, atol={tolerance:.2g})",
    ]
    before = "point, delta, kept = start, 0.0, 0.0"
    return steps_code(subject, case, t + 1, before, lines)


def _is_no_mechanic(subject: Subject) -> str | None:
    if subject.recipe is None or not wraps(subject.recipe):
        return "it takes the wrapper itself, to know what it wraps"
    if "eps" not in subject.parameters:
        return "it takes a wrapper with an `eps`"
    return _lacks(MECHANIC)(subject)


mechanic = Law(
    "mechanic",
    "wrapper",
    "Mechanic: the iterates are the start plus the learned scale times the base's sum "
    "of updates, of which a step keeps s / (s + ε) where it is recovered from them.",
    r"x_t = x_0 + s_t \Delta_t, \quad "
    r"\Delta_{t+1} = \tfrac{s_t}{s_t + \epsilon} \Delta_t + u_t",
    "2⁸ T u of the largest parameter, times the growth of s, by which differences of "
    "parameters are divided and multiplied",
    _is_off_line,
    drawn=small_cases,
    excuse=_is_no_mechanic,
)
