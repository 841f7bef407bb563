"""Settings of all tests: run-time type checks, strict promotion, 8 devices."""

import collections
import contextlib
import os


# JAX reads this when it starts: eight devices on the CPU, for sharding.
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
from support.memory import Watch


jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

PACKAGES = ["contrib_core", "contrib_algos", "contrib_wrappers", "contrib_laws"]
_hook = jaxtyping.install_import_hook(PACKAGES, "beartype.beartype")

# jaxtyping makes a function for each tree, and inspects its signature for each leaf.
# This takes half of the time of tracing. `isinstance` is enough for leaves of one
# class. Versions of jaxtyping without this module stay as they are.
with contextlib.suppress(ImportError):
    import jaxtyping._typeguard as leaf_checker

    _typechecked = leaf_checker.typechecked

    def _with_isinstance(accepts_leaf: Callable[[Any], None]) -> Callable[[Any], None]:
        kind = accepts_leaf.__annotations__.get("x")
        if not isinstance(kind, type):
            return _typechecked(accepts_leaf)

        def accepts(x: Any) -> None:
            if not isinstance(x, kind):
                raise TypeError

        return accepts

    leaf_checker.typechecked = _with_isinstance

hypothesis.settings.register_profile("dev", max_examples=20, deadline=None)
hypothesis.settings.register_profile(
    "ci", max_examples=20, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

WATCH = Watch()


@pytest.hookimpl(tryfirst=True)  # Before `-m` selects tests.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the cases outside of the sample of `one_in(n)` as thorough.

    If `n` is prime to the number of values of each parameter, the sample combines each
    value of a parameter with different values of the others.
    """
    counts: collections.Counter[str] = collections.Counter()
    for item in items:
        if marker := item.get_closest_marker("one_in"):
            name = item.nodeid.split("[")[0]
            if counts[name] % marker.args[0]:
                item.add_marker("thorough")
            counts[name] += 1


@pytest.fixture
def unchecked():
    """The packages as users have them, without run-time type checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def x64():
    """Double precision is enabled."""
    with jax.enable_x64(True):
        yield


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Bounds the memory of a process, which compiled programs would fill."""
    is_last = nextitem is None or nextitem.path != item.path
    WATCH.release_if_grown(is_last_of_file=is_last)
