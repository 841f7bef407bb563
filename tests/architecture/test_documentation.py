"""Every public name has a docstring."""

import ast
import importlib
from collections.abc import Iterable
from types import ModuleType

import pytest
from support.sources import PACKAGES, sources, Violations


def documented(source: str) -> dict[str, bool]:
    """Whether each name that a module defines at its top level has a docstring.

    An alias has a docstring if a string is below it, or if its target has one.
    """
    body = ast.parse(source).body
    found = {}
    for node, below in zip(body, [*body, None][1:], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = bool(ast.get_docstring(node))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            described = isinstance(below, ast.Expr) and isinstance(
                below.value, ast.Constant
            )
            if isinstance(node.value, ast.Name):  # Another name for the same thing.
                described |= found.get(node.value.id, False)
            found |= {ast.unparse(target): described for target in targets}
    return found


def public(init: str) -> set[str]:
    """The names that an `__init__` re-exports."""
    return {
        alias.asname or alias.name
        for node in ast.parse(init).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def undocumented(init: str, submodules: Iterable[str]) -> Violations:
    known: dict[str, bool] = {}
    for source in submodules:
        known |= documented(source)
    return sorted(name for name in public(init) if not known.get(name))


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_documented(package: str):
    files = sources(package)
    init = files.pop(f"{package}/__init__.py")
    missing = undocumented(init, files.values())
    missing = [name for name in missing if not _is_documented_module(package, name)]
    assert public(init) and not missing
    assert ast.get_docstring(ast.parse(init))


def _is_documented_module(package: str, name: str) -> bool:
    member = getattr(importlib.import_module(package), name)
    return isinstance(member, ModuleType) and bool(member.__doc__)


def test_primitives_are_documented():
    names = documented(sources("contrib_core")["contrib_core/tree.py"])
    missing = [name for name, has in names.items() if not has and name[0] != "_"]
    assert names and not missing


def test_missing_documentation_is_found():
    init = "from ._a import A as A, f as f, T as T, missing as missing"
    good = 'class A:\n    "A."\ndef f():\n    "F."\nT = int\n"T."\n'
    assert undocumented(init, [good]) == ["missing"]
    bad = "class A:\n    x: int\ndef f():\n    return 1\nT = int\n"
    assert undocumented(init, [bad]) == ["A", "T", "f", "missing"]
