"""Words run downwards only: a package names nothing that stands above it."""

import importlib
import re
from collections.abc import Iterable
from types import ModuleType

import pytest
from support.sources import classes, PACKAGES, sources, Violations

from contrib_core import AbstractState


# Words of plain English and of the algebra, which are also names above.
ENGLISH = {
    "average",
    "check",
    "coordinates",
    "epsilon",
    "exponential",
    "fill",
    "largest",
    "normalize",
    "numbers",
    "pairs",
    "precision",
    "probe",
    "reals",
    "scalars",
    "step_size",
    "structures",
    "trees",
    "uniform",
}


def names_above(package: str) -> set[str]:
    """The packages above, their public names, and the fields of their states."""
    above = PACKAGES[PACKAGES.index(package) + 1 :]
    names = set(above)
    for other in map(importlib.import_module, above):
        names |= {
            name
            for name, x in vars(other).items()
            if not name.startswith("_") and not isinstance(x, ModuleType)
        }
    for cls in classes(AbstractState):
        if cls.__module__.split(".")[0] in above:
            # A name of one word, such as `count`, is English.
            names |= {name for name in cls.__annotations__ if "_" in name}
    known = vars(importlib.import_module(package)).keys() | {"inner_state"}
    return names - known - ENGLISH


def said_above(source: str, names: Iterable[str]) -> Violations:
    """The words in code, comments, docstrings and messages of `source` that are names
    from above, except attributes of optax."""
    others = re.sub(r"optax\.\w+", "", source)
    words = set(re.findall(r"[A-Za-z_][A-Za-z_0-9]*", others))
    return sorted(words & set(names))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_names_what_stands_above_it(package: str):
    names = names_above(package)
    assert package == PACKAGES[-1] or {"contrib_laws", "Report"} <= names
    for path, source in sources(package).items():
        assert not said_above(source, names), path


@pytest.mark.parametrize(
    "source",
    [
        "# As in DoG.",
        'raise ValueError("put GaussianNoise in front")',
        "def f():\n    '''Used by contrib_wrappers.'''",
        "x = state.estim_lr",
    ],
)
def test_words_from_above_are_found(source: str):
    assert said_above(source, names_above("contrib_core"))
