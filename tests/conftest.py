"""What tests run under: types checked at run time, strict promotion, 8 devices."""

import collections
import contextlib
import os


# Before JAX starts: eight devices on the CPU, for sharding.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jaxtyping
import pytest


jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

PACKAGES = ["contrib_core", "contrib_algos", "contrib_wrappers"]
_hook = jaxtyping.install_import_hook(PACKAGES, "beartype.beartype")

# jaxtyping makes a function for each tree, and inspects its signature for each leaf,
# which is half of the time that tracing takes. Whether something is of a class can be
# asked directly. Where jaxtyping works in another way, it keeps that.
with contextlib.suppress(ImportError):
    import jaxtyping._typeguard as leaf_checker

    _typechecked = leaf_checker.typechecked

    def _asking(accepts_leaf: Callable[[Any], None]) -> Callable[[Any], None]:
        kind = accepts_leaf.__annotations__.get("x")
        if not isinstance(kind, type):
            return _typechecked(accepts_leaf)

        def accepts(x: Any) -> None:
            if not isinstance(x, kind):
                raise TypeError

        return accepts

    leaf_checker.typechecked = _asking

hypothesis.settings.register_profile("dev", max_examples=20, deadline=None)
hypothesis.settings.register_profile(
    "ci", max_examples=20, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.hookimpl(tryfirst=True)  # Before `-m` chooses.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What `one_in(n)` leaves out is thorough. With an `n` prime to the numbers of its
    parameters' values, the sample has each of these with others of the rest."""
    counts: collections.Counter[str] = collections.Counter()
    for item in items:
        if marker := item.get_closest_marker("one_in"):
            name = item.nodeid.split("[")[0]
            if counts[name] % marker.args[0]:
                item.add_marker("thorough")
            counts[name] += 1


@pytest.fixture
def unchecked():
    """What users have, who do not check types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def x64():
    """64-bit types, for tests in double precision."""
    with jax.enable_x64(True):
        yield
