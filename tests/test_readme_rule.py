"""The rule that the README writes from scratch keeps the promises made there."""

import re
from pathlib import Path
from typing import Any

import contract
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType


README = Path(__file__).parent.parent / "README.md"


def source() -> str:
    """The block of the README that defines the rule."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (block,) = (b for b in blocks if "(AbstractTransform" in b)
    return block


@pytest.fixture(scope="module")
def rule():
    namespace: dict[str, Any] = {"__name__": "readme_rule"}
    exec(compile(source(), "README.md", "exec"), namespace)
    return namespace["SPS"]()


def test_it_has_at_most_30_lines():
    lines = [line for line in source().splitlines() if line.strip()]
    assert len(lines) <= 30


@pytest.mark.parametrize(
    "check",
    [
        contract.check_types,
        contract.check_constant_state,
        contract.check_transformations,
        contract.check_purity,
        contract.check_finite,
        contract.check_extras,
        contract.check_equinox_checkpoint,
        contract.check_composition,
    ],
    ids=lambda f: f.__name__,
)
def test_contract(rule, check):
    check(rule)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_contract_sharding(rule, axis_type):
    contract.check_sharding(rule, axis_type)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_contract_low_precision(rule, dtype):
    contract.check_low_precision(rule, dtype)
