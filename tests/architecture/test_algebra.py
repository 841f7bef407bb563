"""Algorithms are written in the algebra of trees: no per-leaf code, no casts."""

import ast

import pytest
from support.sources import package_of, sources, Violations


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


# Primitives for trees with an axis of examples, which only private training needs.
PRIMITIVES = {
    f"contrib_algos/privacy/{name}.py"
    for name in ("_devices", "_examples", "_precise", "_random")
}


def test_algorithms_are_written_in_the_algebra():
    found = {
        path: violations
        for path, source in sources("contrib_algos").items()
        if (violations := not_algebra(source))
    }
    assert set(found) == PRIMITIVES, found


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
def test_code_in_the_algebra_is_allowed(source: str):
    assert not not_algebra(source)
