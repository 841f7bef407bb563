"""A step is the same however it is run: by jit, scan, vmap or a loop."""

from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp

from .._law import Fault, Law
from .._subject import Subject
from .._write import extras_code, few_code
from ._compare import promise, require_close
from ._training import few, fit, precision_of, TARGET, train, with_arrays


def _stack(trees: list[Any]) -> Any:
    """Trees with their arrays stacked along a new first axis."""

    def leaf(*xs: Any) -> Any:
        return jnp.stack(xs) if eqx.is_array(xs[0]) else xs[0]

    return jax.tree.map(leaf, *trees)


def _transformations(subject: Subject, case: tuple[float, float]) -> Fault | None:
    """The problem and the hyperparameters vary under vmap. Hyperparameters are arrays
    under vmap and jit, but Python numbers in the loop of single calls."""
    scale, factor = case
    rule, params = subject.rule, few("float64", scale)
    code = _code(subject, scale)
    vmap_code = _vmap_code(subject, scale, factor)
    with precision_of(subject, params) as params:
        problems = [params, jax.tree.map(lambda x: 0.5 * x, params)]
        hyper = [with_arrays(rule), with_arrays(rule, factor)]

        def fitted(rule: Any, params: Any) -> Any:
            return fit(subject, rule, params, 4)

        with promise("jit and scan should work", code):
            step = train(subject, params, rule.init(params), 4, rule=rule)
            jitted = _filter_compiled(subject, "jit", fitted)
            single = [jitted(*pair) for pair in zip(hyper, problems, strict=True)]
        require_close("jit and scan", step[:2], single[0], code)
        with promise("vmap should work", vmap_code):
            swept = _filter_compiled(subject, "vmap", eqx.filter_vmap(fitted))
            batch = swept(_stack(hyper), _stack(problems))
        require_close("vmap", _stack(single), batch, vmap_code)


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


def _code(subject: Subject, scale: float) -> str:
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


transformations = Law(
    "transformations",
    "contract",
    "jit, scan and vmap compute what eager execution and loops compute; vmap runs over "
    "problems and over hyperparameters.",
    r"\text{jit}(U) = U, \quad \text{vmap}(U)(x_1, x_2) = (U(x_1), U(x_2))",
    "1e-7 of the largest entry of a leaf, in double precision: first steps may be 1e-6 "
    "of the parameters, and as differences of numbers rounded at 1e-16 they are good "
    "to 1e-10",
    _transformations,
    first=lambda subject: [(1.0, 0.9)],
    drawn=lambda subject: st.tuples(
        st.sampled_from([1.0, 0.5, 2.0]), st.sampled_from([0.9, 0.75, 0.5])
    ),
    share=0.1,
)
