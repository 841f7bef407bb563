"""The laws of the algebra of trees hold, and mutants that break them are caught."""

import importlib.util
from types import ModuleType
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import pytest
from hypothesis import given
from support.laws_tree import CASES, LAWS
from support.mutants_tree import Mutant, MUTANTS
from support.trees import types

from contrib_core import tree
from contrib_laws import DTYPES, fill, pairs, precision, scalars


# Trees of `mixed64` have leaves of every dtype. One law is not about mixed trees, and
# runs on `f64`.
@pytest.mark.parametrize(
    "name, key",
    [
        pytest.param(
            *case, marks=() if case[1] in ("mixed64", "f64") else pytest.mark.thorough
        )
        for case in CASES
    ],
)
def test_law(name: str, key: str):
    dtypes = DTYPES[key]
    with precision(*dtypes):
        LAWS[name](tree, dtypes)()


def _copy_of_tree() -> ModuleType:
    """A second instance of `contrib_core.tree`, whose functions can be replaced."""
    assert tree.__file__ is not None
    spec = importlib.util.spec_from_file_location("contrib_core._mutant", tree.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The rarest mutant shows in one of a hundred examples, so that mutants get more of
# them. A counterexample is not shrunk, because nobody reads it.
_SEARCH = hypothesis.settings(
    max_examples=3000,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    report_multiple_bugs=False,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.law}-{m.name}")
def test_law_catches_mutant(mutant: Mutant):
    dtypes = DTYPES[mutant.dtypes]
    with precision(*dtypes):
        mutated = _copy_of_tree()
        mutant.apply(mutated)
        with pytest.raises(mutant.error):
            _SEARCH(LAWS[mutant.law](mutated, dtypes))()


@given(scalars(1.0))
def test_scalars_stay_within_their_bound(x: Any):
    assert abs(float(x)) <= 1


def test_every_law_has_a_mutant():
    assert {mutant.law for mutant in MUTANTS} == set(LAWS)


@hypothesis.settings(max_examples=5)
@given(st.data())
def test_pairs_have_one_structure(data):
    """The laws above rely on this property of the strategies."""
    x, y = data.draw(pairs("float32", "bfloat16", "complex64", same_dtypes=False))
    assert jax.tree.structure(x) == jax.tree.structure(y)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x)
    assert types(data.draw(fill(shapes))) == types(x)
