"""A run that is saved and resumed continues as if it had not stopped."""

import importlib.util
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._law import Fault, Law
from .._subject import Subject
from .._write import extras_code, literal
from ._compare import promise, require_same
from ._training import few, precision_of, train


def _checkpoints(subject: Subject, saver: str) -> Fault | None:
    params = few()
    restore = {"equinox": _by_equinox, "orbax": _by_orbax}[saver]
    # Saving with orbax takes a page of code, so counterexamples show equinox only.
    code = _code(subject) if saver == "equinox" else ""
    with precision_of(subject, params) as params:
        start = (params, subject.rule.init(params))

        def one_step(params: Any, state: Any) -> Any:
            return train(subject, params, state, steps=1, rule=subject.rule)[:2]

        step = subject.compiled("checkpoints", one_step)
        halfway = step(*step(*start))
        expected = step(*step(*halfway))
        with promise(f"{saver} should save and restore the state", code):
            restored = restore(halfway, start)
            require_same("the restored state", halfway, restored, code)
            resumed = step(*step(*restored))
        require_same("the state of the resumed run", expected, resumed, code)


def _by_equinox(carry: Any, like: Any) -> Any:
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, carry)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, like)


def _by_orbax(carry: Any, like: Any) -> Any:
    import orbax.checkpoint as ocp

    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as saver:
        path = Path(folder) / "state"
        saver.save(path, carry)
        saver.wait_until_finished()
        restored = saver.restore(path, like)
    # Arrays that are committed to a device would make JAX compile everything again.
    return jax.tree.map(lambda x: jnp.array(np.asarray(x)), restored)


def _savers(subject: Subject) -> Iterator[str]:
    yield "equinox"
    if importlib.util.find_spec("orbax") is not None:
        yield "orbax"


def _code(subject: Subject) -> str:
    extras = extras_code(subject)
    return f"""\
import io
params = {literal(np.ones(1, np.float32))}

@jax.jit
def step(state):
    return transform.update(params, state, params{extras})

_, state = step(transform.init(params))
file = io.BytesIO()
eqx.tree_serialise_leaves(file, state)
file.seek(0)
restored = eqx.tree_deserialise_leaves(file, transform.init(params))
assert eqx.tree_equal(restored, state)
assert eqx.tree_equal(step(restored), step(state))"""


checkpoints = Law(
    "checkpoints",
    "contract",
    "A run that is saved and resumed is bitwise the same as one that never stopped.",
    r"s_{t+1}(\text{restore}(\text{save}(s_t))) = s_{t+1}(s_t)",
    "none",
    _checkpoints,
    first=_savers,
)
