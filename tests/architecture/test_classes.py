"""Classes are abstract or final, and fields of states have roles."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

import equinox as eqx
import pytest
from support.sources import classes, is_abstract, Violations

import contrib_algos
from contrib_core import (
    AbstractState,
    AbstractTransform,
    Count,
    Flag,
    KeyData,
    P,
    Scalar,
    Scalars,
)


HOOKS = {
    "needs",
    "owns_iterates",
    "laws",
    "eval_point",
    "metrics",
    "encode_grads",
    "settled",
}


def not_abstract_or_final(cls: type) -> Violations:
    """Concrete bases of `cls`, concrete methods that it overrides, and abstract methods
    that it leaves open."""
    ancestors = [c for c in cls.__mro__[1:] if c not in eqx.Module.__mro__]
    found = [
        f"{cls.__name__} derives from the concrete {base.__name__}"
        for base in ancestors
        if issubclass(base, eqx.Module) and not is_abstract(base)
    ]
    for name, method in vars(cls).items():
        if not (callable(method) or isinstance(method, property)):
            continue
        if name in HOOKS or (name.startswith("__") and name.endswith("__")):
            continue
        overridden = [
            base.__name__
            for base in ancestors
            if name in vars(base)
            if not getattr(vars(base)[name], "__isabstractmethod__", False)
        ]
        found += [f"{cls.__name__}.{name} overrides that of {b}" for b in overridden]
    if not is_abstract(cls) and inspect.isabstract(cls):
        found.append(f"{cls.__name__} is neither abstract by name nor complete")
    return found


@pytest.mark.parametrize("cls", classes(eqx.Module), ids=lambda cls: cls.__name__)
def test_classes_are_abstract_or_final(cls: type):
    assert not not_abstract_or_final(cls)


def test_all_transforms_are_found():
    names = {cls.__name__ for cls in classes(AbstractTransform)}
    assert {"Chain", "DoG", "Prodigy", "ScheduleFree", "AbstractTransform"} <= names


class _Rule(AbstractTransform[None]):
    def start(self, params):
        return None

    def step(self, grads, state, params, extra):
        return grads, None


class _DerivedRule(_Rule):
    pass


class _OverridingRule(AbstractTransform[None]):
    def start(self, params):
        return None

    def step(self, grads, state, params, extra):
        return grads, None

    def init(self, params):
        return None


class _OpenRule(AbstractTransform[None]):
    def start(self, params):
        return None


@pytest.mark.parametrize("cls", [_DerivedRule, _OverridingRule, _OpenRule])
def test_classes_that_are_neither_are_found(cls: type):
    assert not_abstract_or_final(cls)
    assert not not_abstract_or_final(_Rule)


# Roles


def not_roles(cls: type) -> Violations:
    """Fields of a state with an annotation that is no role."""
    roles = [P, Scalar, Scalars, Count, Flag, KeyData, Any, type(None)]

    def is_role(annotation: Any) -> bool:
        if any(annotation is role for role in roles):
            return True
        if parts := typing.get_args(annotation):
            origin = typing.get_origin(annotation)
            return is_role(origin) or all(map(is_role, parts))
        return isinstance(annotation, type) and issubclass(annotation, AbstractState)

    return [
        f"{cls.__name__}.{name}: {annotation}"
        for name, annotation in inspect.get_annotations(cls).items()
        if typing.get_origin(annotation) is not typing.ClassVar
        if not is_role(annotation) and not _is_abstract_role(annotation, is_role)
    ]


def _is_abstract_role(annotation: Any, is_role: Callable[[Any], bool]) -> bool:
    origin = typing.get_origin(annotation)
    return origin is eqx.AbstractVar and all(map(is_role, typing.get_args(annotation)))


def not_a_state(cls: type) -> Violations:
    """The state of a transform, unless it is an `AbstractState`."""
    annotation = inspect.signature(getattr(cls, "start")).return_annotation
    state = typing.get_origin(annotation) or annotation
    # No state, states of inner transforms, states of optax.
    if state in (None, tuple, Any):
        return []
    is_state = isinstance(state, type) and issubclass(state, AbstractState)
    return [] if is_state else [f"{cls.__name__} has the state {state}"]


@pytest.mark.parametrize("cls", classes(AbstractState), ids=lambda cls: cls.__name__)
def test_fields_of_states_are_roles(cls: type):
    assert not not_roles(cls)


def test_transforms_have_states():
    rules = [cls for cls in classes(AbstractTransform) if not is_abstract(cls)]
    for cls in rules:
        assert not not_a_state(cls)


def test_states_are_states_by_name():
    named = {cls for cls in classes(eqx.Module) if cls.__name__.endswith("State")}
    assert contrib_algos.DoGState in named
    assert named == set(classes(AbstractState))


class _RuleWithDict(AbstractTransform[dict]):
    def start(self, params) -> dict:
        return {}

    def step(self, grads, state, params, extra):
        return grads, state


def test_other_states_are_found():
    assert not_a_state(_RuleWithDict)
    assert not not_a_state(contrib_algos.DoG)


class _BadState(AbstractState):
    total: float


class _UntypedState(AbstractState):
    mean: P
    count: int | None


class _GoodState(AbstractState):
    mean: P
    count: Count | None
    moved: Flag
    total: Scalar
    inner: Any
    other: contrib_algos.DoGState


def test_fields_without_a_role_are_found():
    assert not_roles(_BadState) and not_roles(_UntypedState)
    assert not not_roles(_GoodState)
