"""The state never changes its type."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from .._law import Fault, Law
from .._subject import Subject
from .._write import step_code
from ._compare import named_leaves, promise, require, require_same_type
from ._training import precision_of, train
from ._trees import drawn_trees, first_trees, ONE


def _constant_state(subject: Subject, tree: Any) -> Fault | None:
    with precision_of(subject, tree) as params:
        code = _code(subject, params)

        def step(carry: Any) -> Any:
            return train(subject, *carry, steps=1)[:2]

        with promise("its state should have a type", code):
            state = jax.eval_shape(subject.given.init, params)
            _, new_state = jax.eval_shape(step, (params, state))
        for where, leaf in named_leaves("the state", state):
            require(not leaf.weak_type, f"{where} is weakly typed", code)
        require_same_type("the new state", state, new_state, code)
        # Loops require no more than the types.
        if tree is ONE:
            _require_one_trace(step, (params, subject.given.init(params)), code)


def _require_one_trace(step: Callable[[Any], Any], carry: Any, code: str) -> None:
    for where, leaf in named_leaves("the state", carry[1]):
        kind = type(leaf).__name__
        require(isinstance(leaf, jax.Array), f"{where}: {kind}, not jax.Array", code)
    traces = []

    @jax.jit
    def counted(carry: Any) -> Any:
        traces.append(None)
        return step(carry)

    for _ in range(3):
        carry = counted(carry)
    require(len(traces) == 1, f"{len(traces)} traces in three steps, not 1")


def _code(subject: Subject, params: Any) -> str:
    types = (
        "def types(x):\n"
        "    return jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), x)\n"
    )
    checks = [
        "for x in jax.tree.leaves(state):",
        "    assert isinstance(x, jax.Array) and not x.weak_type, x",
        "assert types(new_state) == types(state)",
    ]
    return "\n".join([types, *step_code(subject, params, "_, new_state"), *checks])


constant_state = Law(
    "constant_state",
    "contract",
    "The state never changes its type: loops accept it, and nothing retraces.",
    r"\text{type}(s_{t+1}) = \text{type}(s_t)",
    "none",
    _constant_state,
    first=lambda subject: [
        tree for tree in first_trees(subject) if not isinstance(tree, eqx.Module)
    ],
    drawn=drawn_trees,
    share=0.5,
)
