"""Types are checked at run time in the tests, and by users' type checkers."""

import ast
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError
from support.sources import modules, PACKAGES, ROOT, sources, Violations

import contrib_algos
import contrib_core
import contrib_wrappers
from contrib_core import tree


def postponed_annotations(source: str) -> Violations:
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if "annotations" in {alias.name for alias in node.names}
    ]


def test_annotations_are_not_postponed():
    """Annotations are the roles of fields, and must be objects at run time."""
    for path, source in sources(*PACKAGES).items():
        assert not postponed_annotations(source), path
    assert postponed_annotations("from __future__ import annotations")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_say_that_they_are_typed(package: str):
    assert (ROOT / package / "py.typed").is_file()


# Types at run time


def refuses(call: Callable[..., Any], *args: Any) -> bool:
    """Whether the run-time types stop a call."""
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
    """The import hook is on in each package."""
    assert refuses(call, *args)


def test_right_types_are_not_refused():
    assert not refuses(tree.scale, 2, jnp.ones(3))
    assert not refuses(contrib_algos.adam, jnp.asarray(1e-3))


@pytest.mark.parametrize("module", [*modules()], ids=lambda m: m.__name__)
def test_every_module_is_checked(module: ModuleType):
    """The hook loaded every module, including those that no call above reaches."""
    loader = module.__spec__ and module.__spec__.loader
    assert type(loader).__module__.startswith("jaxtyping")
    assert not type(json.__spec__.loader).__module__.startswith("jaxtyping")
