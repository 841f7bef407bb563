"""Mechanisms: stages that turn values of single examples into a gradient."""

import abc
from typing import Any, ClassVar, Generic, TYPE_CHECKING

import equinox as eqx

from ._boundary import check_given, checked_extra, trainable
from ._errors import Caller
from ._stage import AbstractStage, checked_step
from .claims import Needs, PARAMS
from .typing import AnyTree, S, T, Tree


class AbstractMechanismInput(eqx.Module):
    """Base of the inputs that only a mechanism accepts.

    Other stages refuse it with an error whose last words, `remedy`, say what to do.
    """

    remedy: ClassVar[str]


class AbstractMechanism(AbstractStage[S], Generic[S]):
    """Base of stages that turn values of single examples into a private gradient.

    A mechanism can only be the first stage of a chain. A stage before it would change
    how much one example contributes, and a wrapper around it would see the examples.
    So it is no [`contrib_core.AbstractTransform`][], and no wrapper or mask takes it. A
    chain that begins with a mechanism is a mechanism too.

    Users call `init`, `update`, `eval_params` and `metrics`. Authors write `start`,
    `receive` and `step`.
    """

    if TYPE_CHECKING:
        # Type checkers see no default for `params`: so a mechanism is no `Transform`.
        def update(
            self, grads: AnyTree, state: S, params: T, *, key: Any = None, **rest: Any
        ) -> tuple[T, S]: ...

    else:

        def update(
            self, grads: AnyTree, state: S, params: T = None, *, key=None, **rest: Any
        ) -> tuple[T, S]:
            """One step, as for [`contrib_core.AbstractTransform.update`][]. Here
            `grads` is the input that the mechanism takes, and `params` is required.

            `value` and `grad_fn` are ignored, because they reveal the examples.
            """
            caller, given = Caller(self), {"key": key}
            check_given(caller, self.needs, {"params": params, **given})
            leaves = trainable(params)
            received = self.receive(caller, grads, leaves)
            extra = checked_extra(caller, given, leaves, model=params)
            return checked_step(self, received, state, leaves, extra)

    @property
    def needs(self) -> Needs:
        """The arguments that `update` requires: `params`, which its input must fit."""
        return PARAMS

    @abc.abstractmethod
    def receive(self, caller: Caller, grads: AnyTree, params: Tree) -> Any:
        """Checks the `grads` passed to `update`, and returns the input of `step`.

        **Raises:** `ValueError` that begins with `caller`, if `grads` is no input of
        this mechanism, or does not fit `params`.
        """
