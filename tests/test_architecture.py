"""The rules of construction: who may import whom, what may be subclassed, and so on.

Each rule is a function that returns its violations, of a source or of a class. It runs
over the three packages, where it must find none, and over a bad example, where it must
find some.
"""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

import contrib_algos
import contrib_core
import contrib_wrappers
from contrib_core import (
    AbstractState,
    AbstractTransform,
    Count,
    Flag,
    KeyData,
    P,
    Scalar,
    Scalars,
    tree,
)


ROOT = Path(__file__).parent.parent
# In the order in which they may import each other.
PACKAGES = ["contrib_core", "contrib_algos", "contrib_wrappers"]
Violations = list[str]


def sources(*packages: str) -> dict[str, str]:
    """The sources of packages, by path."""
    paths = [p for name in packages for p in sorted((ROOT / name).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def modules() -> Iterator[ModuleType]:
    for package in (contrib_core, contrib_algos, contrib_wrappers):
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
    """By name, as in equinox."""
    return cls.__name__.startswith("Abstract")


# Imports


def imports(tree_: ast.AST, within: Iterable[ast.AST] | None = None) -> Iterator[str]:
    """The absolute modules that are imported anywhere in `tree_`, or in some nodes."""
    for node in ast.walk(tree_) if within is None else within:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def top_level(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run on import: not in functions, nor for the type checker only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from top_level(child)


def package_of(name: str) -> str:
    return name.split(".")[0]


def wrong_direction(source: str, package: str) -> Violations:
    """Imports of a later package, wherever they are."""
    later = PACKAGES[PACKAGES.index(package) + 1 :]
    return [name for name in imports(ast.parse(source)) if package_of(name) in later]


def undeclared(source: str, path: str = "") -> Violations:
    """Imports, when the module itself is imported, of more than the dependencies."""
    allowed = {"jax", "jaxlib", "equinox", "jaxtyping", "numpy", *PACKAGES}
    if path.startswith("contrib_core/laws"):
        allowed.add("hypothesis")  # What `laws` is made of; an extra.
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
    """Recipes may reach for base rules; the Modules may not."""
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
    loaded = imported_by(f"import {', '.join(PACKAGES)}")
    assert set(PACKAGES) <= loaded
    assert not loaded & extras
    assert "optax" in imported_by("import optax")


# What algorithms are written with

_TREE_CALLS = {"tree", "tree_map", "tree_util", "tree_leaves", "tree_flatten", "vmap"}
_CASTS = {"astype", "convert_element_type", "view", "bitcast_convert_type"}


def not_algebra(source: str) -> Violations:
    """Per-leaf code and casts."""
    found = []
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.expr) else ""
        if isinstance(node, ast.Attribute):
            of_jax = ast.unparse(node.value) == "jax"
            if node.attr in _CASTS or (node.attr in _TREE_CALLS and of_jax):
                found.append(text)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names}
            module = getattr(node, "module", None) or ""
            inside = {part for name in names for part in name.split(".")[1:]}
            if "tree_util" in module or "tree_util" in inside:
                found.append(ast.unparse(node))
            if package_of(module) == "jax" and names & (_TREE_CALLS | _CASTS):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            typed = len(node.args) > 1 or any(k.arg == "dtype" for k in node.keywords)
            if called in ("asarray", "array") and typed:
                found.append(text)
            if called in ("float32", "float64", "bfloat16", "float16"):
                found.append(text)
    return found


def test_algorithms_are_written_in_the_algebra():
    for path, source in sources("contrib_algos").items():
        assert not not_algebra(source), path


@pytest.mark.parametrize(
    "source",
    [
        "jax.tree.map(f, x)",
        "jax.tree_util.tree_leaves(x)",
        "jax.tree_map(f, x)",
        "import jax.tree_util as jtu",
        "from jax import tree_util",
        "from jax import tree",
        "from jax.tree_util import tree_map",
        "x.astype(y.dtype)",
        "lax.convert_element_type(x, y)",
        "jnp.asarray(x, jnp.float32)",
        "jnp.asarray(x, dtype=y.dtype)",
        "jnp.float32(x)",
    ],
)
def test_per_leaf_code_and_casts_are_found(source: str):
    assert not_algebra(source)


@pytest.mark.parametrize("source", ["tree.map(f, x)", "jnp.asarray(True)"])
def test_the_algebra_is_allowed(source: str):
    assert not not_algebra(source)


def postponed_annotations(source: str) -> Violations:
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if "annotations" in {alias.name for alias in node.names}
    ]


def test_annotations_are_objects():
    """Since they are the roles of fields."""
    for path, source in sources(*PACKAGES).items():
        assert not postponed_annotations(source), path
    assert postponed_annotations("from __future__ import annotations")


# Documentation


def documented(source: str) -> dict[str, bool]:
    """Whether each name that a module defines at its top level has a docstring.

    That of an alias is the string below it.
    """
    body = ast.parse(source).body
    found = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = bool(ast.get_docstring(node))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            described = isinstance(below, ast.Expr) and isinstance(
                below.value, ast.Constant
            )
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
    member = getattr(sys.modules[package], name)
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


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_say_that_they_are_typed(package: str):
    assert (ROOT / package / "py.typed").is_file()


# Abstract or final

HOOKS = {"needs", "laws", "receive", "eval_point", "metrics"}


def not_abstract_or_final(cls: type) -> Violations:
    """Concrete classes that it derives from, concrete methods that it overrides, and
    abstract ones that it leaves open."""
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
def test_classes_between_are_found(cls: type):
    assert not_abstract_or_final(cls)
    assert not not_abstract_or_final(_Rule)


# Roles


def not_roles(cls: type) -> Violations:
    """Fields whose annotation is not the role that it has in the state."""
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
        if not is_role(annotation) and not _is_abstract_role(annotation, is_role)
    ]


def _is_abstract_role(annotation: Any, is_role: Callable[[Any], bool]) -> bool:
    origin = typing.get_origin(annotation)
    return origin is eqx.AbstractVar and all(map(is_role, typing.get_args(annotation)))


def not_a_state(cls: type) -> Violations:
    """Classes that a transform uses as its state and that are not states."""
    annotation = inspect.signature(getattr(cls, "start")).return_annotation
    state = typing.get_origin(annotation) or annotation
    # Of no state, of inner transforms' states, of optax's.
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


class _BadState(AbstractState[P]):
    total: float


class _UntypedState(AbstractState[P]):
    mean: P
    count: int | None


class _GoodState(AbstractState[P]):
    mean: P
    count: Count | None
    moved: Flag
    total: Scalar
    inner: Any
    other: contrib_algos.DoGState[P]


def test_fields_without_a_role_are_found():
    assert not_roles(_BadState) and not_roles(_UntypedState)
    assert not not_roles(_GoodState)


# Types at run time


def refuses(call: Callable[..., Any], *args: Any) -> bool:
    """Whether a call is stopped by the run-time types."""
    try:
        call(*args)
    except TypeCheckError:
        return True
    return False


WRONG_CALLS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (tree.add, ({"a": jnp.arange(3)}, {"a": jnp.arange(3)})),
    (tree.scale, ("2", jnp.ones(3))),
    (contrib_core.increment, (jnp.asarray(0.5),)),
    (contrib_core.scale, ("fast",)),
    (contrib_core.Scale, ("fast",)),
    (contrib_algos.adam, ("fast",)),
    (contrib_algos.dog, (1.0, [1e-6])),
    (contrib_algos.DoGState, (1, 2, 3, 4)),
    (contrib_algos.DoG, (None,)),
    (contrib_wrappers.schedule_free_sgd, ("fast",)),
    (contrib_wrappers.schedule_free, (contrib_algos.sgd(1.0), None)),
    (contrib_wrappers.RealAndImaginary, (jnp.ones(2), jnp.ones(3))),
]


@pytest.mark.parametrize("call, args", WRONG_CALLS)
def test_wrong_types_are_refused(call: Callable[..., Any], args: tuple[Any, ...]):
    """So the import hook is on, in each of the packages."""
    assert refuses(call, *args)


def test_right_types_are_not_refused():
    assert not refuses(tree.scale, 2, jnp.ones(3))
    assert not refuses(contrib_algos.adam, jnp.asarray(1e-3))


@pytest.mark.parametrize("module", [*modules()], ids=lambda m: m.__name__)
def test_every_module_is_checked(module: ModuleType):
    """The loader is that of the hook, also in modules that no call above reaches."""
    loader = module.__spec__ and module.__spec__.loader
    assert type(loader).__module__.startswith("jaxtyping")
    assert not type(json.__spec__.loader).__module__.startswith("jaxtyping")
