"""Fixtures for the tests of the commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import pytest

from benchmarks.__main__ import main


Run: TypeAlias = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def standard_promotion():
    """The promotion of dtypes that optax needs and that the commands run with."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def run(tmp_path: Path, standard_promotion: None) -> Run:
    """A function of a command line, which returns the exit code and the JSON that the
    command wrote."""

    def run(*argv: str) -> tuple[int, dict[str, Any]]:
        path = tmp_path / "out.json"
        code = main([*argv, "--out", str(path)])
        return code, json.loads(path.read_text())

    return run
