"""Every example in a docstring, the README and the documentation runs.

They run under strict promotion, like the other tests, and under the modes that users
have.
"""

import ast
import contextlib
import doctest
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest


ROOT = Path(__file__).parents[2]
PACKAGES = ["contrib_core", "contrib_algos", "contrib_wrappers", "contrib_laws"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """The docstrings in `source`, each with the name of what it documents."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _Documented) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "module"), text


def blocks(page: str) -> list[str]:
    """The Python blocks of a Markdown page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def run_doctest(text: str, name: str, namespace: dict[str, Any]) -> int:
    """Runs the `>>>` examples in `text` and compares what they print.

    **Returns:** the number of examples.
    """
    test = doctest.DocTestParser().get_doctest(text, namespace, name, name, 0)
    # The runner changes a copy of the namespace, which later blocks need.
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report = io.StringIO()
    runner.run(test, out=report.write, clear_globs=False)
    namespace.update(test.globs)
    assert not runner.failures, report.getvalue()
    return len(test.examples)


def run_page(page: str, name: str) -> None:
    """Runs all blocks of a page in one namespace."""
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for i, block in enumerate(blocks(page)):
        if block.lstrip().startswith(">>>"):
            assert run_doctest(block, name, namespace)
        else:
            exec(compile(block, f"{name}, block {i}", "exec"), namespace)


EXAMPLES = {
    f"{path.relative_to(ROOT)}:{name}": text
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    for name, text in docstrings(path.read_text())
    if ">>>" in text
}


@contextlib.contextmanager
def modes(promotion: str, rank: str) -> Iterator[None]:
    with jax.numpy_dtype_promotion(promotion), jax.numpy_rank_promotion(rank):
        yield


@pytest.fixture(
    params=[
        pytest.param(("strict", "raise"), marks=pytest.mark.thorough),
        ("standard", "allow"),
    ],
    ids=lambda p: p[0],
)
def promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    with modes(*request.param):
        yield


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring(name: str, promotion):
    assert run_doctest(EXAMPLES[name], name, {})


@pytest.mark.parametrize("path", [p for p in PAGES if p.exists()], ids=lambda p: p.name)
def test_page(path: Path, promotion):
    run_page(path.read_text(), path.name)


def test_there_are_examples():
    packages = {name.split("/")[0] for name in EXAMPLES}
    assert {"contrib_algos", "contrib_wrappers"} <= packages
    assert blocks((ROOT / "README.md").read_text())


def test_every_prompt_is_in_a_fence():
    """Outside of a fence, documentation would show it as text."""
    for name, text in EXAMPLES.items():
        fenced = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
        assert text.count(">>>") == fenced.count(">>>"), name


# The checks themselves


@pytest.mark.parametrize(
    "text",
    [
        ">>> 1 + 1\n3\n",
        ">>> undefined\n",
        ">>> import jax.numpy as jnp\n>>> jnp.ones(2) + jnp.ones((2, 2))\n",
    ],
)
def test_wrong_doctests_fail(text: str):
    with modes("strict", "raise"), pytest.raises(AssertionError):
        run_doctest(text, "wrong", {})


def test_wrong_pages_fail():
    with pytest.raises(NameError):
        run_page("```python\nundefined\n```\n", "wrong.md")
    with pytest.raises(AssertionError):
        run_page("```python\nx = 1\n```\n\n```python\n>>> x\n2\n```\n", "wrong.md")
