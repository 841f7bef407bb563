"""Runs of a rule on a problem, and how far two of them may differ by rounding alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Float

from .._types import Tree
from ._law import Unsuited
from ._problem import Layout, Problem
from ._subject import Subject


# The rounding unit of double precision, in which all of this runs.
UNIT = 2.0**-53

# Inputs are perturbed by this much to see how a run amplifies rounding: far above it,
# so that the response is not noise itself, and far below every number of the problems.
JITTER = 2.0**-36

# The distances of rules that measure them, among the state fields of `optax.contrib`.
_DISTANCES = ("estim_dist", "max_dist", "estim_lr", "estim_sq_dist")

# What the laws of wrappers speak of, among the fields of their states.
AVERAGE = ("z", "weight_sum", "b1")
MECHANIC = ("x0", "s")


class Run(NamedTuple):
    """What a rule did on a problem.

    - `updates`: the update of each step.
    - `points`: the parameters after it.
    - `evaluated`: where to evaluate the model then.
    - `distance`: its estimate of a distance, before the first step and after each; NaN
        if it reports none.
    - `parts`: the fields of its state that laws of wrappers speak of, if it has them.
    """

    updates: Float[np.ndarray, "steps size"]
    points: Float[np.ndarray, "steps size"]
    evaluated: Float[np.ndarray, "steps size"]
    distance: Float[np.ndarray, " steps+1"]
    parts: dict[str, np.ndarray]


def run(subject: Subject, layout: Layout, *problems: Problem) -> list[Run]:
    """The runs of a rule on one problem or two, and after them its runs on these with
    all that rounding can reach changed by about `JITTER`.

    One program for each layout runs them all.
    """
    rows = [_inputs(p, jitter) for jitter in (0.0, JITTER) for p in problems]
    number = len(rows)
    # Always so many rows, so that nothing is compiled twice.
    rows += [rows[0]] * (4 - number)
    stacked = [np.stack(column) for column in zip(*rows, strict=True)]
    with jax.enable_x64(True), subject.promotion():
        program = subject.compiled(layout, jax.vmap(_program(subject, layout)))
        found = jax.tree.map(np.asarray, program(*stacked))
    return [Run(*jax.tree.map(lambda x: x[i], found)) for i in range(number)]


def _inputs(problem: Problem, jitter: float) -> tuple[Any, ...]:
    """The numbers of a problem, and the noise on the parameters that a rule is
    shown."""
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
    rule, estimate = subject.rule, distance_of(subject)

    def distance(state: Any) -> Any:
        return jnp.asarray(jnp.nan if estimate is None else estimate[1](state), float)

    def program(start: Any, grads: Any, values: Any, curvature: Any, noise: Any) -> Any:
        problem = Problem(start, grads, values, curvature)

        def step(carry: Any, i: Any) -> Any:
            x, state = carry
            # What has not moved has not been rounded.
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
            parts = {
                name: part
                for names in (AVERAGE, MECHANIC)
                if (found := parts_of(subject, names)) is not None
                for name, part in zip(names, found[1](state), strict=True)
            }
            parts = {k: layout.vector(p) if k in "zx0" else p for k, p in parts.items()}
            seen = (update, x, layout.vector(evaluated), distance(state), parts)
            return (x, state), seen

        state = rule.init(layout.tree(start))
        _, seen = lax.scan(step, (start, state), jnp.arange(len(values)))
        first = distance(state)[None]
        return *seen[:3], jnp.concatenate([first, seen[3]]), seen[4]

    return program


def distance_of(subject: Subject) -> tuple[str, Callable[[Any], Any]] | None:
    """Where a rule's estimate of the distance to the solution is found in its state:
    as code, and as a function. It is its metric `.../distance`, or the field of its
    state that optax has it in; `None` if there is neither."""
    return subject.once("distance", lambda: _distance_of(subject))


def _distance_of(subject: Subject) -> tuple[str, Callable[[Any], Any]] | None:
    like = jax.ShapeDtypeStruct((2,), jnp.float32)
    with subject.promotion():
        state = jax.eval_shape(subject.rule.init, like)
        metrics = jax.eval_shape(subject.rule.metrics, state)
    for name in metrics:
        if name.split("/")[-1] == "distance":
            code = f'transform.metrics(state)["{name}"]'
            return code, lambda state: subject.rule.metrics(state)[name]
    paths = [path for path, _ in jtu.tree_leaves_with_path(state)]
    for i, path in enumerate(paths):
        if path and getattr(path[-1], "name", "") in _DISTANCES:
            code = f"state{jtu.keystr(path)}"
            if "_sq" in path[-1].name:
                return f"{code} ** 0.5", lambda state: jax.tree.leaves(state)[i] ** 0.5
            return code, lambda state: jax.tree.leaves(state)[i]
    return None


def parts_of(
    subject: Subject, names: tuple[str, ...]
) -> tuple[str, Callable[[Any], list[Any]]] | None:
    """Where in a state there is the only part that has all these fields, as code, and
    what gets them; `None` unless there is one."""

    def has_all(node: Any) -> bool:
        return all(hasattr(node, name) for name in names)

    def found(state: Any) -> list[Any]:
        nodes = jtu.tree_leaves_with_path(state, is_leaf=has_all)
        return [(path, x) for path, x in nodes if has_all(x)]

    with subject.promotion():
        like = jax.ShapeDtypeStruct((2,), jnp.float32)
        places = found(jax.eval_shape(subject.rule.init, like))
    if len(places) != 1:
        return None
    code = f"state{jtu.keystr(places[0][0])}"
    return code, lambda state: [getattr(found(state)[0][1], name) for name in names]


def rounding(exact: Run, jittered: Run) -> np.ndarray:
    r"""How much two updates at each step may differ that are equal but for rounding.

    The condition $\kappa$ of a run is measured: by what factor it amplifies relative
    perturbations (of size `JITTER`) of the gradients and of the parameters that it
    is shown, which is where rounding enters. Each of $T$ steps of some dozens of
    operations perturbs them by that many units $u = 2^{-53}$ at most, which adds up to
    $2^8\, T u\, (\kappa + 1)$ times the largest update. A mutant that rounds to single
    precision is $2^{29} u$ off. Moreover an update is added to parameters that are
    rounded: what is below $2^4 u$ of the largest of these is nothing.

    **Raises:** `Unsuited` where the response is not small: at the edge of something
    that is not continuous, such as a sign, equality means nothing.
    """
    difference = np.abs(jittered.updates - exact.updates)
    change = np.maximum.accumulate(np.max(difference, axis=1))
    largest = np.maximum.accumulate(np.max(np.abs(exact.updates), axis=1))
    if not np.isfinite(change).all():
        raise Unsuited("the updates of each case drawn are not finite")
    if np.any(change > 2.0**-6 * largest):
        raise Unsuited("each case drawn was at the edge of a discontinuity")
    befores = exact.points - exact.updates
    parameter = max(np.max(np.abs(exact.points)), np.max(np.abs(befores)))
    amplified = 2.0**8 * len(change) * UNIT * (change / JITTER + largest)
    return amplified + 2.0**4 * UNIT * parameter
