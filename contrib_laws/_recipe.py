"""Recipes: functions and classes that make a transform, and their arguments."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias, Union

from contrib_core import scale_by_learning_rate
from contrib_core.ranges import FIRST_GUESS


Recipe: TypeAlias = Callable[..., Any]
"""A function or a class that makes a transform."""

Parameters: TypeAlias = Mapping[str, inspect.Parameter]
"""The parameters of a recipe by name, with their annotations."""

# Values of parameters without a default: an optimizer for a wrapper to wrap, and plain
# numbers.
BASE = scale_by_learning_rate(0.1)
BASE_CODE = "contrib_core.scale_by_learning_rate(0.1)"
_VALUES = {"learning_rate": "0.1", "mask": "True"}

# Names of the classes of transforms in annotations. Names avoid importing optax.
_TRANSFORMS = {
    "Transform",
    "AbstractTransform",
    "GradientTransformation",
    "GradientTransformationExtraArgs",
}


def recipe_of(transform: Any) -> Recipe | None:
    """`transform` itself if it is a recipe; `None` if it is a transform."""
    if callable(getattr(transform, "update", None)) and not isinstance(transform, type):
        return None
    return transform if callable(transform) else None


def parameters_of(recipe: Recipe) -> Parameters:
    """The parameters of a recipe. For the class of a Module, its fields provide the
    annotations, because converters replace them in the signature."""
    try:
        found = inspect.signature(recipe, eval_str=True).parameters
    except Exception:  # A name in an annotation may exist for type checkers only.
        found = inspect.signature(recipe).parameters
    fields = annotations_of(recipe)
    return {
        name: p.replace(annotation=fields.get(name, p.annotation))
        for name, p in found.items()
    }


def annotations_of(cls: Any) -> dict[str, Any]:
    """The annotations of the fields of a Module class; empty for anything else."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        return {}
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception:  # See `parameters_of`.
        hints = {}
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    return {name: hints.get(name, written) for name, written in fields.items()}


def is_transform(annotation: Any) -> bool:
    """Whether an annotation is a class of transforms, a union with one, or its name."""
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        heads = (part.split("[")[0].split(".")[-1] for part in annotation.split("|"))
        return bool(_TRANSFORMS & {head.strip() for head in heads})
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return is_transform(arguments[0])
    if origin in (Union, types.UnionType):
        return any(map(is_transform, arguments))
    return getattr(origin or annotation, "__name__", "") in _TRANSFORMS


def is_first_guess(annotation: Any) -> bool:
    """Whether an annotation contains the mark of a first guess."""
    if typing.get_origin(annotation) is Annotated:
        marks = [m for m in annotation.__metadata__ if isinstance(m, str)]
        if FIRST_GUESS in marks:
            return True
    return any(map(is_first_guess, typing.get_args(annotation)))


def wrapped_by(parameters: Parameters) -> list[str]:
    """The parameters that are optimizers to wrap."""
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, p in parameters.items()
        if p.kind not in many and is_transform(p.annotation)
    ]


def is_wrapper(recipe: Recipe) -> bool:
    """Whether the first parameter of a recipe is an optimizer to wrap."""
    parameters = parameters_of(recipe)
    return wrapped_by(parameters)[:1] == list(parameters)[:1] != []


def filled(recipe: Recipe, **keywords: Any) -> Any:
    """Calls a recipe with `keywords`, and fills in the other required arguments.

    **Raises:** `TypeError` for a required parameter that cannot be filled in.
    """
    wrapped = wrapped_by(parameters_of(recipe))
    values = {
        name: BASE if name in wrapped else eval(_VALUES[name])
        for name in _required(recipe)
        if name not in keywords
    }
    return recipe(**values, **keywords)


def filled_code(recipe: Recipe, **keywords: str) -> str:
    """The call that `filled` makes, as code; keywords are code too."""
    known = _VALUES | dict.fromkeys(wrapped_by(parameters_of(recipe)), BASE_CODE)
    values = {name: known[name] for name in _required(recipe)} | keywords
    arguments = ", ".join(f"{name}={value}" for name, value in values.items())
    return f"{name_of_recipe(recipe)}({arguments})"


def name_of_recipe(recipe: Recipe) -> str:
    """The name of a recipe in code."""
    return getattr(recipe, "__name__", "recipe")


def _required(recipe: Recipe) -> list[str]:
    parameters = parameters_of(recipe)
    known = {*wrapped_by(parameters), *_VALUES}
    named = []
    for p in parameters.values():
        if p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if p.name not in known:
            raise TypeError(
                f"{getattr(recipe, '__name__', recipe)} requires `{p.name}`, which has "
                f"no default: call it, and pass what it returns.{_hint(p)}"
            )
        named.append(p.name)
    return named


def _hint(p: inspect.Parameter) -> str:
    if not re.search("inner|optimi[sz]er|transform", p.name):
        return ""
    return f" If `{p.name}` is an optimizer to wrap, annotate it as `Transform`."
