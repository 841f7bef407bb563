"""Small transforms that show one property each, and a few rules to run tests over."""

import pytest

from contrib_algos import adam, dog, prodigy
from contrib_core import AbstractTransform, Extra, Tree, tree
from contrib_core.claims import Needs, PARAMS
from contrib_wrappers import schedule_free_adamw


class Polyak(AbstractTransform[None]):
    """Needs the loss: steps along the gradient, times the loss."""

    @property
    def needs(self) -> Needs:
        return frozenset({"value", "params"})

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return tree.scale(-extra.value, grads), None


class Lookahead(AbstractTransform[None]):
    """Steps along the gradient at another point: twice the parameters."""

    @property
    def needs(self) -> Needs:
        return frozenset({"grad_fn", "params"})

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return extra.grad_fn(tree.scale(2, params), 0), None


class OwnsIterates(AbstractTransform[None]):
    """Recovers points of its own from the parameters."""

    @property
    def needs(self) -> Needs:
        return PARAMS

    @property
    def owns_iterates(self) -> bool:
        return True

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return grads, None


RULES: dict[str, AbstractTransform] = {
    "dog": dog(),
    "prodigy": prodigy(),
    "schedule_free_adamw": schedule_free_adamw(),
    "adam": adam(0.1),
}
over_rules = pytest.mark.parametrize("opt", RULES.values(), ids=RULES)
