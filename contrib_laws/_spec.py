"""Specifications of a transform on the command line: `MODULE:EXPRESSION`."""

import ast
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from types import ModuleType
from typing import Any

from contrib_core.claims import Terms

from ._report import did_you_mean
from ._subject import filled_code, Subject


_EXAMPLE = "as in `mypkg.rules:my_rule(0.1)`"


class SpecError(ValueError):
    """Says in one line what is wrong with a specification and what would work."""


def resolve(spec: str, guess: str | None = None, terms: Terms | None = None) -> Subject:
    """The transform of a specification, as a subject.

    **Arguments:**

    - `spec`: `MODULE:NAME`, where the name is a transform or a function that makes one;
        or `MODULE:EXPRESSION`, in the names of that module. Names of other modules are
        written in full: `mypkg.rules:my_wrapper(other.my_rule(0.1))`.
    - `guess`, `terms`: as for [`contrib_laws.Subject`][].

    **Raises:** `SpecError`, which says in one line what is wrong and what would work.
    """
    module_name, _, expression = map(str.strip, spec.partition(":"))
    is_module = all(part.isidentifier() for part in module_name.split("."))
    if not is_module or module_name.endswith(".py") or not expression:
        raise SpecError(_malformed(spec))
    parsed = _parsed(expression)
    module = _imported(module_name)
    names = _names(parsed, module)
    found = _evaluated(spec, parsed, names, module)
    try:
        subject = Subject(found, name=expression, guess=guess, terms=terms)
        subject.code = _code(subject, module, parsed, names)
    except TypeError as error:
        raise SpecError(f"`{spec}`: {_one_line(error)}{_call(spec, found)}") from error
    except Exception as error:
        raise SpecError(f"`{spec}` raises {_described(error)}") from error
    return subject


def _malformed(spec: str) -> str:
    """The error for text that is no `MODULE:EXPRESSION`, with what was meant."""
    place, colon, expression = spec.partition(":")
    if not colon and not place.endswith(".py"):
        head, parenthesis, arguments = spec.partition("(")
        place, _, name = head.rpartition(".")
        expression = name + parenthesis + arguments
        if expression == spec and not parenthesis:
            place, expression = name, ""
    place = place.removesuffix(".py").replace("/", ".").strip(".")
    meant = f"`{place or 'MODULE'}:{expression or 'NAME'}`"
    example = "" if place and expression else f", {_EXAMPLE}"
    return f"`{spec}` is not a module, a colon and a name. Write {meant}{example}."


def _parsed(expression: str) -> ast.Expression:
    try:
        return ast.parse(expression, mode="eval")
    except SyntaxError as error:
        raise SpecError(
            f"`{expression}` is not a Python expression ({error.msg}); write a name or "
            f"a call, in quotes for the shell, {_EXAMPLE}."
        ) from error


def _imported(name: str) -> ModuleType:
    # `python -m` has the working directory on the path; other callers may not.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{name}.".startswith(f"{missing}."):
            raise SpecError(f"`{name}` needs `{missing}`, which is missing.") from error
        parent = missing.rpartition(".")[0]
        path = getattr(sys.modules.get(parent), "__path__", ()) if parent else None
        known = [f"{parent}.{m.name}".strip(".") for m in pkgutil.iter_modules(path)]
        hint = did_you_mean(missing, known)
        raise SpecError(
            f"there is no module `{missing}`{hint or '.'} The search covers "
            f"{os.getcwd()} and the path of Python."
        ) from error
    except Exception as error:
        raise SpecError(f"importing `{name}` raises {_described(error)}") from error


def _names(parsed: ast.Expression, module: ModuleType) -> dict[str, Any]:
    """The values of the names in an expression: attributes of the module, and before a
    dot any other module."""
    names = {
        node.id: getattr(module, node.id)
        for node in ast.walk(parsed)
        if isinstance(node, ast.Name) and hasattr(module, node.id)
    }
    for node in ast.walk(parsed):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if name not in names and importlib.util.find_spec(name) is not None:
                names[name] = _imported(name)
    return names


def _evaluated(
    spec: str, parsed: ast.Expression, names: dict[str, Any], module: ModuleType
) -> Any:
    try:
        return eval(compile(parsed, "<specification>", "eval"), dict(names))
    except Exception as error:
        if isinstance(error, NameError) and error.name not in (None, *dir(module)):
            raise SpecError(_unknown(error.name or "", module)) from error
        hint = _hint(error, parsed, names)
        raise SpecError(f"`{spec}` raises {_described(error)}{hint}") from error


def _hint(error: Exception, parsed: ast.Expression, names: dict[str, Any]) -> str:
    """The end of a sentence about an exception: what was meant, if that is clear."""
    if isinstance(error, AttributeError):
        return did_you_mean(error.name or "", dir(error.obj))
    called = getattr(parsed.body, "func", None)
    # Evaluating anything else again would raise the same error again.
    if isinstance(error, TypeError) and isinstance(called, ast.Name | ast.Attribute):
        name = ast.unparse(called)
        if parameters := _parameters(eval(name, dict(names))):
            return f"; it is `{name}{inspect.Signature(parameters)}`"
    return ""


def _unknown(name: str, module: ModuleType) -> str:
    hint = did_you_mean(name, dir(module))
    return (
        f"`{module.__name__}` has no `{name}`{hint or '.'} Write names of other "
        "modules in full, as in `mypkg.rules.my_rule(0.1)`."
    )


def _call(spec: str, function: Any) -> str:
    """A sentence about a function with required arguments; empty if it has none."""
    required = [
        f"{p.name}=..."
        for p in _parameters(function)
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return f" Write `{spec}({', '.join(required)})`." if required else ""


def _parameters(function: Any) -> list[inspect.Parameter]:
    """The parameters of a function without annotations; none without a signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.replace(annotation=p.empty) for p in parameters]


def _code(
    subject: Subject,
    module: ModuleType,
    parsed: ast.Expression,
    names: dict[str, Any],
) -> str:
    """Lines that import the names in an expression and make `transform`."""
    lines = [
        f"import {x.__name__}" + (f" as {name}" if name != x.__name__ else "")
        for name, x in sorted(names.items())
        if isinstance(x, ModuleType)
    ]
    own = sorted(name for name, x in names.items() if not isinstance(x, ModuleType))
    if own:
        lines.append(f"from {module.__name__} import {', '.join(own)}")
    expression = ast.unparse(parsed)
    if subject.recipe is not None:
        simple = isinstance(parsed.body, ast.Name | ast.Attribute | ast.Call)
        called = expression if simple else f"({expression})"
        expression = f"{called}({filled_code(subject.recipe).partition('(')[2]}"
    return "\n".join([*lines, f"transform = {expression}"])


def _described(error: Exception) -> str:
    """An exception in one line, with the line of a local file that it comes from."""
    text = f"{type(error).__name__}: {_one_line(error)}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = os.path.relpath(frame.filename)
        is_here = not path.startswith(("..", "<"))
        if is_here and not isinstance(error, SyntaxError):
            return f"{text} ({path}, line {frame.lineno})"
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
