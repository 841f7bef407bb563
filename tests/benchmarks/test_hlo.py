"""The trees that steps are compiled for, and what is counted in a compiled step."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.hlo import bytes_accessed, bytes_of, instructions, temporary_bytes
from benchmarks.step.program import compiled
from benchmarks.step.rules import RULES
from benchmarks.trees import abstract, number_of_entries, shapes
from contrib_algos import adam


PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_gpt2_small():
    tree = shapes("gpt2", 0)
    assert (len(tree), number_of_entries(tree)) == (148, 124_439_808)


def test_leaves():
    assert list(shapes("leaves:3", 0).values()) == 3 * [(64, 16)]
    assert shapes("one", 5) == {"x": (5,)}


@pytest.mark.parametrize(
    "rule,floor",
    [("sgd", 3), ("adam", 7), ("dog", 5), ("prodigy", 12), ("master_weights", 23)],
)
def test_floor(rule, floor):
    assert RULES[rule].floor == floor


def test_the_page_has_every_rule_and_its_floor():
    rows = re.findall(r"^\| `(\w+)`[^|]*\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert {name: int(floor) for name, floor in rows} == {
        name: rule.floor for name, rule in RULES.items()
    }


def test_bytes_and_instructions_of_a_known_program():
    x = abstract({"x": (1000,)}, "float32")["x"]
    step = jax.jit(lambda x: jnp.sqrt(x) + 1.0).lower(x).compile()
    assert (bytes_of(x), bytes_accessed(step), temporary_bytes(step)) == (4000, 8000, 0)
    # Inside the fusion: parameter, sqrt, constant, broadcast, add; outside: parameter
    # and fusion.
    assert instructions(step) == 7


def test_step_is_in_place():
    params = abstract({"x": (1000,), "y": (10, 10)}, "float32")
    analysis: Any = compiled(adam(0.1), params).memory_analysis()
    # Parameters and two moments, and the count.
    assert analysis.alias_size_in_bytes == 3 * 4400 + 4
