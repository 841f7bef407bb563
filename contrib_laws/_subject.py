"""The transform under test: how to run it, vary it and write it as code."""

import contextlib
import functools as ft
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from contrib_core import AbstractTransform, as_transform, FromOptax, name_of, Transform
from contrib_core.claims import Terms

from ._code import as_test, making_code
from ._recipe import (
    annotations_of,
    BASE,
    BASE_CODE,
    filled,
    filled_code,
    is_transform,
    is_wrapper,
    Parameters,
    parameters_of,
    recipe_of,
)


Wrappers = Mapping[str, Callable[[Any], Transform]]
"""Wrappers by name, each a function from a transform to a transform."""


class Subject:
    """A transform under test, with the programs that were compiled for it.

    **Arguments:**

    - `transform`: anything with `init` and `update`, or a recipe: a function or a class
        that makes such a thing. A recipe is a wrapper if its first parameter is
        annotated as a transform (`contrib_core.Transform`, `AbstractTransform`, or an
        `optax.GradientTransformation`). Required optimizers and a required learning
        rate are filled in.
    - `name`: its name in reports.
    - `code`: lines that make `transform`, for counterexamples.
    - `wrappers`: further wrappers that it must compose with, besides those of the core.
    - `largest_gradient`: gradients up to this size must leave it finite.
    - `guess`: the name of its first guess of the distance to the solution: a parameter
        of the recipe, or a field. By default, the one annotated with
        [`contrib_core.ranges.Guess`][].
    - `terms`: for a law, by its name, the field of the state or the parameter of the
        recipe that stands for each term of its formula:
        `{"monotone": {"distance": "d"}}`. States and transforms of this package
        declare their own `terms`, in the same form.

    **Raises:** `TypeError` if `transform` is neither a transform nor a recipe, or if a
    required parameter of the recipe cannot be filled in.
    """

    def __init__(
        self,
        transform: Any,
        *,
        name: str | None = None,
        code: str = "",
        wrappers: Wrappers | None = None,
        largest_gradient: float = 1e30,
        guess: str | None = None,
        terms: Terms | None = None,
    ):
        self.recipe = recipe_of(transform)
        self.given: Any = transform if self.recipe is None else filled(self.recipe)
        self.rule: AbstractTransform = as_transform(self.given)
        self.name = name or _name(transform, self.rule)
        self.code = code or making_code(transform, self.recipe)
        self.wrappers = dict(wrappers or {})
        self.largest_gradient = largest_gradient
        self.guess = guess
        self.terms = dict(terms or {})
        self.notes: dict[str, str] = {}
        self._variants: dict[str, Subject] = {}
        self._known: dict[str, Any] = {}
        self._traces = 0
        self._compiled: dict[Any, Callable[..., Any]] = {}

    # How it is called

    @property
    def is_ours(self) -> bool:
        """Whether it is an `AbstractTransform`, and not one like optax's."""
        return isinstance(self.given, AbstractTransform)

    @property
    def takes(self) -> frozenset[str]:
        """The extras that `update` accepts, among those that exist."""
        known = frozenset({"value", "grad_fn", "key"})
        if isinstance(self.rule, FromOptax) and self.rule.extras is not None:
            return known & self.rule.extras
        return known

    @ft.cached_property
    def needs(self) -> frozenset[str]:
        """The extras that `update` requires. Optax does not declare them, so for its
        transformations they are found by trial."""
        if self.is_ours:
            return self.rule.needs & {"value", "grad_fn", "key"}
        alone = [frozenset({name}) for name in sorted(self.takes)]
        return next(filter(self._does_with, [frozenset(), *alone]), self.takes)

    def _does_with(self, names: frozenset[str]) -> bool:
        """Whether `update` works with these extras only."""

        def update(params: Any) -> Any:
            extras = {
                "value": jnp.ones((), params.dtype),
                "grad_fn": lambda params, *_: params,
                "key": jax.random.key(0),
            }
            some = {name: extras[name] for name in names}
            return self.rule.update(params, self.rule.init(params), params, **some)

        try:
            jax.eval_shape(update, jax.ShapeDtypeStruct((1,), "float32"))
        except Exception:
            return False
        return True

    def promotion(self) -> contextlib.AbstractContextManager[None]:
        """The promotion mode to run it under: optax mixes dtypes."""
        if self.is_ours:
            return contextlib.nullcontext()
        return jax.numpy_dtype_promotion("standard")

    # How it is made

    @ft.cached_property
    def parameters(self) -> Parameters:
        """The parameters of its recipe; none if it has no recipe."""
        return {} if self.recipe is None else parameters_of(self.recipe)

    @property
    def is_wrapper(self) -> bool:
        """Whether it is made by a recipe that wraps an optimizer."""
        return self.recipe is not None and is_wrapper(self.recipe)

    def parameter(self, law: str, term: str) -> str | None:
        """The parameter of the recipe that stands for a term of a law; `None` if
        neither the caller nor the transform names one."""
        own = type(self.given).terms if self.is_ours else {}
        for terms in (self.terms, own):
            if (name := terms.get(law, {}).get(term)) in self.parameters:
                return name
        return None

    def make(self, *args: Any, **keywords: Any) -> Any:
        """Another transform made by its recipe."""
        if self.recipe is None:
            raise TypeError(f"{self.name} is not made by a recipe.")
        return self.recipe(*args) if args else filled(self.recipe, **keywords)

    def make_code(self, **keywords: str) -> str:
        """The call of `make`, as code; keywords are code too."""
        return "" if self.recipe is None else filled_code(self.recipe, **keywords)

    @property
    def inner(self) -> Any:
        """The transform that it wraps; `None` if it wraps none that is known."""
        if self.is_wrapper:
            return BASE
        name = self._inner_field
        return None if name is None else getattr(self.given, name)

    @property
    def inner_code(self) -> str:
        """The transform that it wraps, as code."""
        return BASE_CODE if self.is_wrapper else f"transform.{self._inner_field}"

    @property
    def _inner_field(self) -> str | None:
        """The first field that holds a transform, and is annotated as one."""
        for name, annotation in annotations_of(type(self.given)).items():
            found = getattr(self.given, name, None)
            if is_transform(annotation) and isinstance(found, AbstractTransform):
                return name
        return None

    # Computed once

    def variant(self, name: str, make: Callable[[], Any]) -> "Subject":
        """Another transform to compare with, made and compiled once."""
        if name not in self._variants:
            self._variants[name] = Subject(make())
        return self._variants[name]

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, computed once for each `key`."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def compiled(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` under `jax.jit`, made once for each `key`. Every trace of it
        counts in `traces`."""

        @ft.wraps(function)
        def counted(*args: Any) -> Any:
            self._traces += 1
            return function(*args)

        if key not in self._compiled:
            self._compiled[key] = jax.jit(counted)
        return self._compiled[key]

    @property
    def traces(self) -> int:
        """How many programs were compiled, for variants too."""
        return self._traces + sum(v.traces for v in self._variants.values())

    # As code

    def as_test(self, law: str, code: str) -> str:
        """`code` as a test that runs by itself. If no code is known that makes the
        transform, the reader must fill in the first line of the test."""
        if not code:
            return ""
        made = self.code or f"transform = ...  # {self.name}, as it was checked"
        return as_test(law, made, code)


def _name(transform: Any, rule: AbstractTransform) -> str:
    if isinstance(transform, AbstractTransform):
        return name_of(transform)
    return getattr(transform, "__name__", type(transform).__name__)
