"""The code that makes a transform, and tests that begin with it."""

import dataclasses
import inspect
import math
import re
import sys
import textwrap
from typing import Any

from ._recipe import filled_code, Recipe


_IMPORT = re.compile(r"(?:import|from) ")
_IMPORTS = (
    "import jax",
    "import jax.numpy as jnp",
    "import numpy as np",
    "import equinox as eqx",
    # Whole modules, because other packages have a `chain` or a `scale` too.
    "import contrib_core",
    "import contrib_laws",
)


def as_test(law: str, made: str, code: str) -> str:
    """A test that runs by itself: the imports, then `made`, then `code`."""
    lines = f"{made}\n{code}".strip().splitlines()
    given = [line for line in lines if _IMPORT.match(line)]
    rest = "\n".join(line for line in lines if line not in given)
    if re.search("float64|complex128", rest) and "enable_x64" not in rest:
        rest = f"with jax.enable_x64(True):\n{textwrap.indent(rest, '    ')}"
    rest = re.sub(r"(?<=\S)\n(?=def )", "\n\n", rest)
    head = [x for x in _IMPORTS if _is_used(x, rest)] + given
    head = "\n".join(dict.fromkeys(sorted(head, key=_import_order)))
    return f"{head}\n\n\ndef test_{law}():\n{textwrap.indent(rest, '    ')}\n"


def _is_used(line: str, code: str) -> bool:
    """Whether `code` uses the name that an import brings."""
    name = line.replace(" as ", " ").split()[-1]
    return re.search(rf"(?<![.\w]){name}\b", code) is not None


def _import_order(line: str) -> tuple[bool, bool, str]:
    return ("jax" not in line.split()[1], line.startswith("from"), line)


def making_code(transform: Any, recipe: Recipe | None) -> str:
    """Lines that make a transform; empty if its class or recipe cannot be imported."""
    maker = type(transform) if recipe is None else recipe
    name = getattr(maker, "__qualname__", "")
    module = getattr(maker, "__module__", None) or "__main__"
    public = module.split("._")[0]
    if getattr(sys.modules.get(public), name, None) is not maker:
        return ""  # For example, it is defined inside a function.
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
    """Whether the `repr` of `x` is code for it."""
    if isinstance(x, float):
        return math.isfinite(x)
    return x is None or isinstance(x, int | str)
