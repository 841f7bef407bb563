"""C3 and C4: a step is a pure function, however it is run."""

import math
from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from ._law import Fault, Law
from ._subject import Subject
from ._training import (
    few,
    fit,
    gradient,
    named_leaves,
    parameters,
    precision_of,
    promise,
    require,
    require_close,
    require_same,
    snapshot,
    TARGET,
    train,
    update,
)
from ._write import extras_code, few_code, literal


# C3


def _with_arrays(rule: Any, factor: float = 1.0) -> Any:
    """`rule` with arrays in place of numbers, multiplied by `factor`."""
    dtype = jnp.result_type(float)

    def leaf(x: Any) -> Any:
        finite = isinstance(x, float) and math.isfinite(x)  # Infinite means "off".
        return jnp.array(factor * x, dtype) if finite else x

    return jax.tree.map(leaf, rule)


def _stack(trees: list[Any]) -> Any:
    """The arrays of all trees along a new first axis."""

    def leaf(*xs: Any) -> Any:
        return jnp.stack(xs) if eqx.is_array(xs[0]) else xs[0]

    return jax.tree.map(leaf, *trees)


def _transformations(subject: Subject, case: tuple[float, float]) -> Fault | None:
    """Under vmap both the problem and the hyperparameters vary, which are arrays there
    and under jit, but Python numbers in the loop of single calls."""
    scale, factor = case
    rule, params = subject.rule, few("float64", scale)
    code = _transformations_code(subject, scale)
    code_of_vmap = _vmap_code(subject, scale, factor)
    with precision_of(subject, params) as params:
        problems = [params, jax.tree.map(lambda x: 0.5 * x, params)]
        hyper = [_with_arrays(rule), _with_arrays(rule, factor)]

        def fitted(rule: Any, params: Any) -> Any:
            return fit(subject, rule, params, 4)

        with promise("jit and scan should work", code):
            step = train(subject, params, rule.init(params), 4, rule=rule)
            jitted = _filter_compiled(subject, "jit", fitted)
            single = [jitted(*pair) for pair in zip(hyper, problems, strict=True)]
        require_close("jit and scan", step[:2], single[0], code)
        with promise("vmap should work", code_of_vmap):
            swept = _filter_compiled(subject, "vmap", eqx.filter_vmap(fitted))
            batch = swept(_stack(hyper), _stack(problems))
        require_close("vmap", _stack(single), batch, code_of_vmap)


def _filter_compiled(subject: Subject, key: str, function: Any) -> Any:
    """`eqx.filter_jit` of a function of a rule and parameters."""

    def call(rule: Any, params: Any) -> Any:
        arrays, static = eqx.partition(rule, eqx.is_array)
        program = subject.compiled(
            (key, jax.tree.structure(arrays)),
            lambda arrays, params: function(eqx.combine(arrays, static), params),
        )
        return program(arrays, params)

    return call


def _transformations_code(subject: Subject, scale: float) -> str:
    return f"""\
{_fit_code(subject)}

with jax.enable_x64(True):
    {few_code("float64", scale, "    ")}
    expected = fit(transform, params)
    found = eqx.filter_jit(fit)(with_arrays(1.0), params)
    {_CLOSE_CODE}"""


def _vmap_code(subject: Subject, scale: float, factor: float) -> str:
    return f"""\
{_fit_code(subject)}

def stack(*trees):
    return jax.tree.map(
        lambda *xs: jnp.stack(xs) if eqx.is_array(xs[0]) else xs[0], *trees
    )

with jax.enable_x64(True):
    {few_code("float64", scale, "    ")}
    rules = with_arrays(1.0), with_arrays({factor})
    problems = params, jax.tree.map(lambda x: 0.5 * x, params)
    expected = stack(*map(eqx.filter_jit(fit), rules, problems))
    found = eqx.filter_vmap(fit)(stack(*rules), stack(*problems))
    {_CLOSE_CODE}"""


_CLOSE_CODE = """\
for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-7 * abs(a).max())"""


def _fit_code(subject: Subject) -> str:
    return f"""\
def fit(transform, params):
    state = transform.init(params)
    for _ in range(4):
        grads = jax.tree.map(lambda p: p - {TARGET}, params)
        updates, state = transform.update(grads, state, params{extras_code(subject)})
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    return params, state

def with_arrays(factor):
    def leaf(x):
        is_number = isinstance(x, float) and np.isfinite(x)
        return jnp.array(factor * x) if is_number else x
    return jax.tree.map(leaf, transform)"""


C3 = Law(
    "C3",
    "contract",
    "jit is eager execution, scan is a loop, and vmap is a loop over problems and over "
    "hyperparameters.",
    r"\text{jit}(U) = U, \quad \text{vmap}(U)(x_1, x_2) = (U(x_1), U(x_2))",
    "1e-7 of the largest entry of a leaf, in double precision: first steps of 1e-6 of "
    "the parameters are differences of numbers that are rounded at 1e-16 of these, and "
    "so good to 1e-10",
    _transformations,
    first=lambda subject: [(1.0, 0.9)],
    drawn=lambda subject: st.tuples(
        st.sampled_from([1.0, 0.5, 2.0]), st.sampled_from([0.9, 0.75, 0.5])
    ),
    share=0.1,
)


# C4


def _purity(subject: Subject, params: Any) -> Fault | None:
    _require_no_aliases(subject, params)
    if isinstance(params, dict):  # What takes many leaves takes one, and is dear.
        _require_unchanged(subject, params)
        _require_donatable(subject, params)


def _require_no_aliases(subject: Subject, params: Any) -> None:
    """No two buffers among the parameters and a fresh state are one."""
    with precision_of(subject, params) as params:
        given = jax.tree.map(jnp.copy, params)
        owners: dict[int, str] = {}
        with promise("init should take them"):
            state = subject.given.init(given)
        trees = {"the parameters": given, "the state": state}
        for owner, tree in trees.items():
            for where, x in named_leaves(owner, tree):
                if not isinstance(x, jax.Array) or not x.size:
                    continue
                other = owners.setdefault(x.unsafe_buffer_pointer(), where)
                require(
                    other == where,
                    f"{where} is the buffer of {other}, so that both cannot be donated",
                    _donation_code(subject, params),
                )


def _require_unchanged(subject: Subject, params: Any) -> None:
    # Arrays of NumPy are mutable, and JAX can share their memory: 64 bytes aligned.
    params = jax.tree.map(_aligned, params)
    before = snapshot(params)
    code = _unchanged_code(subject, params)
    with subject.promotion(), promise("arrays of NumPy should be taken", code):
        state = subject.given.init(params)
        require_same("the parameters after init", before, params, code)
        state_before = snapshot(state)
        jax.tree.map(lambda x: x.fill(7), params)
        kept = snapshot(state)
        require_same("the state, its parameters mutated", state_before, kept, code)

        inputs = jax.tree.map(_aligned, (gradient(before), before))
        inputs_before = snapshot(inputs)
        _, new_state = update(subject, inputs[0], state, inputs[1])
        require_same("the inputs of update", inputs_before, inputs, code)
        kept = snapshot(state)
        require_same("the state given to update", state_before, kept, code)
        new_before = snapshot(new_state)
        jax.tree.map(lambda x: x.fill(7), inputs)
        # It takes NumPy's memory that is aligned as JAX likes it: no code for that.
        require_same("the new state, inputs mutated", new_before, snapshot(new_state))


def _aligned(x: Any) -> np.ndarray:
    """A copy that JAX may put its arrays in."""
    x = np.asarray(x)
    buffer = np.zeros(x.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    own = buffer[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    own[...] = x
    return own


def _require_donatable(subject: Subject, params: Any) -> None:
    # Arrays as hyperparameters: the state must not share theirs either.
    code = _donation_code(subject, params)
    rule = subject.given
    arrays, rest = eqx.partition(_with_arrays(rule), eqx.is_array)

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


C4 = Law(
    "C4",
    "contract",
    "Inputs are left alone, and none of their buffers is in the state: both can be "
    "donated.",
    r"\text{buffers}(s_0) \cap \text{buffers}(x_0) = \emptyset",
    "none",
    _purity,
    first=lambda subject: [np.ones(1, np.float32), parameters()],
)
