"""The transforms of the atlas, one line each."""

import ast
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import optax
from optax import contrib

import contrib_algos
import contrib_core
import contrib_wrappers
from contrib_core import AbstractTransform, Terms
from contrib_laws import Subject
from contrib_wrappers import (
    master_weights,
    schedule_free,
    split_real_and_imaginary,
)


def _schedule_free(inner: AbstractTransform) -> AbstractTransform:
    """Schedule-free, at z around a transform that recovers points of its own from the
    parameters, because only its own updates move z."""
    return schedule_free(inner, 0.1, base_at="z" if inner.owns_iterates else "y")


# Every transform must compose with these wrappers.
_WRAPPERS = {
    "schedule_free": _schedule_free,
    "split_real_and_imaginary": split_real_and_imaginary,
    "master_weights": master_weights,
}


@dataclass(frozen=True)
class Entry:
    """A row of the atlas.

    **Arguments:**

    - `group`: its distribution.
    - `modules`: the modules that the names in the expression are taken from, the first
        module first.
    - `expression`: a transform, or a recipe, which laws of wrappers call themselves. It
        is text, because counterexamples begin with it.
    - `guess`, `terms`: as for `contrib_laws.Subject`; ours declare them.
    """

    group: str
    modules: tuple[ModuleType, ...]
    expression: str
    guess: str | None = None
    terms: Terms = field(default_factory=dict)

    def subject(self) -> Subject:
        """The transform as a subject.

        **Raises:** any exception of the expression.
        """
        nodes = ast.walk(ast.parse(self.expression))
        names = [node.id for node in nodes if isinstance(node, ast.Name)]
        found = {n: m for n in names for m in self.modules[::-1] if hasattr(m, n)}
        transform: Any = eval(
            self.expression, {name: getattr(m, name) for name, m in found.items()}
        )
        imports = [f"from {m.__name__} import {name}" for name, m in found.items()]
        is_recipe = self.expression in found  # `Subject` writes its call.
        code = "\n".join([*imports, f"transform = {self.expression}"])
        return Subject(
            transform,
            name=self.expression,
            code="" if is_recipe else code,
            wrappers=_WRAPPERS,
            guess=self.guess,
            terms=self.terms,
        )


OURS = "contrib-algebra"
PEER = f"optax.contrib {optax.__version__}"


def _ours(expression: str) -> Entry:
    return Entry(OURS, (contrib_algos, contrib_wrappers, contrib_core), expression)


def _peer(expression: str, guess: str | None = None, **terms: Any) -> Entry:
    return Entry(PEER, (contrib, optax), expression, guess, terms)


def _estimating(expression: str, guess: str | None = None, **distance: str) -> Entry:
    """A rule of optax with an estimate of the distance, in a field of its state."""
    return _peer(expression, guess, monotone=distance, bounded_growth=distance)


_AVERAGE = {"z": "z", "weight": "weight_sum", "beta": "b1"}
_MODES = {"adversary": "adv_optimizer", "opaque": "opaque_mode"}


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
    "dog_layer_wise": _ours("layerwise(dog())"),
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
    "bucketed": _ours("bucketed"),
    "average": _ours("average"),
    "mechanize": _ours("mechanize"),
    "sam": _ours("sam"),
    "optax.cocob": _peer("cocob"),
    "optax.dadapt_adamw": _estimating("dadapt_adamw", "estim_lr0", distance="estim_lr"),
    "optax.dog": _estimating("dog", distance="max_dist"),
    "optax.dowg": _estimating(
        "dowg", "init_estim_sq_dist", squared_distance="estim_sq_dist"
    ),
    "optax.mechanize": _peer(
        "mechanize",
        "s_init",
        scaled_sum={"start": "x0", "scale": "s", "epsilon": "eps"},
    ),
    "optax.momo": _peer("momo"),
    "optax.momo_adam": _peer("momo_adam"),
    "optax.prodigy": _estimating("prodigy", "estim_lr0", distance="estim_lr"),
    "optax.sam": _peer(
        "sam", period_one={"period": "sync_period"}, radius_zero=_MODES, opaque=_MODES
    ),
    "optax.sam_normalized": _peer("sam(sgd(0.1), chain(normalize(), sgd(0.05)))"),
    "optax.schedule_free": _peer("schedule_free", average=_AVERAGE),
    "optax.schedule_free_sgd": _peer("schedule_free_sgd", average=_AVERAGE),
    "optax.schedule_free_adamw": _peer("schedule_free_adamw", average=_AVERAGE),
    "optax.split_real_and_imaginary": _peer("split_real_and_imaginary"),
}
