"""Whether the first guess of a distance matters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax

from contrib_core import as_transform

from .._law import Fault, Law, Unsuited
from .._problem import ARRAY, array_code, coordinates
from .._recipe import annotations_of, is_first_guess
from .._subject import Subject
from .._write import extras_code


SIX_DECADES = np.logspace(-8, -2, 7)
STEPS = 400

# The final loss may vary by this share of the first one.
FLAT = 0.05


@dataclass(frozen=True)
class Bowl:
    """$\\tfrac12 \\sum_i h_i (x_i - x^*_i)^2$, from a start."""

    start: np.ndarray
    solution: np.ndarray
    curvatures: np.ndarray


def _bowls(subject: Subject) -> st.SearchStrategy[Bowl]:
    size = ARRAY.size
    curvatures = st.lists(
        st.sampled_from([1.0, 0.25, 4.0]), min_size=size, max_size=size
    )
    vectors = coordinates(size), coordinates(size)
    bowls = st.builds(Bowl, *vectors, curvatures.map(np.array))
    return bowls.filter(lambda b: bool(np.any(b.start != b.solution)))


# The guess


def _guess(subject: Subject) -> tuple[str, Callable[[Any], Any]] | None:
    """The name of a rule's first guess, and the rule as a function of it."""
    for name, p in subject.parameters.items():
        if _is_guess(subject, name, p.annotation):
            return name, lambda guess: as_transform(subject.make(**{name: guess}))
    leaves = jtu.tree_leaves_with_path(subject.rule, is_leaf=_is_none)
    fields = [field for path, _ in leaves if (field := _guess_at(subject, path))]
    if not fields:
        return None
    name = fields[0]

    def with_guess(guess: Any) -> Any:
        def leaf(path: Any, x: Any) -> Any:
            return guess if _guess_at(subject, path) == name else x

        return jtu.tree_map_with_path(leaf, subject.rule, is_leaf=_is_none)

    return name, with_guess


def _is_guess(subject: Subject, name: str, annotation: Any) -> bool:
    if subject.guess is not None:
        return name == subject.guess
    return is_first_guess(annotation)


def _guess_at(subject: Subject, path: tuple[Any, ...]) -> str:
    """The name of the field at a path of the rule, if it is a first guess."""
    owner: Any = subject.rule
    for key in path[:-1]:
        owner = _child(owner, key)
    name = getattr(path[-1], "name", "") if path else ""
    annotation = annotations_of(type(owner)).get(name)
    return name if _is_guess(subject, name, annotation) else ""


def _child(node: Any, key: Any) -> Any:
    """The part of a pytree at a key; `None` where keys do not name parts."""
    match key:
        case jtu.GetAttrKey(name=name):
            return getattr(node, name, None)
        case jtu.SequenceKey(idx=index):
            return node[index]
        case jtu.DictKey(key=name):
            return node[name]
    return None


def _is_none(x: Any) -> bool:
    """Whether a guess is left open, so that another hyperparameter stands for it."""
    return x is None


def _has_no_guess(subject: Subject) -> str | None:
    if _guess(subject) is not None:
        return None
    if subject.guess is not None:
        return f"it has no parameter and no field `{subject.guess}`"
    return (
        "no parameter is annotated as a first guess (`contrib_core.ranges.Guess`); to "
        "name one, pass guess="
    )


# The law


def _is_sensitive(subject: Subject, bowl: Bowl) -> Fault | None:
    name, make = _guess(subject) or ("", lambda guess: subject.rule)
    with jax.enable_x64(True), subject.promotion():
        program = subject.compiled("guess", _program(subject, make))
        try:
            found = program(SIX_DECADES, bowl.start, bowl.solution, bowl.curvatures)
        except jax.errors.ConcretizationTypeError as error:
            raise Unsuited(
                f"{name} cannot be an array, so it cannot be varied"
            ) from error
    losses = np.where(np.isnan(found), np.inf, found)
    if np.isfinite(losses).all() and np.ptp(losses) <= FLAT:
        return None
    worst, best = np.argmax(losses), np.argmin(losses)
    return Fault(
        f"after {STEPS} steps with {name}={SIX_DECADES[worst]:.0e} the loss is "
        f"{losses[worst]:.3g} of the first one, with {SIX_DECADES[best]:.0e} "
        f"{losses[best]:.3g}",
        _code(subject, name, bowl),
    )


def _code(subject: Subject, name: str, bowl: Bowl) -> str:
    """A test of a recipe that takes the guess as an argument; empty without one."""
    made = subject.make_code(**{name: "guess"})
    if not made:
        return ""
    parts = map(array_code, (bowl.start, bowl.solution, bowl.curvatures))
    value = "jnp.sum(h * (x - solution) ** 2) / 2"
    extras = extras_code(subject, value, "lambda p, *_: h * (p - solution)")
    return f"""\
start, solution, h = {", ".join(parts)}

def final_loss(guess):
    transform = {made}
    update = jax.jit(lambda x, state: transform.update(
        h * (x - solution), state, x{extras}
    ))
    x, state = jnp.asarray(start), transform.init(jnp.asarray(start))
    for _ in range({STEPS}):
        u, state = update(x, state)
        x = x + u
    return jnp.sum(h * (x - solution) ** 2) / jnp.sum(h * (start - solution) ** 2)

with jax.enable_x64(True):
    losses = [float(final_loss(10.0**-k)) for k in range(2, 9)]
assert np.ptp(losses) <= {FLAT}, losses"""


def _program(subject: Subject, make: Callable[[Any], Any]) -> Any:
    def final_loss(guess: Any, start: Any, solution: Any, curvatures: Any) -> Any:
        rule = make(guess)

        def loss(x: Any) -> Any:
            return jnp.sum(curvatures * (x - solution) ** 2) / 2

        def step(carry: Any, _: None) -> Any:
            x, state = carry
            value, grad = jax.value_and_grad(loss)(x)
            extra = {
                "value": value,
                "grad_fn": lambda x, *_: jax.grad(loss)(x),
                "key": jax.random.key(0),
            }
            extra = {name: extra[name] for name in subject.takes}
            updates, state = rule.update(grad, state, x, **extra)
            return (x + updates, state), None

        (x, state), _ = lax.scan(step, (start, rule.init(start)), length=STEPS)
        return loss(rule.eval_params(state, x)) / loss(start)

    return jax.vmap(final_loss, in_axes=(0, None, None, None))


initial_guess = Law(
    "initial_guess",
    "algebra",
    "The first guess of the distance to the solution does not matter over six decades.",
    r"\max_{d_0} f(x_T) - \min_{d_0} f(x_T) \le 0.05 f(x_0), "
    r"\quad 10^{-8} \le d_0 \le 10^{-2}",
    "a twentieth of the first loss, after 400 steps",
    _is_sensitive,
    drawn=_bowls,
    excuse=_has_no_guess,
    hooks=("eval_params",),
    share=0.25,
)
