"""The contract C1 to C10 over every transform in the zoo."""

import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

import contract
from zoo import Entry, GENERATED, NAMED, ZOO


every = pytest.mark.parametrize("entry", ZOO.values(), ids=ZOO.keys())
named = pytest.mark.parametrize("entry", NAMED.values(), ids=NAMED.keys())
generated = pytest.mark.parametrize("entry", GENERATED.values(), ids=GENERATED.keys())


@every
def test_c1_types(entry: Entry):
    contract.check_types(entry.transform)


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
    contract.check_finite(entry.transform, descends=entry.descends)


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
    contract.check_sharding(entry.transform, AxisType.Auto)


@every
def test_c9_bfloat16(entry: Entry):
    contract.check_low_precision(
        entry.transform, jnp.bfloat16, descends=entry.descends, narrow=entry.narrow
    )


@named
def test_c9_float16(entry: Entry):
    contract.check_low_precision(
        entry.transform, jnp.float16, descends=entry.descends, narrow=entry.narrow
    )


@every
def test_c10_composition(entry: Entry):
    contract.check_composition(entry.transform)
