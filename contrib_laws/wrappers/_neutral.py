"""Wrappers that change nothing on ordinary parameters."""

from .._law import Fault, Law
from .._problem import Case
from .._subject import Subject
from ._probe import (
    around_probe,
    around_probe_code,
    cases,
    difference,
    probe,
    PROBE_CODE,
    ROUNDING,
)


def _is_not_neutral(subject: Subject, case: Case) -> Fault | None:
    around, codes = subject, ("transform", subject.inner_code)
    if subject.is_wrapper:
        around = subject.variant("neutral", lambda: around_probe(subject))
        codes = around_probe_code(subject), PROBE_CODE
    inner = subject.variant(
        "inner", lambda: probe if subject.is_wrapper else subject.inner
    )
    return difference(around, inner, case, "its inner transform", codes)


neutral = Law(
    "neutral",
    "wrapper",
    "On real parameters of full precision, the wrapper does exactly what its inner "
    "transform does.",
    r"W(t) = t \text{ on real trees}",
    ROUNDING,
    _is_not_neutral,
    drawn=cases,
    excuse=lambda subject: "it wraps nothing" if subject.inner is None else None,
)
