"""Counterexamples as code: the lines of tests that fail."""

import textwrap
from typing import Any

import numpy as np

from ._problem import array_code, Case, Change, Layout, Problem
from ._subject import Subject


def numbers(x: Any, other: Any = None) -> str:
    """A few numbers for a sentence, with enough digits to tell them from `other`."""

    def write(x: Any, digits: int) -> str:
        return (
            "[" + ", ".join(f"{entry + 0.0:.{digits}g}" for entry in np.ravel(x)) + "]"
        )

    if other is not None and write(x, 6) == write(other, 6):
        return write(x, 17)
    return write(x, 6)


def literal(x: Any) -> str:
    """Code for a tree of arrays."""
    if x is None:
        return "None"
    if isinstance(x, dict):
        return "{" + ", ".join(f'"{k}": {literal(v)}' for k, v in x.items()) + "}"
    if isinstance(x, tuple):
        return "(" + "".join(f"{literal(v)}, " for v in x) + ")"
    if not hasattr(x, "dtype"):
        raise TypeError(f"There is no code for {x!r}.")
    is_standard = np.issubdtype(x.dtype, np.number)
    entries = np.asarray(x if is_standard else np.asarray(x, np.float32)).tolist()
    if np.size(entries):
        return f'jnp.array({entries!r}, "{x.dtype}")'
    return f'jnp.zeros({x.shape}, "{x.dtype}")'


def few_code(dtype: str, scale: float, indent: str = "") -> str:
    """Code for the parameters that `few` makes, in short lines."""
    return (
        f"waves = {scale} * np.sin(1 + np.arange(12.0))\n{indent}"
        f'params = {{"t": waves[0], "w": waves.reshape(4, 3)}}\n{indent}'
        f'params = jax.tree.map(lambda x: jnp.array(x, "{dtype}"), params)'
    )


def extras_code(
    subject: Subject,
    value: str = "1.0",
    grad_fn: str = "lambda p, *_: p",
    key: str = "jax.random.key(0)",
    missing: str = "",
) -> str:
    """Code for the keyword arguments that `update` needs, except `missing`."""
    code = {"value": value, "grad_fn": grad_fn, "key": key}
    names = sorted(subject.needs - {missing})
    return "".join(f", {name}={code[name]}" for name in names)


def step_code(
    subject: Subject, params: Any, result: str, more: str = "", grads: str = "params"
) -> list[str]:
    """Code for one step from a fresh state, by default with `params` as gradients."""
    return [
        f"params = {literal(params)}",
        "state = transform.init(params)",
        f"{result} = transform.update({grads}, state, params"
        f"{extras_code(subject)}{more})",
    ]


# Runs on problems


def run_code(subject: Subject, layout: Layout, problem: Problem, name: str) -> str:
    """A function that runs a transform on a problem and returns its last update, with
    the parameters and the state after it.

    In the function, `x` and `u` are vectors; `update` takes trees.
    """
    value, gradient = "v + g @ (x - start)", "g"
    if _is_curved(subject, problem):
        value += " + curvature / 2 * jnp.sum((x - start) ** 2)"
        gradient = "(g + curvature * (x - start))"
    at = gradient.replace("(x - start)", f"({layout.vector_code('p')} - start)")
    extras = extras_code(subject, value, f"lambda p, *_: {layout.code(at)}")
    has_value = "value" in subject.needs
    each = "g, v in zip(grads, values)" if has_value else "g in grads"
    given = ["start", "grads", *_optional(subject, problem, "values", "curvature")]
    return textwrap.dedent(f"""\
        def {name}(transform, {", ".join(given)}):
            u, x = None, jnp.asarray(start)
            state = transform.init({layout.code("x")})
            for {each}:
                grad = {layout.code(gradient)}
                u, state = transform.update(grad, state, {layout.code("x")}{extras})
                u = {layout.vector_code("u")}
                x = x + u
            return u, x, state
        """).replace("        u = u\n", "")


def arguments_code(subject: Subject, problem: Problem, steps: int) -> str:
    """The arguments of a function of `run_code`, for the first `steps` of a problem."""
    values = array_code(problem.values[:steps])
    given = [array_code(problem.start), array_code(problem.grads[:steps])]
    given += _optional(subject, problem, values, repr(problem.curvature))
    return ", ".join(given)


def _optional(
    subject: Subject, problem: Problem, values: str, curvature: str
) -> list[str]:
    given = [values] if "value" in subject.needs else []
    return given + ([curvature] if _is_curved(subject, problem) else [])


def _is_curved(subject: Subject, problem: Problem) -> bool:
    """Whether gradients are written as functions of the parameters."""
    return bool(problem.curvature != 0) or "grad_fn" in subject.needs


def updates_code(
    subject: Subject, case: Case, changed: Problem, step: int, allowed: float
) -> str:
    """A test that the update of a changed problem is the changed update."""
    other = case.other or case.layout
    same = other == case.layout
    functions = [run_code(subject, case.layout, case.problem, "run")]
    if not same:
        functions.append(run_code(subject, other, changed, "run_other"))
    first = arguments_code(subject, case.problem, step + 1)
    second = arguments_code(subject, changed, step + 1)
    return "\n".join(
        [
            *functions,
            "with jax.enable_x64(True):",
            f"    first, *_ = run(transform, {first})",
            f"    second, *_ = {'run' if same else 'run_other'}(transform, {second})",
            *_compare(case.change, allowed),
        ]
    )


def difference_code(
    subject: Subject, case: Case, transforms: tuple[str, str], step: int, allowed: float
) -> str:
    """A test that two transforms, given as code, make the same update."""
    arguments = arguments_code(subject, case.problem, step + 1)
    return "\n".join(
        [
            run_code(subject, case.layout, case.problem, "run"),
            "with jax.enable_x64(True):",
            f"    first, *_ = run({transforms[1]}, {arguments})",
            f"    second, *_ = run({transforms[0]}, {arguments})",
            *_compare(Change(), allowed),
        ]
    )


def _compare(change: Change, allowed: float) -> list[str]:
    return [
        f"    expected = {change.code('first')}",
        f"    np.testing.assert_allclose(second, expected, rtol=0, atol={allowed:.2g})",
    ]


def steps_code(
    subject: Subject, case: Case, steps: int, before: str, each: list[str]
) -> str:
    """A test of each of the first steps.

    **Arguments:**

    - `before`: a line that runs before the steps.
    - `each`: lines that run after step `t`, with its results `u`, `x` and `state`.
    """
    given = ["start", "grads", *_optional(subject, case.problem, "values", "curvature")]
    names = ", ".join(given)
    now = ", ".join(f"{n}[:t]" if n in ("grads", "values") else n for n in given)
    return "\n".join(
        [
            run_code(subject, case.layout, case.problem, "run"),
            f"{names} = {arguments_code(subject, case.problem, steps)}",
            before,
            "with jax.enable_x64(True):",
            "    for t in range(1, len(grads) + 1):",
            f"        u, x, state = run(transform, {now})",
            *(f"        {line}" for line in each),
        ]
    )


def distances_code(
    subject: Subject, case: Case, distance: str, step: int, bound: str
) -> str:
    """A test of the estimates of the distance before and after a step."""
    before, after = (arguments_code(subject, case.problem, step + k) for k in (0, 1))
    return "\n".join(
        [
            run_code(subject, case.layout, case.problem, "run"),
            "with jax.enable_x64(True):",
            f"    *_, state = run(transform, {before})",
            f"    before = {distance}",
            f"    *_, state = run(transform, {after})",
            f"    after = {distance}",
            f"    assert after {bound}, (before, after)",
        ]
    )
