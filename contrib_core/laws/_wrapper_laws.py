"""What is promised of wrappers of any kind, and of chains."""

import inspect
from typing import Any

from .._combine import add_decayed_weights, scale
from .._state import Extra
from .._transform import AbstractTransform
from .._types import Tree
from ._law import Fault, Law
from ._probe import (
    around_probe,
    around_probe_code,
    cases,
    difference,
    PROBE,
    PROBE_CODE,
    ROUNDING,
    small_cases,
)
from ._problem import Case
from ._subject import Subject, wraps


def _is_not_neutral(subject: Subject, case: Case) -> Fault | None:
    around, codes, before = subject, ("transform", subject.inner_code), ""
    is_recipe = subject.recipe is not None and wraps(subject.recipe)
    inner = subject.variant("inner", lambda: PROBE if is_recipe else subject.inner)
    if is_recipe:
        around = subject.variant("neutral", lambda: around_probe(subject))
        codes, before = (around_probe_code(subject), "probe"), PROBE_CODE
    return difference(around, inner, case, "what it wraps", codes, before)


neutral = Law(
    "neutral",
    "wrapper",
    "On real parameters of full precision it does what it wraps does, and no more.",
    r"W(t) = t \text{ on real trees}",
    ROUNDING,
    _is_not_neutral,
    drawn=cases,
    excuse=lambda subject: "it wraps nothing" if subject.inner is None else None,
)


# Chains


def _is_no_chain(subject: Subject) -> str | None:
    kinds = [p.kind for p in subject.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return "it takes a function of any number of transforms"
    return None


class _InTurn(AbstractTransform[Any]):
    """What a chain is to do, written plainly."""

    links: tuple[AbstractTransform, ...]

    def start(self, params: Tree) -> Any:
        return [link.start(params) for link in self.links]

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        states = []
        for link, before in zip(self.links, state, strict=True):
            grads, after = link.step(grads, before, params, extra)
            states.append(after)
        return grads, states


_LINKS = (add_decayed_weights(0.25), PROBE, scale(0.5))
_LINKS_CODE = f"""\
{PROBE_CODE}a, b = contrib_core.add_decayed_weights(0.25), probe
c = contrib_core.scale(0.5)
"""


def _is_no_monoid(subject: Subject, case: Case) -> Fault | None:
    make = subject.make
    a, b, c = _LINKS
    plain = subject.variant("plain", lambda: _InTurn(_LINKS))
    nested = {
        "{0}(a, b, c)": lambda: make(a, b, c),
        "{0}({0}(a, b), c)": lambda: make(make(a, b), c),
        "{0}(a, {0}(b, c))": lambda: make(a, make(b, c)),
        "{0}(a, {0}(), b, c)": lambda: make(a, make(), b, c),
    }
    for written, made in nested.items():
        other = subject.variant(written, made)
        written = written.format(subject.name)
        codes = (written, "contrib_core.chain(a, b, c)")
        how = f"a, b and c in turn ({written})"
        if fault := difference(other, plain, case, how, codes, _LINKS_CODE):
            return fault
    return None


monoid = Law(
    "monoid",
    "wrapper",
    "A chain does what its links do, in turn: nested in any way, and with empty chains "
    "in it.",
    r"(a \cdot b) \cdot c = a \cdot (b \cdot c), \quad a \cdot 1 = a = 1 \cdot a",
    ROUNDING,
    _is_no_monoid,
    drawn=small_cases,
    excuse=_is_no_chain,
)
