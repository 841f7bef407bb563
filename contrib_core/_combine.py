"""Composition, and the small transforms that recipes are built from."""

from typing import Any, overload

import equinox as eqx
import jax
import jax.numpy as jnp

from . import tree
from ._coordinates import masked
from ._errors import Caller, name_of
from ._mechanism import AbstractMechanism
from ._optax import as_transform, FromOptax
from ._stage import AbstractStage
from ._state import AbstractState, Extra
from ._transform import AbstractTransform, Transform
from .claims import ISOMETRIES, Laws, laws_if_zero, Needs
from .ranges import in_range, is_zero, NonNegative, NumberOrSchedule, Rate
from .schedule import increment, value_at, zero_count
from .typing import AnyTree, Count, Mask, RealLike, RealOrSchedule, Scalar, T, Tree


class Chain(AbstractTransform[tuple[Any, ...]]):
    """Transforms in sequence: the updates of one are the gradients of the next.

    The state is the tuple of the states of the transforms.

    **Raises:** `ValueError` for a transform that scales or decays updates behind one
    that owns its iterates, such as an average of iterates.
    """

    transforms: tuple[AbstractTransform[Any], ...]

    def __init__(self, *transforms: Transform):
        self.transforms = tuple(map(as_transform, transforms))

    def __check_init__(self):
        for i, t in enumerate(self.transforms):
            behind = next(filter(_rescales, self.transforms[i + 1 :]), None)
            if t.owns_iterates and behind is not None:
                raise ValueError(
                    f"Chain: {name_of(t)} recovers points of its own from the "
                    "parameters, so only its own updates may move these, but "
                    f"{name_of(behind)} would change its updates. Put {name_of(t)} "
                    f"last: `chain(..., {name_of(t)})`."
                )

    @property
    def needs(self) -> Needs:
        """Everything that any of the transforms needs."""
        return frozenset[Any]().union(*(t.needs for t in self.transforms))

    @property
    def owns_iterates(self) -> bool:
        """Whether any of the transforms owns its iterates."""
        return any(t.owns_iterates for t in self.transforms)

    @property
    def laws(self) -> Laws:
        """The isometries that all transforms claim, `gradient_scale` if the first one
        claims it, and `monotone` if any of them does."""
        each = [t.laws for t in self.transforms]
        scale = each[0] & {"gradient_scale"} if each else frozenset()
        monotone = frozenset[Any]().union(*each) & {"monotone"}
        return ISOMETRIES.intersection(*each) | scale | monotone

    def start(self, params: Tree) -> tuple[Any, ...]:
        return tuple(t.start(params) for t in self.transforms)

    def step(
        self, grads: Tree, state: tuple[Any, ...], params: Tree, extra: Extra
    ) -> tuple[Tree, tuple[Any, ...]]:
        new_states = []
        for transform, inner_state in zip(self.transforms, state, strict=True):
            grads, new_state = transform.step(grads, inner_state, params, extra)
            new_states.append(new_state)
        return grads, tuple(new_states)

    def eval_point(self, state: tuple[Any, ...], params: Tree) -> Tree:
        for transform, inner_state in zip(self.transforms, state, strict=True):
            params = transform.eval_point(inner_state, params)
        return params

    def metrics(self, state: tuple[Any, ...]) -> dict[str, Scalar]:
        """All metrics; a name that is taken is prefixed with its transform's index."""
        return _metrics_of_all(self.transforms, state)


class ChainedMechanism(AbstractMechanism[tuple[Any, ...]]):
    """A mechanism, followed by transforms of the gradient that it returns.

    The state is the tuple of the states of the stages.

    **Raises:** `ValueError` for a transform behind the mechanism that needs `value` or
    `grad_fn`, because these reveal the examples.
    """

    mechanism: AbstractMechanism[Any]
    behind: Chain

    def __init__(self, mechanism: AbstractMechanism[Any], *behind: Transform):
        self.mechanism, self.behind = mechanism, Chain(*behind)

    def __check_init__(self):
        for t in self.behind.transforms:
            required = t.required if isinstance(t, FromOptax) else t.needs
            if unprotected := required - {"params", "key"}:
                raise ValueError(
                    f"Chain: {name_of(t)} needs `{min(unprotected)}`, which shows what "
                    f"{name_of(self.mechanism)} hides: only the gradient that it "
                    "returns is private."
                )

    @property
    def needs(self) -> Needs:
        """Everything that the mechanism or a transform needs."""
        return self.mechanism.needs | self.behind.needs

    @property
    def laws(self) -> Laws:
        """The laws that both parts claim, and `monotone` if the transforms claim it."""
        return self.behind.laws & (self.mechanism.laws | {"monotone"})

    def start(self, params: Tree) -> tuple[Any, ...]:
        return self.mechanism.start(params), *self.behind.start(params)

    def receive(self, caller: Caller, grads: AnyTree, params: Tree) -> Any:
        return self.mechanism.receive(caller, grads, params)

    def step(
        self, grads: Any, state: tuple[Any, ...], params: Tree, extra: Extra
    ) -> tuple[Tree, tuple[Any, ...]]:
        first, *rest = state
        gradient, first = self.mechanism.step(grads, first, params, extra)
        updates, rest = self.behind.step(gradient, tuple(rest), params, extra)
        return updates, (first, *rest)

    def eval_point(self, state: tuple[Any, ...], params: Tree) -> Tree:
        return self.behind.eval_point(state[1:], params)

    def metrics(self, state: tuple[Any, ...]) -> dict[str, Scalar]:
        return _metrics_of_all((self.mechanism, *self.behind.transforms), state)


def _metrics_of_all(
    stages: tuple[AbstractStage[Any], ...], states: tuple[Any, ...]
) -> dict[str, Scalar]:
    merged: dict[str, Scalar] = {}
    for i, (stage, state) in enumerate(zip(stages, states, strict=True)):
        merged = merge_metrics(merged, stage.metrics(state), str(i))
    return merged


def merge_metrics(
    first: dict[str, Scalar], second: dict[str, Scalar], prefix: str
) -> dict[str, Scalar]:
    """The metrics of both. Names of `second` that are taken become `prefix/name`."""
    merged = dict(first)
    for name, x in second.items():
        while name in merged:
            name = f"{prefix}/{name}"
        merged[name] = x
    return merged


@overload
def chain(
    mechanism: AbstractMechanism[Any], /, *transforms: Transform
) -> AbstractMechanism[Any]: ...
@overload
def chain(*transforms: Transform) -> AbstractTransform[Any]: ...
def chain(*transforms: Any) -> AbstractStage[Any]:
    """[`contrib_core.Chain`][] as a monoid. Nested chains are flattened, so that it is
    associative. `chain()` is the identity, and `chain(t)` is `t`.

    A chain that begins with a mechanism is a mechanism too.

    **Raises:** `TypeError` for anything but a transform of this package or of optax,
    and `ValueError` for a mechanism that is not first.
    """
    flat = [stage for t in transforms for stage in _stages_of(t)]
    if len(flat) == 1:
        return flat[0]
    # Both classes refuse a mechanism that is not first.
    if flat and isinstance(flat[0], AbstractMechanism):
        return ChainedMechanism(*flat)
    return Chain(*flat)


def _stages_of(t: Any) -> tuple[Any, ...]:
    match t:
        case Chain():
            return t.transforms
        case ChainedMechanism():
            return t.mechanism, *t.behind.transforms
        case AbstractMechanism():
            return (t,)
    return (as_transform(t),)


class ScaleState(AbstractState):
    """State of [`contrib_core.Scale`][]."""

    count: Count | None  # None under a constant factor.


class Scale(AbstractTransform[ScaleState]):
    """Multiplies gradients by `factor`, or by `-factor` with `negate`.

    **Arguments:**

    - `factor`: a dimensionless number, or a schedule of the step count from 0.
    - `negate`: whether to turn a direction of ascent into a step of descent.

    **Raises:** `ValueError` for a `factor` that is NaN or not a number.
    """

    factor: NumberOrSchedule
    negate: bool = eqx.field(default=False, static=True)

    @property
    def laws(self) -> Laws:
        """Every symmetry of a linear map that treats all coordinates alike."""
        return ISOMETRIES

    def start(self, params: Tree) -> ScaleState:
        return ScaleState(zero_count() if callable(self.factor) else None)

    def step(
        self, grads: Tree, state: ScaleState, params: Tree, extra: Extra
    ) -> tuple[Tree, ScaleState]:
        factor = value_at(self.factor, state.count, like=grads)
        scaled = tree.scale(-factor if self.negate else factor, grads)
        count = None if state.count is None else increment(state.count)
        return scaled, ScaleState(count)


scale = Scale


def scale_by_learning_rate(
    learning_rate: RealOrSchedule, flip_sign: bool = True
) -> AbstractTransform[Any]:
    """Multiplies by minus the learning rate. This turns a direction of ascent, such as
    a gradient, into a step of descent.

    **Arguments:**

    - `learning_rate`: a number, at least 0, or a schedule of the step count from 0.
    - `flip_sign`: whether to multiply by minus 1. Without it, a Python 1 as learning
        rate gives the identity, `chain()`.

    **Raises:** `ValueError` for a `learning_rate` that is negative, NaN or no number.
    """
    where = "scale_by_learning_rate: `learning_rate` must be"
    factor = in_range(where, Rate, learning_rate)
    return chain() if _is_one(factor) and not flip_sign else Scale(factor, flip_sign)


class AddDecayedWeights(AbstractTransform[None]):
    """Adds `weight_decay * params` to the gradients.

    In front of a rule, this is L2 regularisation. Behind the preconditioner of a rule,
    it is decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101).

    **Raises:** `ValueError` for a `weight_decay` that is negative, NaN or no number.
    """

    weight_decay: NonNegative

    @property
    def needs(self) -> Needs:
        """The parameters, which are added to the gradients."""
        return frozenset({"params"})

    @property
    def laws(self) -> Laws:
        """Every isometry that keeps the origin, because weights decay towards it."""
        moved = laws_if_zero(self.weight_decay, "translation")
        return ISOMETRIES - {"translation"} | moved

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return tree.axpy(self.weight_decay, params, grads), None


def add_decayed_weights(
    weight_decay: RealLike | None, mask: Mask | None = None
) -> AbstractTransform[Any]:
    """[`contrib_core.AddDecayedWeights`][] for the leaves that `mask` selects.

    **Arguments:**

    - `weight_decay`: at least 0, in units of gradients over parameters. `None` and a
        Python 0 give the identity, `chain()`.
    - `mask`: as for [`contrib_core.Masked`][]; by default every leaf.

    **Raises:** `ValueError` as these two classes do.
    """
    if weight_decay is None or is_zero(weight_decay):
        return chain()
    decay = AddDecayedWeights(weight_decay)
    return decay if mask is None else masked(decay, mask)


def _rescales(t: AbstractTransform[Any]) -> bool:
    """Whether a transform is known to scale or decay the updates that it is given."""
    if isinstance(t, Scale):
        return t.negate or not _is_one(t.factor)
    return isinstance(t, AddDecayedWeights)


def _is_one(x: RealOrSchedule) -> bool:
    return isinstance(x, int | float) and bool(x == 1)


def apply_updates(params: T, updates: AnyTree) -> T:
    """`params + updates`, added in the accumulator dtype and rounded once.

    A leaf whose update is `None`, such as a function in an equinox model, is unchanged.
    """

    def leaf(u: Any, p: Any) -> Any:
        return p if u is None else tree.add(jnp.asarray(p), u)

    return jax.tree.map(leaf, updates, params, is_leaf=lambda u: u is None)
