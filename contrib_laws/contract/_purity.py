"""A step does not change its inputs, and the state shares no memory with them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._law import Fault, Law
from .._subject import Subject
from .._write import extras_code, literal
from ._compare import named_leaves, promise, require, require_same, snapshot
from ._training import gradient, parameters, precision_of, train, update, with_arrays


def _purity(subject: Subject, params: Any) -> Fault | None:
    _require_no_aliases(subject, params)
    if isinstance(params, dict):  # Many leaves suffice here, since this compiles.
        _require_unchanged(subject, params)
        _require_donatable(subject, params)


def _require_no_aliases(subject: Subject, params: Any) -> None:
    """Requires that parameters and a fresh state share no buffer."""
    with precision_of(subject, params) as params:
        given = jax.tree.map(jnp.copy, params)
        owners: dict[int, str] = {}
        with promise("init should accept them"):
            state = subject.given.init(given)
        trees = {"the parameters": given, "the state": state}
        for owner, tree in trees.items():
            for where, x in named_leaves(owner, tree):
                if not isinstance(x, jax.Array) or not x.size:
                    continue
                other = owners.setdefault(x.unsafe_buffer_pointer(), where)
                require(
                    other == where,
                    f"{where} is the buffer of {other}, so they cannot both be donated",
                    _donation_code(subject, params),
                )


def _require_unchanged(subject: Subject, params: Any) -> None:
    # Arrays of NumPy are mutable, and JAX can share their memory if it is aligned to
    # 64 bytes.
    params = jax.tree.map(_aligned, params)
    before = snapshot(params)
    code = _unchanged_code(subject, params)
    with subject.promotion(), promise("it should accept arrays of NumPy", code):
        state = subject.given.init(params)
        require_same("the parameters after init", before, params, code)
        state_before = snapshot(state)
        jax.tree.map(lambda x: x.fill(7), params)
        kept = snapshot(state)
        require_same("the state, parameters overwritten", state_before, kept, code)

        inputs = jax.tree.map(_aligned, (gradient(before), before))
        inputs_before = snapshot(inputs)
        _, new_state = update(subject, inputs[0], state, inputs[1])
        require_same("the inputs of update", inputs_before, inputs, code)
        kept = snapshot(state)
        require_same("the state given to update", state_before, kept, code)
        new_before = snapshot(new_state)
        jax.tree.map(lambda x: x.fill(7), inputs)
        # A counterexample would need aligned memory of NumPy, so there is no code.
        require_same(
            "the new state, after the inputs were overwritten",
            new_before,
            snapshot(new_state),
        )


def _aligned(x: Any) -> np.ndarray:
    """A copy in memory that JAX may share."""
    x = np.asarray(x)
    buffer = np.zeros(x.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    own = buffer[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    own[...] = x
    return own


def _require_donatable(subject: Subject, params: Any) -> None:
    # Hyperparameters are arrays here, because the state must not share their buffers.
    code = _donation_code(subject, params)
    rule = subject.given
    arrays, rest = eqx.partition(with_arrays(rule), eqx.is_array)

    def step(arrays: Any, params: Any, state: Any) -> Any:
        own = eqx.combine(arrays, rest)
        return train(subject, params, state, steps=1, rule=own)[:2]

    donating = jax.jit(step, donate_argnums=(1, 2), keep_unused=True)
    with precision_of(subject, params) as params:
        params = jax.tree.map(jnp.copy, params)
        state = eqx.combine(arrays, rest).init(params)
        leaves = jax.tree.leaves((params, state))
        with promise("parameters and state should be donatable", code):
            for _ in range(3):
                params, state = donating(arrays, params, state)
            donated = all(x.is_deleted() for x in leaves if x.size)
            require(donated, "nothing was donated, so this shows nothing", code)
            eqx.combine(arrays, rest).init(params)


def _donation_code(subject: Subject, params: Any) -> str:
    return f"""\
def traced(x):
    return jnp.array(x, float) if isinstance(x, float) else x

arrays, rest = eqx.partition(jax.tree.map(traced, transform), eqx.is_array)

def step(arrays, params, state):
    transform = eqx.combine(arrays, rest)
    return transform.update(params, state, params{extras_code(subject)})

params = {literal(params)}
state = eqx.combine(arrays, rest).init(params)
donating = jax.jit(step, donate_argnums=(1, 2), keep_unused=True)
donating(arrays, params, state)"""


def _unchanged_code(subject: Subject, params: Any) -> str:
    return f"""\
params = jax.tree.map(np.array, {literal(params)})
grads = jax.tree.map(np.copy, params)
before = jax.tree.map(np.copy, params)
state = transform.init(params)
_, new_state = transform.update(grads, state, params{extras_code(subject)})
assert eqx.tree_equal(params, before) and eqx.tree_equal(grads, before)
kept = jax.tree.map(np.array, (state, new_state))
for x in jax.tree.leaves((params, grads)):
    x.fill(7)
assert eqx.tree_equal(jax.tree.map(np.array, (state, new_state)), kept)"""


purity = Law(
    "purity",
    "contract",
    "Inputs stay unchanged, and the state shares no buffer with them, so that "
    "parameters and state can both be donated.",
    r"\text{buffers}(s_0) \cap \text{buffers}(x_0) = \emptyset",
    "none",
    _purity,
    first=lambda subject: [np.ones(1, np.float32), parameters()],
)
