"""The sources, modules and classes of the packages, for rules of construction.

Each rule is a function that returns its violations in a source or a class. It runs
over the packages, where it must find none, and over a bad example, where it must find
some.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


ROOT = Path(__file__).parents[2]

# A package may import only the packages before it.
PACKAGES = ["contrib_core", "contrib_algos", "contrib_wrappers", "contrib_laws"]

Violations = list[str]


def sources(*packages: str) -> dict[str, str]:
    """The sources of packages, by path."""
    paths = [p for name in packages for p in sorted((ROOT / name).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def modules() -> Iterator[ModuleType]:
    """All modules of the packages, imported."""
    for package in map(importlib.import_module, PACKAGES):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def classes(base: type) -> list[type]:
    """The subclasses of `base` that the packages define."""
    found = {
        cls
        for module in modules()
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, base)
        if cls.__module__ == module.__name__
    }
    return sorted(found, key=lambda cls: cls.__qualname__)


def is_abstract(cls: type) -> bool:
    """Whether the name starts with "Abstract", as in equinox."""
    return cls.__name__.startswith("Abstract")


def package_of(name: str) -> str:
    """The package of a module with this name."""
    return name.split(".")[0]
