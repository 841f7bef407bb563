"""The base of transforms and mechanisms: state, evaluation point, metrics, claims."""

import abc
import contextlib
from types import MappingProxyType
from typing import Any, ClassVar, Generic, get_args

import equinox as eqx
import jax

from . import tree
from ._boundary import check_origin, check_state, in_precision, own_buffers, trainable
from ._errors import Caller
from ._state import Extra
from .claims import LawName, Laws, Need, Needs, Terms
from .ranges import enforce_ranges
from .typing import AnyTree, S, Scalar, T, Tree


class AbstractStage(eqx.Module, Generic[S]):
    """Base of [`contrib_core.AbstractTransform`][] and
    [`contrib_core.AbstractMechanism`][], which differ in what `update` takes.

    `terms` says for each law, by name, which field stands for each term of its formula.
    """

    terms: ClassVar[Terms] = MappingProxyType({})

    def __check_init__(self):
        enforce_ranges(self)
        # Claims may look at a hyperparameter, whose value is not known under `jax.jit`.
        with contextlib.suppress(jax.errors.ConcretizationTypeError):
            for kind, names in ((Need, self.needs), (LawName, self.laws)):
                known = get_args(kind)
                if unknown := {*names} - {*known}:
                    name = type(self).__name__
                    raise ValueError(f"{name}: {min(unknown)!r} is none of {known}.")

    def init(self, params: AnyTree) -> S:
        """The state before the first step, for parameters or a whole equinox model.

        Leaves that are not floating-point arrays (integers, functions, `None`) are left
        out. The state shares no buffer with `params`, so that both can be donated.
        """
        leaves = trainable(params)
        state = in_precision(self, leaves).start(leaves)
        return own_buffers(state, (self, params, leaves))

    def eval_params(self, state: S, params: T) -> T:
        """The parameters at which to evaluate (or save, or deploy) the model.

        `params` may be a whole model; the result has the same structure.
        """
        leaves = trainable(params)
        point = tree.cast_like(self.eval_point(state, leaves), leaves)
        return eqx.combine(point, params)

    @abc.abstractmethod
    def start(self, params: Tree) -> S:
        """The state before the first step. It may hold `params` itself."""

    @abc.abstractmethod
    def step(self, grads: Any, state: S, params: Any, extra: Extra) -> tuple[Tree, S]:
        """The updates, to be added to `params`, and the new state.

        In place of updates, a mechanism returns the gradient that later stages may see.
        """

    @property
    def needs(self) -> Needs:
        """The arguments that `update` requires, besides gradients and state."""
        return frozenset()

    @property
    def laws(self) -> Laws:
        """The laws that it claims, beyond the contract that every transform keeps."""
        return frozenset()

    def eval_point(self, state: S, params: Tree) -> Tree:
        """The point to evaluate the model at: `params`, unless a rule averages."""
        return params

    def metrics(self, state: S) -> dict[str, Scalar]:
        """Quantities that the rule has learned, under the names `<rule>/<quantity>`.

        A rule that learns a step size reports it as `<rule>/step_size`.
        """
        return {}


def checked_step(
    stage: AbstractStage[S], grads: Any, state: S, params: Tree, extra: Extra
) -> tuple[Tree, S]:
    """One step of `stage`, from inputs that have been checked.

    **Raises:** `ValueError` if the step fails for a `state` of other parameters or of
    another transform, and if the type of the state would change.
    """
    caller, like = Caller(stage), grads if params is None else params
    rule = in_precision(stage, (grads, like))
    try:
        updates, new_state = rule.step(grads, state, params, extra)
    except Exception as error:
        # Only after a failure, because it takes as long to trace as the first step.
        check_origin(caller, jax.eval_shape(rule.start, like), state, error)
        raise
    check_state(caller, state, new_state)
    return tree.cast_like(updates, like), new_state
