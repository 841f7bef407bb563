"""Counts and bytes of a compiled function, which are free of noise."""

import re
from typing import Any

import jax
from jax.stages import Compiled
from jaxtyping import PyTree


def bytes_of(tree: PyTree) -> int:
    """The bytes of all leaves, which may be arrays or only their shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_accessed(function: Compiled) -> float:
    """The bytes that its fused loops read and write."""
    costs = _known(function.cost_analysis())
    # Some versions of JAX return a list of one.
    return (costs[0] if isinstance(costs, list) else costs)["bytes accessed"]


def temporary_bytes(function: Compiled) -> int:
    """The bytes of buffers that live only during the call."""
    return _known(function.memory_analysis()).temp_size_in_bytes


def instructions(function: Compiled) -> int:
    """The HLO instructions of all its computations, those inside fusions included."""
    text = _known(function.as_text())
    return len(re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = ", text, re.MULTILINE))


def _known(analysis: Any) -> Any:
    if analysis is None:
        raise RuntimeError("XLA gives no analysis of programs for this device.")
    return analysis
