"""Composition, and the small transforms that recipes are composed of."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from . import tree
from ._checks import check_nonnegative
from ._coordinates import masked
from ._optax import as_transform
from ._schedule import at, increment, zero_count
from ._state import AbstractState, Extra
from ._symmetry import free_of, ISOMETRIES
from ._transform import AbstractTransform, name_of, Transform
from ._types import Count, is_zero, P, RealLike, RealOrSchedule, Scalar, Tree


class Chain(AbstractTransform[tuple[Any, ...]]):
    """Transforms in sequence: the updates of one are the gradients of the next.

    Its state is the tuple of theirs.

    **Raises:** `ValueError` where updates are scaled or decayed behind a transform that
    recovers points of its own from where they lead, as all that average do; and where
    anything comes before a transform of single examples, or needs their losses behind
    it. What is behind it is given no extras but a `key`.
    """

    transforms: tuple[AbstractTransform, ...]

    def __init__(self, *transforms: Transform):
        self.transforms = tuple(
            as_transform(t, is_first=i == 0) for i, t in enumerate(transforms)
        )
        for i, t in enumerate(self.transforms):
            behind = next(filter(_rescales, self.transforms[i + 1 :]), None)
            if "examples" in t.needs:
                _check_private(t, self.transforms[i + 1 :])
            if "iterates" in t.needs and behind is not None:
                raise ValueError(
                    f"Chain: {name_of(t)} recovers points of its own from the "
                    "parameters, which its updates alone must move, and "
                    f"{name_of(behind)} would change these. Put it behind: "
                    f"`chain(..., {name_of(t)})`."
                )

    @property
    def needs(self) -> frozenset[str]:
        """What any of them needs."""
        return frozenset().union(*(t.needs for t in self.transforms))

    @property
    def laws(self) -> frozenset[str]:
        """The symmetries that all of them have, in which gradients and updates change
        alike; what the first one makes of scaled gradients; and monotone estimates."""
        each = [t.laws for t in self.transforms]
        scale = each[0] & {"gradient_scale"} if each else frozenset()
        monotone = frozenset().union(*each) & {"monotone"}
        return ISOMETRIES.intersection(*each) | scale | monotone

    def receive(self, who: str, grads: PyTree[Any], params: Tree) -> Tree:
        if not self.transforms:
            return super().receive(who, grads, params)
        return self.transforms[0].receive(who, grads, params)

    def start(self, params: Tree) -> tuple[Any, ...]:
        return tuple(t.start(params) for t in self.transforms)

    def step(
        self, grads: Tree, state: tuple[Any, ...], params: Tree, extra: Extra
    ) -> tuple[Tree, tuple[Any, ...]]:
        new_states = []
        for transform, inner_state in zip(self.transforms, state, strict=True):
            grads, new_state = transform.step(grads, inner_state, params, extra)
            new_states.append(new_state)
            if "examples" in transform.needs:
                extra = extra.only("key")  # Losses of the examples are not private.
        return grads, tuple(new_states)

    def eval_point(self, state: tuple[Any, ...], params: Tree) -> Tree:
        for transform, inner_state in zip(self.transforms, state, strict=True):
            params = transform.eval_point(inner_state, params)
        return params

    def metrics(self, state: tuple[Any, ...]) -> dict[str, Scalar]:
        """Those of all; a name met before is prefixed by its transform's index."""
        merged: dict[str, Scalar] = {}
        for i, (t, inner) in enumerate(zip(self.transforms, state, strict=True)):
            merged = merge_metrics(merged, t.metrics(inner), str(i))
        return merged


def _check_private(first: AbstractTransform, behind: tuple[AbstractTransform, ...]):
    for t in behind:
        if unprotected := t.needs & {"value", "grad_fn"}:
            raise ValueError(
                f"Chain: {name_of(t)} needs `{min(unprotected)}`, which shows what "
                f"{name_of(first)} hides: of the examples, it alone is private."
            )


def _rescales(t: AbstractTransform) -> bool:
    """Whether it is known to change whatever updates it is given."""
    if isinstance(t, Scale):
        return t.negate or not (isinstance(t.factor, int | float) and t.factor == 1)
    return isinstance(t, AddDecayedWeights)


def merge_metrics(
    first: dict[str, Scalar], second: dict[str, Scalar], prefix: str
) -> dict[str, Scalar]:
    """All metrics of both; names of `second` that are taken get `prefix`."""
    merged = dict(first)
    for name, x in second.items():
        while name in merged:
            name = f"{prefix}/{name}"
        merged[name] = x
    return merged


def chain(*transforms: Transform) -> AbstractTransform:
    """[`contrib_core.Chain`][] as a monoid: nested chains are flattened, so that it is
    associative; `chain()` is the identity, and `chain(t)` is `t`.

    **Raises:** `TypeError` for anything that is not a transform, ours or optax's.
    """
    flat: list[AbstractTransform] = []
    for given in transforms:
        t = as_transform(given, is_first=not flat)
        flat.extend(t.transforms if isinstance(t, Chain) else [t])
    return flat[0] if len(flat) == 1 else Chain(*flat)


class ScaleState(AbstractState[P]):
    """State of [`contrib_core.Scale`][]."""

    count: Count | None  # None under a constant factor.


class Scale(AbstractTransform[ScaleState]):
    """Multiplies gradients by `factor`, or by minus it with `negate`.

    **Arguments:**

    - `factor`: a number, or a schedule of the step count from 0.
    - `negate`: whether to turn a direction of ascent into a step of descent.
    """

    factor: RealOrSchedule
    negate: bool = eqx.field(default=False, static=True)

    @property
    def laws(self) -> frozenset[str]:
        """It is linear in the gradients, and knows nothing else."""
        return ISOMETRIES

    def start(self, params: Tree) -> ScaleState:
        return ScaleState(zero_count() if callable(self.factor) else None)

    def step(
        self, grads: Tree, state: ScaleState, params: Tree, extra: Extra
    ) -> tuple[Tree, ScaleState]:
        factor = at(self.factor, state.count, like=grads)
        scaled = tree.scale(-factor if self.negate else factor, grads)
        count = None if state.count is None else increment(state.count)
        return scaled, ScaleState(count)


def scale(factor: RealOrSchedule) -> Scale:
    """Multiplies updates by `factor`, a dimensionless number or schedule."""
    return Scale(factor)


def scale_by_learning_rate(learning_rate: RealOrSchedule) -> Scale:
    """Multiplies by minus the learning rate: turns a direction of ascent, such as a
    gradient, into a step of descent."""
    return Scale(learning_rate, negate=True)


class AddDecayedWeights(AbstractTransform[None]):
    """Adds `rate * params` to the gradients.

    Before a rule that is L2 regularisation; behind its preconditioner, decoupled weight
    decay (Loshchilov & Hutter, arXiv 1711.05101).
    """

    rate: RealLike

    def __post_init__(self):
        check_nonnegative(self, "rate")

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, which it adds."""
        return frozenset({"params"})

    @property
    def laws(self) -> frozenset[str]:
        """It decays towards the origin, so it knows where that is."""
        return ISOMETRIES - {"translation"} | free_of(self.rate, "translation")

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return tree.axpy(self.rate, params, grads), None


def add_decayed_weights(rate: RealLike | None, mask: Any = None) -> AbstractTransform:
    """Adds `rate * params` to the gradients of the leaves that `mask` selects.

    **Arguments:**

    - `rate`: at least 0, in units of gradients over parameters. `None` and a Python 0
        are no transform at all: `chain()`.
    - `mask`: as for [`contrib_core.masked`][]; by default every leaf.
    """
    if rate is None or is_zero(rate):
        return chain()
    decay = AddDecayedWeights(rate)
    return decay if mask is None else masked(decay, mask)


def apply_updates(params: PyTree[Any], updates: PyTree[Any]) -> PyTree[Any]:
    """`params + updates`, added in the accumulator dtype and rounded once.

    Leaves whose update is `None`, such as the functions of a raw equinox model, stay as
    they are.
    """

    def leaf(u: Any, p: Any) -> Any:
        return p if u is None else tree.add(jnp.asarray(p), u)

    return jax.tree.map(leaf, updates, params, is_leaf=lambda u: u is None)
