"""The parts of mutants: transforms that a law must catch.

Each mutant is a plausible mistake in a rule, a wrapper or a chain. It is a recipe, so
that counterexamples can make it. Mutants are in `mutants_contract.py`,
`mutants_algebra.py` and `mutants_wrappers.py`; the parts in this file are lawful.
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
from contrib_core.claims import Needs
from contrib_core.ranges import Guess
from contrib_laws import LAWS, Outcome, Subject


Recipe = TypeVar("Recipe", bound=Callable[..., Any])


@dataclass(frozen=True)
class Mutant:
    """A recipe for a transform that breaks `law`, with code to show it if `coded`."""

    law: str
    recipe: Callable[..., Any]
    coded: bool = True

    @property
    def name(self) -> str:
        """The name of the recipe, which says what is wrong."""
        return self.recipe.__name__


MUTANTS: list[Mutant] = []

LAWFUL: dict[str, list[Callable[..., Any]]] = {}
"""By law, recipes for transforms that keep it."""

# For each recipe, more arguments of its `Subject`.
ABOUT: dict[Callable[..., Any], dict[str, Any]] = {}


def check(law: str, recipe: Callable[..., Any], shrink: bool = True) -> Outcome:
    """The outcome of checking a law for the transform of a recipe."""
    return LAWS[law].check(_subject(recipe), shrink=shrink)


@ft.lru_cache(maxsize=2)  # Programs take memory.
def _subject(recipe: Callable[..., Any]) -> Subject:
    """The transform of a recipe, with compiled programs that all laws share."""
    return Subject(recipe, **ABOUT.get(recipe, {}))


def mutant(*laws: str, coded: bool = True, **about: Any) -> Callable[[Recipe], Recipe]:
    """Registers a recipe as a mutant that each of `laws` must kill.

    **Arguments:**

    - `coded`: whether there is code that shows the mistake.
    - `about`: more arguments of the subject.
    """

    def register(recipe: Recipe) -> Recipe:
        MUTANTS.extend(Mutant(law, recipe, coded) for law in laws)
        ABOUT[recipe] = about
        return recipe

    return register


def lawful(*laws: str, **about: Any) -> Callable[[Recipe], Recipe]:
    """Registers a recipe as one that keeps each of `laws`. The mutants of a law are
    variations of its first recipe."""

    def register(recipe: Recipe) -> Recipe:
        for law in laws:
            LAWFUL.setdefault(law, []).append(recipe)
        ABOUT[recipe] = about
        return recipe

    return register


# Rules made of functions


class Rule(AbstractTransform[Any]):
    """A rule made of two functions: `params` to a state, and `grads`, `state` and
    `params` to updates and a state."""

    first: Callable[[Tree], Any] = eqx.field(static=True)
    then: Callable[[Tree, Any, Tree], tuple[Tree, Any]] = eqx.field(static=True)

    @property
    def needs(self) -> Needs:
        return frozenset({"params"})

    def start(self, params: Tree) -> Any:
        return self.first(params)

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        return self.then(grads, state, params)


def memoryless(updates: Callable[[Tree, Tree], Tree]) -> Rule:
    """A rule without a state, from a function of gradients and parameters."""
    return Rule(lambda x: None, lambda g, state, x: (updates(g, x), None))


def counting(updates: Callable[[Tree, Tree, Count], Tree]) -> Rule:
    """Like `memoryless`, but the function also takes the step number."""
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


class DistanceState(AbstractState):
    count: Count
    start: P
    distance: Scalar
    sum_sq: Scalar


class Distance(AbstractTransform[DistanceState]):
    """Distance over gradients, with functions that mutants replace.

    - `guess`: the first distance, from `first` and the first parameters.
    - `measure`: the distance between two parameters.
    - `grow`: the next distance, from the previous one, the distance travelled, the step
        number and the gradients.
    - `sum_sq`: the start of the sum of squares.
    """

    first: Guess = 0.25
    guess: Callable[..., Any] = eqx.field(static=True, default=lambda first, x0: first)
    measure: Callable[..., Any] = eqx.field(
        static=True, default=lambda x, y: tree.norm(tree.sub(x, y))
    )
    grow: Callable[..., Any] = eqx.field(
        static=True,
        default=lambda before, travelled, t, g: jnp.maximum(before, travelled),
    )
    sum_sq: RealLike = 0.0

    @property
    def needs(self) -> Needs:
        return frozenset({"params"})

    def start(self, params: Tree) -> DistanceState:
        return DistanceState(
            count=zero_count(),
            start=params,
            distance=tree.scalar(self.guess(self.first, params), like=params),
            sum_sq=tree.scalar(self.sum_sq, like=params),
        )

    def step(
        self, grads: Tree, state: DistanceState, params: Tree, extra: Extra
    ) -> tuple[Tree, DistanceState]:
        travelled = self.measure(params, state.start)
        distance = self.grow(state.distance, travelled, state.count, grads)
        sum_sq = state.sum_sq + tree.sq_norm(grads)
        updates = tree.scale(-tree.divide(distance, tree.sqrt(sum_sq)), grads)
        new_state = DistanceState(increment(state.count), state.start, distance, sum_sq)
        return updates, new_state

    def metrics(self, state: DistanceState) -> dict[str, Scalar]:
        return {"distance/distance": state.distance}
