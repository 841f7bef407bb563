"""Chains."""

import inspect
from typing import Any

from contrib_core import AbstractTransform, add_decayed_weights, Extra, scale, Tree

from .._law import Fault, Law
from .._problem import Case
from .._subject import Subject
from ._probe import difference, probe, PROBE_CODE, ROUNDING, small_cases


def _is_no_chain(subject: Subject) -> str | None:
    kinds = [p.kind for p in subject.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return "it is not made by a function of any number of transforms"
    return None


class _InTurn(AbstractTransform[Any]):
    """The plainest chain there is, to compare with."""

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


_LINKS = (add_decayed_weights(0.25), probe, scale(0.5))
_LINKS_CODE = f"""\
a, b = contrib_core.add_decayed_weights(0.25), {PROBE_CODE}
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
    "A chain applies its links in turn; nesting chains and adding empty chains changes "
    "nothing.",
    r"(a \cdot b) \cdot c = a \cdot (b \cdot c), \quad a \cdot 1 = a = 1 \cdot a",
    ROUNDING,
    _is_no_monoid,
    drawn=small_cases,
    excuse=_is_no_chain,
)
