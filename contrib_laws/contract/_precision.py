"""Training parameters of 16 bits."""

import itertools
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contrib_core import apply_updates, tree

from .._law import Fault, Law
from .._subject import Subject
from .._write import extras_code, few_code
from ._compare import named_leaves, promise, raw, require, type_of
from ._training import (
    descends,
    few,
    gradient,
    path,
    precision_of,
    STEPS,
    TARGET,
    update,
)


def _precision(subject: Subject, case: tuple[str, float]) -> Fault | None:
    dtype, scale = case
    start = few(dtype, scale)
    code = _code(subject, dtype, scale)
    with precision_of(subject, start) as params:

        def alone(params: Any) -> Any:
            return path(subject, subject.rule, params, STEPS, most=1e3)

        with promise("it should accept 16-bit parameters", code):
            fresh = subject.rule.init(params)
            last, points = subject.compiled(("precision", dtype), alone)(params)
            end, state = last
        leaves = named_leaves("the parameters", end), named_leaves("the state", state)
        for where, x in itertools.chain(*leaves):
            finite = np.isfinite(np.asarray(raw(x), np.float32)).all()
            require(finite, f"{where}: not finite", code)
        _require_wide("the fresh state", fresh, [start], code)
        rows = jax.tree.map(lambda x: list(np.asarray(x)), points)
        _require_wide("the state", state, [start, rows], code)
        point = subject.rule.eval_params(state, end)
    if descends(start, point):
        return None
    # Its first steps may be below the resolution of 16 bits.
    wide_start = jax.tree.map(lambda x: np.asarray(x, np.float32), start)
    with precision_of(subject, wide_start) as params:
        usual = _evaluated(subject, ("precision", "wide"), params, lambda x: x)
        if not descends(start, usual):
            return None  # There is no progress in 32 bits either.

        def rounded(x: Any) -> Any:
            return jax.tree.map(lambda a: a.astype(dtype), x)

        copied = _evaluated(subject, ("precision", "copy", dtype), params, rounded)
    require(
        descends(start, copied),
        f"no progress on {dtype}, not even on a copy of the parameters in float32",
        code,
    )
    subject.notes["precision"] = (
        "progress only with a copy of the parameters in float32"
    )
    return None


def _evaluated(subject: Subject, key: Any, start: Any, rounded: Any) -> Any:
    """The evaluation point after training with gradients at `rounded` parameters."""
    rule = subject.rule

    def program(start: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            grads = tree.cast_like(gradient(rounded(params)), params)
            updates, state = update(subject, grads, state, params, rule=rule)
            return (apply_updates(params, updates), state), None

        carry, _ = lax.scan(step, (start, rule.init(start)), length=STEPS)
        return rule.eval_params(carry[1], carry[0])

    return subject.compiled(key, program)(start)


def _require_wide(what: str, state: Any, points: Any, code: str) -> None:
    """Requires that only copies of present or past parameters are narrow."""
    copies = {(x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(points)}
    for where, x in named_leaves(what, state):
        is_narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
        require(
            not is_narrow or (x.shape, np.asarray(x).tobytes()) in copies,
            f"{where}: {type_of(x)}, and not a copy of the parameters",
            code,
        )


def _code(subject: Subject, dtype: str, scale: float) -> str:
    extras = extras_code(subject)
    return f"""\
{few_code(dtype, scale)}
state = transform.init(params)

def loss(params):
    leaves = jax.tree.leaves(params)
    return sum(jnp.sum(abs(p.astype("float32") - {TARGET}) ** 2) for p in leaves)

before = loss(params)
copies = jax.tree.leaves(params)
for _ in range({STEPS}):
    grads = jax.tree.map(lambda p: p - {TARGET}, params)
    updates, state = transform.update(grads, state, params{extras})
    params = jax.tree.map(lambda p, u: p + u, params, updates)
    copies += jax.tree.leaves(params)
assert loss(params) < 0.9 * before
for x in jax.tree.leaves(state):
    is_copy = any(eqx.tree_equal(x, copy) for copy in copies)
    assert is_copy or x.dtype not in ("bfloat16", "float16"), x.dtype"""


precision = Law(
    "precision",
    "contract",
    "With 16-bit parameters, statistics have 32 bits, everything stays finite, and "
    "training makes progress: directly or, where first steps are below the resolution, "
    "on a copy in float32.",
    r"\text{bits}(s_t) \ge 32, \quad f(x_{100}) < 0.9 f(x_0)",
    "progress is a tenth of the loss in 100 steps, if there is that much in float32",
    _precision,
    first=lambda subject: [("bfloat16", 1.0), ("float16", 1.0)],
    drawn=lambda subject: st.tuples(
        st.sampled_from(["bfloat16", "float16"]), st.sampled_from([1.0, 0.5, 2.0])
    ),
    hooks=("eval_params",),
    share=0.1,
)
"""The law of 16-bit parameters; `contrib_laws.precision` is a context."""
