"""Runs of a rule on a problem."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from contrib_core import Tree

from ._problem import Layout, Problem
from ._subject import Subject
from ._terms import places_of


# Relative perturbation of the inputs, to measure how a run amplifies rounding: far
# above the rounding unit, so that the response is not noise itself, and far below every
# number of the problems.
JITTER = 2.0**-36


class Run(NamedTuple):
    """The course of a rule on a problem.

    - `updates`: the update of each step.
    - `points`: the parameters after each step.
    - `evaluated`: the evaluation point after each step.
    - `terms`: by law, the terms that its state keeps, before the first step and after
        each.
    """

    updates: Float[np.ndarray, "steps size"]
    points: Float[np.ndarray, "steps size"]
    evaluated: Float[np.ndarray, "steps size"]
    terms: dict[str, dict[str, np.ndarray]]


def run(subject: Subject, layout: Layout, *problems: Problem) -> list[Run]:
    """The runs of a rule on one or two problems, followed by its runs on the same
    problems with all inputs perturbed by about `JITTER`.

    All of them are rows of one program, compiled once for each layout.
    """
    rows = [_inputs(p, jitter) for jitter in (0.0, JITTER) for p in problems]
    number = len(rows)
    # Always four rows, so that nothing is compiled twice.
    rows += [rows[0]] * (4 - number)
    stacked = [np.stack(column) for column in zip(*rows, strict=True)]
    with jax.enable_x64(True), subject.promotion():
        program = subject.compiled(layout, jax.vmap(_program(subject, layout)))
        found = jax.tree.map(np.asarray, program(*stacked))
    return [Run(*jax.tree.map(lambda x: x[i], found)) for i in range(number)]


def _inputs(problem: Problem, jitter: float) -> tuple[Any, ...]:
    """The numbers of a problem, and noise for the parameters that a rule gets."""
    steps, size = problem.grads.shape
    signs = np.random.RandomState(0).choice([-1.0, 1.0], (steps + 1, size, 2))
    return (
        problem.start * (1 + jitter * signs[-1, :, 0]),
        problem.grads * (1 + jitter * signs[:steps, :, 1]),
        problem.values * (1 + jitter * signs[:steps, 0, 1]),
        np.array(problem.curvature),
        jitter * signs[:steps, :, 0],
    )


def _program(subject: Subject, layout: Layout) -> Any:
    rule, places = subject.rule, places_of(subject)

    def kept(state: Any) -> dict[str, dict[str, Any]]:
        return {
            law: {term: _as_array(x) for term, x in place.read(state).items()}
            for law, place in places.items()
        }

    def program(start: Any, grads: Any, values: Any, curvature: Any, noise: Any) -> Any:
        problem = Problem(start, grads, values, curvature)

        def step(carry: Any, i: Any) -> Any:
            x, state = carry
            # Parameters that have not moved have not been rounded.
            shown = jnp.where(x == start, x, x * (1 + noise[i]))

            def grad_fn(params: Tree, *_: Any) -> Tree:
                return layout.tree(problem.grad(layout.vector(params), i))

            params = layout.tree(shown)
            extra = {
                "value": problem.value(shown, i),
                "grad_fn": grad_fn,
                "key": jax.random.key(0),
            }
            updates, state = rule.update(
                layout.tree(problem.grad(shown, i)),
                state,
                params,
                **{name: extra[name] for name in subject.takes},
            )
            update = layout.vector(updates)
            x = x + update
            evaluated = rule.eval_params(state, layout.tree(x))
            return (x, state), (update, x, layout.vector(evaluated), kept(state))

        state = rule.init(layout.tree(start))
        first = kept(state)
        _, seen = lax.scan(step, (start, state), jnp.arange(len(values)))
        terms = jax.tree.map(
            lambda x, xs: jnp.concatenate([x[None], xs]), first, seen[3]
        )
        return *seen[:3], terms

    return program


def _as_array(x: Any) -> Any:
    """A term as one array: a number or a vector as it is, a tree as its coordinates."""
    if hasattr(x, "shape"):
        return jnp.asarray(x, float)
    parts = [jnp.ravel(part) for a in jax.tree.leaves(x) for part in (a.real, a.imag)]
    return jnp.concatenate(parts)
