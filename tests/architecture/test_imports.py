"""Packages import only earlier packages and the declared dependencies."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest
from support.sources import package_of, PACKAGES, ROOT, sources, Violations


def imports(tree_: ast.AST, within: Iterable[ast.AST] | None = None) -> Iterator[str]:
    """The absolute modules that are imported anywhere in `tree_`, or in some nodes."""
    for node in ast.walk(tree_) if within is None else within:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def top_level(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run on import: outside of functions and `TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from top_level(child)


def wrong_direction(source: str, package: str) -> Violations:
    """Imports of a later package, wherever they are."""
    later = PACKAGES[PACKAGES.index(package) + 1 :]
    return [name for name in imports(ast.parse(source)) if package_of(name) in later]


def undeclared(source: str, path: str = "") -> Violations:
    """Imports beyond the dependencies that run when the module is imported."""
    allowed = {"jax", "jaxlib", "equinox", "jaxtyping", "numpy", *PACKAGES}
    if path.startswith("contrib_laws"):
        allowed.add("hypothesis")  # The laws are built on it; it comes with an extra.
    parsed = ast.parse(source)
    return [
        name
        for name in imports(parsed, top_level(parsed))
        if package_of(name) not in allowed | sys.stdlib_module_names
    ]


def rules_in_classes(source: str) -> Violations:
    """Uses of names from `contrib_algos` inside of classes."""
    parsed = ast.parse(source)
    names = {
        alias.asname or alias.name
        for node in ast.walk(parsed)
        if isinstance(node, ast.ImportFrom) and node.module
        if package_of(node.module) == "contrib_algos"
        for alias in node.names
    }
    names |= {name for name in imports(parsed) if package_of(name) == "contrib_algos"}
    return [
        node.id
        for cls in ast.walk(parsed)
        if isinstance(cls, ast.ClassDef)
        for node in ast.walk(cls)
        if isinstance(node, ast.Name) and node.id in names
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_have_one_direction(package: str):
    for path, source in sources(package).items():
        assert not wrong_direction(source, package), path


@pytest.mark.parametrize(
    "package, source",
    [
        ("contrib_core", "from contrib_algos import adam"),
        ("contrib_core", "def f():\n    import contrib_wrappers._split"),
        ("contrib_algos", "from contrib_wrappers import schedule_free"),
    ],
)
def test_wrong_directions_are_found(package: str, source: str):
    assert wrong_direction(source, package)


def test_only_dependencies_are_imported():
    for path, source in sources(*PACKAGES).items():
        assert not undeclared(source, path), path


@pytest.mark.parametrize(
    "source",
    [
        "import optax",
        "import matplotlib.pyplot as plt",
        "from sklearn import datasets",
        "try:\n    import hypothesis\nexcept ImportError:\n    pass",
        "class A:\n    import optax",
    ],
)
def test_other_imports_are_found(source: str):
    assert undeclared(source)


@pytest.mark.parametrize(
    "source",
    [
        "if TYPE_CHECKING:\n    import optax",
        "def f():\n    import optax",
        "from . import optax",
        "import functools, jax",
    ],
)
def test_allowed_imports_are_allowed(source: str):
    assert not undeclared(source)


def test_wrappers_need_the_core_only():
    """Recipes may use base rules; Modules may not."""
    for path, source in sources("contrib_wrappers").items():
        assert not rules_in_classes(source), path


@pytest.mark.parametrize(
    "source",
    [
        "from contrib_algos import RMS\nclass W:\n    def f(self):\n        RMS()",
        "import contrib_algos\nclass W:\n    rule: contrib_algos.RMS",
    ],
)
def test_rules_in_wrappers_are_found(source: str):
    assert rules_in_classes(source)


def imported_by(statement: str) -> set[str]:
    """The packages that are loaded in a fresh interpreter after `statement`."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True
    )
    return {package_of(name) for name in json.loads(result.stdout)}


def test_extras_are_not_loaded():
    extras = {"optax", "hypothesis", "matplotlib", "sklearn", "flax", "rich"}
    # The laws need hypothesis, and come with the extra `laws`.
    packages = [name for name in PACKAGES if name != "contrib_laws"]
    loaded = imported_by(f"import {', '.join(packages)}")
    assert set(packages) <= loaded
    assert not loaded & extras
    assert "optax" in imported_by("import optax")
