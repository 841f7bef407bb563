"""Broken transforms, each of which a law must catch, and what they are broken from.

Each is a plausible way to get a rule, a wrapper or a chain wrong, as a recipe: so its
counterexample is code that makes it. Here are the parts that they are made of, which
are lawful; the mutants are in `mutants_contract.py`, `mutants_algebra.py` and
`mutants_wrappers.py`.
"""

import functools as ft
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from contrib_core import (
    AbstractState,
    AbstractTransform,
    Count,
    Extra,
    increment,
    P,
    RealLike,
    Scalar,
    Tree,
    tree,
    zero_count,
)
from contrib_core.laws import LAWS, Outcome, Subject


Recipe = TypeVar("Recipe", bound=Callable[..., Any])


@dataclass(frozen=True)
class Mutant:
    """`recipe` makes what breaks `law`, which code shows if it is `coded`."""

    law: str
    recipe: Callable[..., Any]
    coded: bool = True

    @property
    def name(self) -> str:
        """That of the recipe, which says what is wrong."""
        return self.recipe.__name__


MUTANTS: list[Mutant] = []

LAWFUL: dict[str, list[Callable[..., Any]]] = {}
"""By law, recipes of transforms that keep it."""

# What else is said of a recipe to `Subject`.
ABOUT: dict[Callable[..., Any], dict[str, Any]] = {}


def check(law: str, recipe: Callable[..., Any], shrink: bool = True) -> Outcome:
    """What comes of checking a law of what a recipe makes."""
    return LAWS[law].check(_subject(recipe), shrink=shrink)


@ft.lru_cache(maxsize=2)  # Programs take memory.
def _subject(recipe: Callable[..., Any]) -> Subject:
    """What a recipe makes, whose compiled programs all laws use."""
    return Subject(recipe, **ABOUT.get(recipe, {}))


def mutant(*laws: str, coded: bool = True, **about: Any) -> Callable[[Recipe], Recipe]:
    """Registers a recipe as a mutant that each of `laws` must kill.

    **Arguments:**

    - `coded`: whether there is code that shows it.
    - `about`: more about the subject.
    """

    def register(recipe: Recipe) -> Recipe:
        MUTANTS.extend(Mutant(law, recipe, coded) for law in laws)
        ABOUT[recipe] = about
        return recipe

    return register


def lawful(*laws: str, **about: Any) -> Callable[[Recipe], Recipe]:
    """Registers a recipe as one that keeps each of `laws`; the first of a law is what
    its mutants are broken from."""

    def register(recipe: Recipe) -> Recipe:
        for law in laws:
            LAWFUL.setdefault(law, []).append(recipe)
        ABOUT[recipe] = about
        return recipe

    return register


# Rules by functions


class Rule(AbstractTransform[Any]):
    """A rule of two functions: the state of `params`, and updates and state of `grads`,
    `state` and `params`."""

    first: Callable[[Tree], Any] = eqx.field(static=True)
    then: Callable[[Tree, Any, Tree], tuple[Tree, Any]] = eqx.field(static=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"params"})

    def start(self, params: Tree) -> Any:
        return self.first(params)

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        return self.then(grads, state, params)


def memoryless(updates: Callable[[Tree, Tree], Tree]) -> Rule:
    """A rule without a state: updates of gradients and parameters."""
    return Rule(lambda x: None, lambda g, state, x: (updates(g, x), None))


def counting(updates: Callable[[Tree, Tree, Count], Tree]) -> Rule:
    """As `memoryless`, but for the number of the step."""
    return Rule(
        lambda x: zero_count(),
        lambda g, t, x: (updates(g, x, t), increment(t)),
    )


def descent(grads: Tree) -> Tree:
    """The updates of gradient descent."""
    return tree.scale(-0.1, grads)


def normalized(grads: Tree) -> Tree:
    """The updates of normalised gradient descent."""
    return tree.scale(tree.divide(-0.1, tree.norm(grads)), grads)


def rounded(x: Tree) -> Tree:
    """`x` rounded to single precision."""
    return jax.tree.map(_round, x)


def _round(a: Any) -> Any:
    narrow = "complex64" if jnp.iscomplexobj(a) else "float32"
    return a.astype(narrow).astype(a.dtype)


# Distance over gradients


class DistanceState(AbstractState[P]):
    count: Count
    start: P
    distance: Scalar
    sum_sq: Scalar


class Distance(AbstractTransform[DistanceState[Tree]]):
    """Distance over gradients, of functions that mutants replace.

    - `guess`: the first distance, of `reps_rel` and the first parameters.
    - `measure`: how far two parameters are apart.
    - `grow`: the next distance, of that before, that travelled, the number of the step
        and the gradients.
    - `sum_sq`: what the sum of squares starts at.
    """

    reps_rel: RealLike = 0.25
    guess: Callable[..., Any] = eqx.field(static=True, default=lambda reps, x0: reps)
    measure: Callable[..., Any] = eqx.field(
        static=True, default=lambda x, y: tree.norm(tree.sub(x, y))
    )
    grow: Callable[..., Any] = eqx.field(
        static=True,
        default=lambda before, travelled, t, g: jnp.maximum(before, travelled),
    )
    sum_sq: RealLike = 0.0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"params"})

    def start(self, params: Tree) -> DistanceState[Tree]:
        return DistanceState(
            count=zero_count(),
            start=params,
            distance=tree.scalar(self.guess(self.reps_rel, params), like=params),
            sum_sq=tree.scalar(self.sum_sq, like=params),
        )

    def step(
        self, grads: Tree, state: DistanceState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, DistanceState[Tree]]:
        travelled = self.measure(params, state.start)
        distance = self.grow(state.distance, travelled, state.count, grads)
        sum_sq = state.sum_sq + tree.sq_norm(grads)
        updates = tree.scale(-tree.divide(distance, tree.sqrt(sum_sq)), grads)
        new_state = DistanceState(increment(state.count), state.start, distance, sum_sq)
        return updates, new_state

    def metrics(self, state: DistanceState[Tree]) -> dict[str, Scalar]:
        return {"distance/distance": state.distance}
