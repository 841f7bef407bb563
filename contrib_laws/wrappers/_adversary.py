"""Sharpness-aware wrappers: an adversary moves the point where gradients are taken.

Each law needs the wrapper itself, and the names of the parameters that the law varies:
the adversary, the period of its steps, and whether it is opaque.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from contrib_core import scale

from .._law import Fault, Law
from .._problem import Case, STEPS
from .._rounding import rounding, UNIT
from .._run import run
from .._subject import Subject
from .._write import arguments_code, numbers, run_code
from ._probe import (
    around_probe,
    around_probe_code,
    difference,
    magnitude,
    probe,
    PROBE_CODE,
    ROUNDING,
    small_cases,
)


def _lacks_parameters(law: str, *terms: str) -> Callable[[Subject], str | None]:
    wanted = ", ".join(f'"{term}": ...' for term in terms)

    def excuse(subject: Subject) -> str | None:
        if not subject.is_wrapper:
            return "it is not made by a wrapper, so no parameter can be varied"
        if all(subject.parameter(law, term) for term in terms):
            return None
        if given := subject.terms.get(law):
            return f"it lacks some of the parameters of {dict(given)}"
        return (
            "it declares no parameters for the terms of this law; to name them, pass "
            f'terms={{"{law}": {{{wanted}}}}}'
        )

    return excuse


def _named(subject: Subject, law: str, values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the wrapper for these values of terms."""
    return {subject.parameter(law, term) or term: x for term, x in values.items()}


# Arguments that reduce the wrapper to its base


def _is_base(name: str, sentence: str, formula: str, **values: tuple[Any, str]) -> Law:
    """The law that the wrapper equals its base for these values of terms. Each value
    comes with its code."""

    def fault(subject: Subject, case: Case) -> Fault | None:
        made = _named(subject, name, {term: x for term, (x, _) in values.items()})
        written = _named(subject, name, {term: c for term, (_, c) in values.items()})
        special = subject.variant(name, lambda: around_probe(subject, **made))
        base = subject.variant("inner", lambda: probe)
        codes = (around_probe_code(subject, **written), PROBE_CODE)
        return difference(special, base, case, "its base", codes)

    excuse = _lacks_parameters(name, *values)
    return Law(
        name,
        "wrapper",
        sentence,
        formula,
        ROUNDING,
        fault,
        drawn=small_cases,
        excuse=excuse,
    )


period_one = _is_base(
    "period_one",
    "With a period of 1 there are no steps of the adversary, and the wrapper is its "
    "base.",
    r"W(t, a; p = 1) = t",
    period=(1, "1"),
)
radius_zero = _is_base(
    "radius_zero",
    "With an adversary that does not move, the wrapper is its base.",
    r"W(t, 0; \text{opaque}) = t",
    adversary=(scale(0.0), "contrib_core.scale(0.0)"),
    opaque=(True, "True"),
)


# Two modes


def _is_opaque_other(subject: Subject, case: Case) -> Fault | None:
    def arguments(mode: Any, around: Any) -> dict[str, Any]:
        return _named(subject, "opaque", {"adversary": around, "opaque": mode})

    p, half = case.problem, STEPS // 2
    seeing, opaque = (
        subject.variant(
            f"opaque={mode}",
            lambda mode=mode: around_probe(subject, **arguments(mode, probe)),
        )
        for mode in (False, True)
    )
    twice = dataclasses.replace(p, grads=np.repeat(p.grads[:half], 2, axis=0))
    seen, _ = run(seeing, case.layout, twice)
    hidden, jittered = run(opaque, case.layout, p)
    largest = magnitude(p, hidden)
    allowed = rounding(hidden, jittered)[:half] + 2.0**8 * UNIT * largest
    error = np.max(np.abs(seen.points[1::2] - hidden.points[:half]), axis=1)
    wrong = np.flatnonzero(~(error <= allowed))
    if not len(wrong):
        return None
    t = int(wrong[0])
    a, b = seen.points[2 * t + 1], hidden.points[t]
    first, second = (
        arguments_code(opaque, q, n) for q, n in ((twice, 2 * t + 2), (p, t + 1))
    )

    def made(mode: str) -> str:
        return around_probe_code(subject, **arguments(mode, PROBE_CODE))

    code = [
        run_code(opaque, case.layout, p, "run"),
        "with jax.enable_x64(True):",
        f"    _, first, _ = run({made('False')}, {first})",
        f"    _, second, _ = run({made('True')}, {second})",
        f"np.testing.assert_allclose(second, first, rtol=0, atol={allowed[t]:.2g})",
    ]
    return Fault(
        f"after outer step {t} the parameters are {numbers(a, b)} in transparent mode, "
        f"{numbers(b, a)} in opaque mode",
        "\n".join(code),
    )


opaque = Law(
    "opaque",
    "wrapper",
    "Opaque mode, which asks for gradients itself, goes where transparent mode goes in "
    "twice as many calls.",
    r"x^\text{opaque}_k = x^\text{transparent}_{2 k}",
    ROUNDING,
    _is_opaque_other,
    drawn=small_cases,
    excuse=_lacks_parameters("opaque", "adversary", "opaque"),
)
