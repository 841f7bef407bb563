"""Test processes give back the memory of compiled programs."""

import jax
import jax.numpy as jnp
import pytest
from support import memory


def programs() -> int:
    """How many compiled programs the backend holds."""
    return len(jax.devices()[0].client.live_executables())


def test_released_programs_are_freed_and_compiled_again_when_needed():
    traces = []

    @jax.jit
    def square(x):
        traces.append(x)
        return x * x

    for _ in range(2):
        assert square(jnp.asarray(3.0)) == 9
    assert len(traces) == 1
    before = programs()
    memory.release()
    assert programs() < before
    assert square(jnp.asarray(3.0)) == 9
    assert len(traces) == 2


@pytest.mark.parametrize(
    "grown, is_last_of_file, is_released",
    [
        (0.9, True, False),
        (1, True, True),
        (1, False, False),
        (10, False, True),
    ],
)
def test_memory_is_released_between_files_first(
    monkeypatch: pytest.MonkeyPatch,
    grown: float,
    is_last_of_file: bool,
    is_released: bool,
):
    released, sizes = [], [100, 100 + grown * memory.GROWTH, 200]
    monkeypatch.setattr(memory, "resident", lambda: sizes.pop(0))
    monkeypatch.setattr(memory, "release", lambda: released.append(True))
    watch = memory.Watch()
    watch.release_if_grown(is_last_of_file=True)
    watch.release_if_grown(is_last_of_file=is_last_of_file)
    assert bool(released) == is_released
    assert watch.least == (200 if is_released else 100)
