"""The core abstraction: a transform turns gradients and a state into updates."""

from typing import Any, Generic, Protocol, runtime_checkable, TypeAlias

from ._boundary import check_given, checked_extra, checked_gradients, trainable
from ._errors import Caller
from ._mechanism import AbstractMechanismInput
from ._stage import AbstractStage, checked_step
from .typing import AnyTree, S, T


@runtime_checkable
class Update(Protocol):
    """The signature of `update`: `update(updates, state)`, with or without `params`."""

    def __call__(
        self, updates: Any, state: Any, params: Any = None, /
    ) -> tuple[Any, Any]: ...


@runtime_checkable
class Transform(Protocol):
    """Anything with `init(params)` and `update(updates, state, params=None)`: a
    transform of this package, or any `optax.GradientTransformation`."""

    @property
    def init(self) -> Any: ...

    @property
    def update(self) -> Update: ...


class AbstractTransform(AbstractStage[S], Generic[S]):
    """Base of every rule and wrapper.

    Users call `init`, `update`, `eval_params` and `metrics`. Authors write `start` and
    `step`, which see only trees of floating-point arrays with matching structures (see
    [`contrib_core.tree`][]). Where a default is wrong, authors override `needs`,
    `owns_iterates`, `laws`, `eval_point` or `metrics`.
    """

    def update(
        self,
        grads: T,
        state: S,
        params: AnyTree = None,
        *,
        value: Any = None,
        grad_fn: Any = None,
        key: Any = None,
        **rest: Any,
    ) -> tuple[T, S]:
        """One step: the updates to add to the parameters, and the new state.

        **Arguments:**

        - `grads`: gradients, in the structure and shapes of `params`.
        - `state`: what `init` or the previous `update` returned.
        - `params`: the parameters (or the model) that `grads` were taken at.
        - `value`: the loss at `params`, for rules that need it.
        - `grad_fn`: `(params, i) -> grads`, for rules that look at other points.
        - `key`: a random key for this step.
        - `rest`: passed on to wrapped optax transformations, ignored otherwise.

        **Returns:**

        Updates in the structure, shapes and dtypes of `params` (of `grads` without
        them), for `eqx.apply_updates(params, updates)`, and the new state.

        **Raises:** `ValueError`, at trace time, if an argument in `needs` is missing,
        if `grads` do not fit `params` (it names the first leaf), if the step fails for
        a `state` of other parameters or of another transform, or if the type of the
        state would change.
        """
        caller = Caller(self)
        if isinstance(grads, AbstractMechanismInput):
            name = type(grads).__name__
            raise ValueError(f"{caller}: a `{name}` is no gradient. {grads.remedy}")
        given = {"value": value, "grad_fn": grad_fn, "key": key, **rest}
        check_given(caller, self.needs, {"params": params, **given})
        leaves = None if params is None else trainable(params)
        received = checked_gradients(caller, grads, leaves)
        like = received if leaves is None else leaves
        extra = checked_extra(caller, given, like, model=params)
        return checked_step(self, received, state, leaves, extra)

    @property
    def owns_iterates(self) -> bool:
        """Whether it recovers hidden points from the parameters.

        If so, nothing but its own updates may move the parameters.
        """
        return False


AnyTransform: TypeAlias = AbstractTransform[Any]
"""A transform with a state of any type."""
