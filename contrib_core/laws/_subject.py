"""What laws are checked of: a transform, and how to run it and write it down."""

import contextlib
import dataclasses
import functools as ft
import inspect
import math
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._combine import scale_by_learning_rate
from .._optax import as_transform, FromOptax
from .._transform import AbstractTransform, name_of, Transform


Wrappers = Mapping[str, Callable[[Any], Transform]]
"""Wrappers by name, each a function from a transform to a transform."""

# What a recipe is given that cannot be called without: optimisers to wrap, by which a
# wrapper is known, and numbers.
BASE = scale_by_learning_rate(0.1)
_OPTIMIZERS = ("inner", "optimizer", "base_optimizer", "adv_optimizer")
_NUMBERS = {"learning_rate": "0.1", "mask": "True"}
BASE_CODE = "contrib_core.scale_by_learning_rate(0.1)"

# By which a rule's first guess of the distance to the solution is known.
GUESSES = (
    "init_learning_rate",
    "reps_rel",
    "estim_lr0",
    "init_estim_sq_dist",
    "s_init",
)


class Subject:
    """A transform that is being checked, with what was compiled of it.

    **Arguments:**

    - `transform`: anything with `init` and `update`, or a recipe: a function that
        returns such a thing. A wrapper is a recipe whose first arguments are the
        optimisers that it wraps; those that it requires are filled in, and so is a
        learning rate.
    - `name`: what reports call it.
    - `code`: lines that make `transform`, for counterexamples.
    - `wrappers`: what else it must compose with, besides the core's own.
    - `largest_gradient`: gradients up to this must be survived.
    - `guess`: the name of its first guess of the distance to the solution, if that is
        none of those that rules have here and in `optax.contrib`.

    **Raises:** `TypeError` if `transform` is neither, or a recipe that requires more.
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
    ):
        self.recipe = _recipe(transform)
        self.given: Any = transform if self.recipe is None else filled(self.recipe)
        self.rule: AbstractTransform = as_transform(self.given, is_first=True)
        self.name = name or _name(transform, self.rule)
        self.code = code or _code(transform, self.recipe)
        self.wrappers = dict(wrappers or {})
        self.largest_gradient = largest_gradient
        self.guesses = GUESSES if guess is None else (guess,)
        self.notes: dict[str, str] = {}
        self._variants: dict[str, Subject] = {}
        self._known: dict[str, Any] = {}
        self._traces = 0
        self._compiled: dict[Any, Callable[..., Any]] = {}

    @property
    def is_ours(self) -> bool:
        """Whether it is an `AbstractTransform`, and not something of optax's kind."""
        return isinstance(self.given, AbstractTransform)

    @property
    def inner(self) -> Any:
        """The transform that it wraps; `None` if it wraps none, or it is not known."""
        if self.recipe is not None and wraps(self.recipe):
            return BASE
        for name in _OPTIMIZERS:
            if isinstance(found := getattr(self.given, name, None), AbstractTransform):
                return found
        return None

    @property
    def takes(self) -> frozenset[str]:
        """The extras that `update` takes, of all there are."""
        known = frozenset({"value", "grad_fn", "key"})
        if isinstance(self.rule, FromOptax) and self.rule.extras is not None:
            return known & self.rule.extras
        return known

    @ft.cached_property
    def needs(self) -> frozenset[str]:
        """The extras that `update` cannot do without. Optax does not say, so that
        they are tried."""
        if self.is_ours:
            return self.rule.needs - {"params", "iterates"}
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
        """The context in which it is run: optax mixes dtypes."""
        if self.is_ours:
            return contextlib.nullcontext()
        return jax.numpy_dtype_promotion("standard")

    @property
    def traces(self) -> int:
        """How many programs were compiled of it, and of what was run beside it."""
        return self._traces + sum(v.traces for v in self._variants.values())

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Those of its recipe; none if it has none."""
        return {} if self.recipe is None else inspect.signature(self.recipe).parameters

    def make(self, *args: Any, **keywords: Any) -> Any:
        """Another transform of its recipe."""
        if self.recipe is None:
            raise TypeError(f"{self.name} is not made by a recipe.")
        return self.recipe(*args) if args else filled(self.recipe, **keywords)

    def make_code(self, **keywords: str) -> str:
        """That, as code, of the code of each keyword."""
        return "" if self.recipe is None else filled_code(self.recipe, **keywords)

    def variant(self, name: str, make: Callable[[], Any]) -> "Subject":
        """Another transform that is run beside it; made and compiled once."""
        if name not in self._variants:
            self._variants[name] = Subject(make())
        return self._variants[name]

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, computed once."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def compiled(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` under `jax.jit`, made once for each `key`; whenever it is traced,
        that is counted in `traces`."""

        @ft.wraps(function)
        def counted(*args: Any) -> Any:
            self._traces += 1
            return function(*args)

        if key not in self._compiled:
            self._compiled[key] = jax.jit(counted)
        return self._compiled[key]

    @property
    def inner_code(self) -> str:
        """What it wraps, as code."""
        if self.recipe is not None and wraps(self.recipe):
            return BASE_CODE
        return next(f"transform.{n}" for n in _OPTIMIZERS if hasattr(self.given, n))

    def as_test(self, law: str, code: str) -> str:
        """`code` as a test that runs by itself, if there is code of the transform; else
        its first line is to be filled in."""
        if not code:
            return ""
        made = self.code or f"transform = ...  # {self.name}, as it was checked"
        lines = f"{made}\n{code}".strip().splitlines()
        given = [line for line in lines if _IMPORT.match(line)]
        rest = "\n".join(line for line in lines if line not in given)
        if re.search("float64|complex128", rest) and "enable_x64" not in rest:
            rest = f"with jax.enable_x64(True):\n{textwrap.indent(rest, '    ')}"
        rest = re.sub(r"(?<=\S)\n(?=def )", "\n\n", rest)
        head = [x for x in _IMPORTS if _is_used(x, rest)] + given
        head = "\n".join(dict.fromkeys(sorted(head, key=_import_order)))
        return f"{head}\n\n\ndef test_{law}():\n{textwrap.indent(rest, '    ')}\n"


_IMPORT = re.compile(r"(?:import|from) ")
_IMPORTS = (
    "import jax",
    "import jax.numpy as jnp",
    "import numpy as np",
    "import equinox as eqx",
    # By their modules, because others have a `chain` or a `scale` too.
    "import contrib_algos",
    "import contrib_core",
)


def _is_used(line: str, code: str) -> bool:
    """Whether `code` uses the name that an import brings."""
    name = line.replace(" as ", " ").split()[-1]
    return re.search(rf"(?<![.\w]){name}\b", code) is not None


def _import_order(line: str) -> tuple[bool, bool, str]:
    return ("jax" not in line.split()[1], line.startswith("from"), line)


def _recipe(transform: Any) -> Callable[..., Any] | None:
    """`transform`, if it is a function that makes one."""
    if callable(getattr(transform, "update", None)) and not isinstance(transform, type):
        return None
    return transform if callable(transform) else None


def _name(transform: Any, rule: AbstractTransform) -> str:
    if isinstance(transform, AbstractTransform):
        return name_of(transform)
    return getattr(transform, "__name__", type(transform).__name__)


def wraps(recipe: Callable[..., Any]) -> bool:
    """Whether a recipe is a wrapper, by its first parameter."""
    parameters = list(inspect.signature(recipe).parameters.values())
    return bool(parameters) and parameters[0].name in _OPTIMIZERS


def filled(recipe: Callable[..., Any], **keywords: Any) -> Any:
    """What a recipe makes of `keywords`, and of defaults for what it requires else.

    **Raises:** `TypeError` for a parameter that there is no default for.
    """
    required = {
        name: BASE if name in _OPTIMIZERS else eval(_NUMBERS[name])
        for name in _required(recipe)
        if name not in keywords
    }
    return recipe(**required, **keywords)


def filled_code(recipe: Callable[..., Any], **keywords: str) -> str:
    """The call that `filled` makes, as code, of the code of each keyword."""
    known = _NUMBERS | dict.fromkeys(_OPTIMIZERS, BASE_CODE)
    values = {name: known[name] for name in _required(recipe)} | keywords
    arguments = ", ".join(f"{name}={value}" for name, value in values.items())
    return f"{getattr(recipe, '__name__', 'recipe')}({arguments})"


def _code(transform: Any, recipe: Callable[..., Any] | None) -> str:
    """Lines that make a transform, if others can import what makes it."""
    maker = type(transform) if recipe is None else recipe
    name = getattr(maker, "__qualname__", "")
    module = getattr(maker, "__module__", None) or "__main__"
    public = module.split("._")[0]
    if getattr(sys.modules.get(public), name, None) is not maker:
        return ""  # It is in a function, say.
    made = _call(transform) if recipe is None else filled_code(recipe)
    if not made or public == "__main__":
        return ""
    return f"from {public} import {name}\ntransform = {made}"


def _call(x: Any) -> str:
    """The call that makes a dataclass of numbers, text and `None`."""
    if not dataclasses.is_dataclass(x):
        return ""
    fields = {f.name: f.default for f in dataclasses.fields(x)}
    if [*inspect.signature(type(x)).parameters] != [*fields]:
        return ""
    values = {name: getattr(x, name) for name in fields}
    if not all(map(_is_plain, values.values())):
        return ""
    given = [f"{k}={v!r}" for k, v in values.items() if v is not fields[k]]
    return f"{type(x).__name__}({', '.join(given)})"


def _is_plain(x: Any) -> bool:
    """Whether its `repr` is code of it."""
    if isinstance(x, float):
        return math.isfinite(x)
    return x is None or isinstance(x, int | str)


def _required(recipe: Callable[..., Any]) -> list[str]:
    named = []
    for p in inspect.signature(recipe).parameters.values():
        if p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if p.name not in (*_OPTIMIZERS, *_NUMBERS):
            raise TypeError(
                f"{getattr(recipe, '__name__', recipe)} requires `{p.name}`, and there "
                "is no default to check it with: call it, and pass what it returns."
            )
        named.append(p.name)
    return named
