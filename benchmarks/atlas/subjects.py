"""What the atlas is of: one line a transform."""

import ast
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import optax
from optax import contrib

import contrib_algos
import contrib_core
import contrib_wrappers
from contrib_core import AbstractTransform
from contrib_core.laws import Subject
from contrib_wrappers import (
    master_weights,
    schedule_free,
    split_real_and_imaginary,
)


def _schedule_free(inner: AbstractTransform) -> AbstractTransform:
    """Around what recovers points of its own from parameters, at those that it has
    moved itself."""
    return schedule_free(inner, 0.1, base_at="z" if "iterates" in inner.needs else "y")


# What everything must compose with.
_WRAPPERS = {
    "schedule_free": _schedule_free,
    "split_real_and_imaginary": split_real_and_imaginary,
    "master_weights": master_weights,
}


@dataclass(frozen=True)
class Entry:
    """A row of the atlas.

    **Arguments:**

    - `group`: whose it is.
    - `modules`: where the names in the expression are from; the first one that has a
        name counts.
    - `expression`: a transform, or a recipe, of which the laws of wrappers can make
        what they need. Kept as text, because counterexamples begin with it.
    """

    group: str
    modules: tuple[ModuleType, ...]
    expression: str

    def subject(self) -> Subject:
        """What is checked.

        **Raises:** whatever making the transform raises.
        """
        nodes = ast.walk(ast.parse(self.expression))
        names = [node.id for node in nodes if isinstance(node, ast.Name)]
        found = {n: m for n in names for m in self.modules[::-1] if hasattr(m, n)}
        transform: Any = eval(
            self.expression, {name: getattr(m, name) for name, m in found.items()}
        )
        imports = [f"from {m.__name__} import {name}" for name, m in found.items()]
        is_recipe = self.expression in found  # Which Subject knows how to call.
        code = "\n".join([*imports, f"transform = {self.expression}"])
        return Subject(
            transform,
            name=self.expression,
            code="" if is_recipe else code,
            wrappers=_WRAPPERS,
        )


OURS = "contrib-algebra"
PEER = f"optax.contrib {optax.__version__}"


def _ours(expression: str) -> Entry:
    return Entry(OURS, (contrib_algos, contrib_wrappers, contrib_core), expression)


def _peer(expression: str) -> Entry:
    return Entry(PEER, (contrib, optax), expression)


SUBJECTS: dict[str, Entry] = {
    "sgd": _ours("sgd(0.1)"),
    "momentum": _ours("sgd(0.1, momentum=0.9)"),
    "nesterov": _ours("sgd(0.1, momentum=0.9, nesterov=True)"),
    "adam": _ours("adam(0.1)"),
    "adam_eps_0": _ours("adam(0.1, eps=0.0)"),
    "adamw": _ours("adamw(0.1)"),
    "lion": _ours("lion(0.1)"),
    "normalize": _ours("normalize()"),
    "dog": _ours("dog()"),
    "dog_eps_0": _ours("dog(eps=0.0)"),
    "dog_init": _ours("dog(init_learning_rate=1e-3)"),
    "dog_layer_wise": _ours("dog(layer_wise=True)"),
    "dowg": _ours("dowg()"),
    "prodigy": _ours("prodigy()"),
    "prodigy_eps_0": _ours("prodigy(eps=0.0)"),
    "dadapt_adamw": _ours("dadapt_adamw()"),
    "cocob": _ours("cocob()"),
    "momo": _ours("momo()"),
    "momo_polyak": _ours("momo(float('inf'))"),
    "momo_adam": _ours("momo_adam()"),
    "chain": _ours("chain"),
    "chain_decay": _ours("chain(add_decayed_weights(0.01), sgd(0.1, momentum=0.9))"),
    "masked": _ours("masked"),
    "split_real_and_imaginary": _ours("split_real_and_imaginary"),
    "master_weights": _ours("master_weights"),
    "schedule_free": _ours("schedule_free"),
    "schedule_free_sgd": _ours("schedule_free_sgd()"),
    "schedule_free_adamw": _ours("schedule_free_adamw()"),
    "average": _ours("average"),
    "mechanize": _ours("mechanize"),
    "sam": _ours("sam"),
    "optax.cocob": _peer("cocob"),
    "optax.dadapt_adamw": _peer("dadapt_adamw"),
    "optax.dog": _peer("dog"),
    "optax.dowg": _peer("dowg"),
    "optax.mechanize": _peer("mechanize"),
    "optax.momo": _peer("momo"),
    "optax.momo_adam": _peer("momo_adam"),
    "optax.prodigy": _peer("prodigy"),
    "optax.sam": _peer("sam"),
    "optax.sam_normalized": _peer("sam(sgd(0.1), chain(normalize(), sgd(0.05)))"),
    "optax.schedule_free": _peer("schedule_free"),
    "optax.schedule_free_sgd": _peer("schedule_free_sgd"),
    "optax.schedule_free_adamw": _peer("schedule_free_adamw"),
    "optax.split_real_and_imaginary": _peer("split_real_and_imaginary"),
}
