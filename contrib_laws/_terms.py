"""Finds the terms of a law's formula in a state."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from contrib_core import AbstractState

from ._subject import Subject


# The terms that laws read from a state. A distance may also be a metric of that name,
# or the root of a term "squared_distance".
DISTANCE = ("distance",)
_TERMS = {
    "monotone": DISTANCE,
    "bounded_growth": DISTANCE,
    "average": ("z", "weight", "beta"),
    "scaled_sum": ("start", "scale"),
}


class Place(NamedTuple):
    """The place of the terms of a law in a state.

    - `code`: for each term, code that reads it from `state`.
    - `read`: a function from a state to the values of the terms.
    """

    code: Mapping[str, str]
    read: Callable[[Any], dict[str, Any]]


def place_of(subject: Subject, law: str) -> Place | None:
    """The place of the terms of a law in the state of a subject; `None` without one.

    The caller names the fields in `terms=`; otherwise the state declares them in its
    `terms`. Exactly one part of the state must have all of them. A distance may also be
    the metric `.../distance`.
    """
    return subject.once(f"terms of {law}", lambda: _place_of(subject, law))


def places_of(subject: Subject) -> dict[str, Place]:
    """The place of the terms of each law, by law, without laws that have no place."""
    places = {law: place_of(subject, law) for law in _TERMS}
    return {law: place for law, place in places.items() if place is not None}


def lacks_terms(law: str) -> Callable[[Subject], str | None]:
    """The excuse that a state does not keep the terms of a law."""
    wanted = ", ".join(f'"{term}": ...' for term in _TERMS[law])
    call = f'pass terms={{"{law}": {{{wanted}}}}}'

    def excuse(subject: Subject) -> str | None:
        if place_of(subject, law) is not None:
            return None
        if given := subject.terms.get(law):
            return f"no single part of its state has the fields of {dict(given)}"
        if _TERMS[law] == DISTANCE:
            return f"it has no metric `.../distance`; to name a field, {call}"
        return f"its state declares no terms of this law; to name the fields, {call}"

    return excuse


def _place_of(subject: Subject, law: str) -> Place | None:
    with subject.promotion():
        like = jax.ShapeDtypeStruct((2,), jnp.float32)
        state = jax.eval_shape(subject.rule.init, like)
        metrics = jax.eval_shape(subject.rule.metrics, state)
    if place := _in_state(subject, law, state, _TERMS[law]):
        return place
    if _TERMS[law] != DISTANCE:
        return None
    if place := _in_state(subject, law, state, ("squared_distance",)):
        (code,), read = place.code.values(), place.read

        def root(state: Any) -> dict[str, Any]:
            return {"distance": read(state)["squared_distance"] ** 0.5}

        return Place({"distance": f"{code} ** 0.5"}, root)
    for name in metrics:
        if name.split("/")[-1] == "distance":
            code = {"distance": f'transform.metrics(state)["{name}"]'}
            return Place(code, lambda s: {"distance": subject.rule.metrics(s)[name]})
    return None


def _in_state(
    subject: Subject, law: str, state: Any, terms: tuple[str, ...]
) -> Place | None:
    """The only part of a state that has fields for all of these terms."""
    given = subject.terms.get(law)

    def fields(node: Any) -> list[str]:
        """The fields that stand for the terms; none if one is missing."""
        own = node.terms.get(law, {}) if isinstance(node, AbstractState) else {}
        names = [(own if given is None else given).get(term, "") for term in terms]
        return names if all(name and hasattr(node, name) for name in names) else []

    def parts(state: Any) -> Iterator[tuple[Any, Any]]:
        is_part = jtu.tree_leaves_with_path(state, is_leaf=lambda x: bool(fields(x)))
        return ((path, node) for path, node in is_part if fields(node))

    def read(state: Any) -> dict[str, Any]:
        ((_, node),) = parts(state)
        values = (getattr(node, name) for name in fields(node))
        return dict(zip(terms, values, strict=True))

    found = list(parts(state))
    if len(found) != 1:
        return None
    ((path, node),) = found
    codes = (f"state{jtu.keystr(path)}.{name}" for name in fields(node))
    return Place(dict(zip(terms, codes, strict=True)), read)
