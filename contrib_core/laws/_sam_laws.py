"""Sharpness-aware minimisation: each law is about wrappers that are called as
`optax.contrib.sam` is."""

import dataclasses
from typing import Any

import numpy as np

from .._combine import scale
from ._law import Fault, Law
from ._probe import (
    around_probe,
    around_probe_code,
    difference,
    magnitude,
    PROBE,
    PROBE_CODE,
    ROUNDING,
    small_cases,
)
from ._problem import Case, STEPS
from ._run import rounding, run, UNIT
from ._subject import Subject
from ._write import arguments_code, numbers, run_code


_PARAMETERS = ("optimizer", "adv_optimizer", "sync_period", "opaque_mode")


def _is_no_sam(subject: Subject) -> str | None:
    if set(_PARAMETERS) <= subject.parameters.keys():
        return None
    return f"it takes a wrapper with the parameters {', '.join(_PARAMETERS)}"


def _sam(
    name: str, sentence: str, formula: str, written: dict[str, str], **keywords: Any
) -> Law:
    """The law that with these keywords it does what it wraps."""

    def fault(subject: Subject, case: Case) -> Fault | None:
        special = subject.variant(name, lambda: around_probe(subject, **keywords))
        base = subject.variant("inner", lambda: PROBE)
        codes = (around_probe_code(subject, **written), "probe")
        return difference(special, base, case, "what it wraps", codes, PROBE_CODE)

    return Law(
        name,
        "wrapper",
        sentence,
        formula,
        ROUNDING,
        fault,
        drawn=small_cases,
        excuse=_is_no_sam,
    )


sam_period = _sam(
    "sam_period",
    "Sharpness-aware minimisation of period 1 has no adversarial steps: it is its "
    "base.",
    r"\text{SAM}(t, a; p = 1) = t",
    {"sync_period": "1"},
    sync_period=1,
)
sam_radius = _sam(
    "sam_radius",
    "Sharpness-aware minimisation of radius 0 looks for the worst point nowhere: it is "
    "its base.",
    r"\text{SAM}(t, 0; \text{opaque}) = t",
    {"adv_optimizer": "contrib_core.scale(0.0)", "opaque_mode": "True"},
    adv_optimizer=scale(0.0),
    opaque_mode=True,
)


def _is_opaque_other(subject: Subject, case: Case) -> Fault | None:
    p, half = case.problem, STEPS // 2
    seeing, opaque = (
        subject.variant(
            f"opaque={mode}",
            lambda mode=mode: subject.make(
                optimizer=PROBE, adv_optimizer=PROBE, opaque_mode=mode
            ),
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
        return subject.make_code(
            optimizer="probe", adv_optimizer="probe", opaque_mode=mode
        )

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
        PROBE_CODE + "\n".join(code),
    )


sam_modes = Law(
    "sam_modes",
    "wrapper",
    "Sharpness-aware minimisation in opaque mode, which calls for gradients itself, is "
    "that in transparent mode, of twice as many steps.",
    r"x^\text{opaque}_k = x^\text{transparent}_{2 k}",
    ROUNDING,
    _is_opaque_other,
    drawn=small_cases,
    excuse=_is_no_sam,
)
