"""The contract C1 to C10 over every transform in the zoo."""

from typing import Any

import contract
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from zoo import Entry, NAMED, RULES, ZOO


every = pytest.mark.parametrize("entry", ZOO.values(), ids=ZOO.keys())
named = pytest.mark.parametrize("entry", NAMED.values(), ids=NAMED.keys())


@every
def test_c1_types(entry: Entry):
    contract.check_types(entry.transform)


@named
def test_c1_types_of_one_kind(entry: Entry):
    contract.check_types_of_one_kind(entry.transform)


@every
def test_c2_constant_state(entry: Entry):
    contract.check_constant_state(entry.transform)


@every
def test_c3_transformations(entry: Entry):
    contract.check_transformations(entry.transform)


@every
def test_c4_purity(entry: Entry):
    contract.check_purity(entry.transform)


@every
def test_c5_finite(entry: Entry):
    contract.check_finite(entry.transform, descends=entry.descends, ours=entry.ours)


@named
def test_c5_finite_narrow(entry: Entry):
    contract.check_finite_narrow(
        entry.transform, descends=entry.descends, ours=entry.ours
    )


@every
def test_c6_extras(entry: Entry):
    contract.check_extras(entry.transform)


@every
def test_c7_equinox_checkpoint(entry: Entry):
    contract.check_equinox_checkpoint(entry.transform)


@named
def test_c7_orbax_checkpoint(entry: Entry, tmp_path):
    contract.check_orbax_checkpoint(entry.transform, tmp_path)


@every
def test_c8_sharding_explicit(entry: Entry):
    contract.check_sharding(entry.transform, AxisType.Explicit)


@named
def test_c8_sharding_auto(entry: Entry):
    contract.check_sharding(entry.transform, AxisType.Auto, ours=entry.ours)


@every
def test_c9_bfloat16(entry: Entry):
    _check_low_precision(entry, jnp.bfloat16)


@named
def test_c9_float16(entry: Entry):
    _check_low_precision(entry, jnp.float16)


def _check_low_precision(entry: Entry, dtype: Any):
    contract.check_low_precision(
        entry.transform,
        dtype,
        descends=entry.descends,
        narrow=entry.narrow,
        ours=entry.ours,
    )


def test_c9_docstring_says_so():
    """Rules that need `master_weights` for 16-bit parameters say so."""
    rules = [e.transform for e in RULES.values() if not e.narrow]
    assert rules
    for rule in rules:
        assert "contrib_wrappers.master_weights" in (type(rule).__doc__ or "")


@every
def test_c10_composition(entry: Entry):
    contract.check_composition(entry.transform)


@named
def test_c10_wrappers(entry: Entry):
    contract.check_wrappers(entry.transform)
