"""What tests run under: types checked at run time, strict promotion, 8 devices."""

import os


# Before JAX starts: eight devices on the CPU, for sharding.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook


jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

PACKAGES = ["contrib_core", "contrib_algos", "contrib_wrappers"]
_hook = install_import_hook(PACKAGES, "beartype.beartype")

hypothesis.settings.register_profile("dev", max_examples=20, deadline=None)
hypothesis.settings.register_profile(
    "ci", max_examples=50, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture
def x64():
    """64-bit types, for tests in double precision."""
    with jax.enable_x64(True):
        yield
