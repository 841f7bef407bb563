"""The abstraction: a transform turns gradients into updates, and remembers."""

import abc
import dataclasses
from typing import Any, Generic, Protocol, runtime_checkable

import equinox as eqx
import jax
from jaxtyping import PyTree

from . import tree
from ._boundary import (
    check_given,
    check_origin,
    check_state,
    checked_gradients,
    in_precision,
    of_trainable,
    own_buffers,
    scalar_value,
    trainable,
)
from ._state import AbstractUnprotected, Extra
from ._types import S, Scalar, Tree


@runtime_checkable
class Transform(Protocol):
    """Anything with `init(params)` and `update(updates, state, params)`: a transform of
    this package, or any `optax.GradientTransformation`."""

    @property
    def init(self) -> Any: ...

    @property
    def update(self) -> Any: ...


class AbstractTransform(eqx.Module, Generic[S]):
    """Base of every rule and wrapper.

    Users call `init`, `update`, `eval_params` and `metrics`. Authors write `start` and
    `step`, which see only trees of floating-point arrays that fit each other (see
    [`contrib_core.tree`][]), and where the defaults do not do, the five hooks `needs`,
    `laws`, `receive`, `eval_point` and `metrics`.
    """

    # What users call.

    def init(self, params: PyTree[Any]) -> S:
        """The state before the first step.

        **Arguments:**

        - `params`: the parameters, or a whole equinox model. Leaves that are not
            floating-point arrays (integers, functions, `None`) are set aside.

        **Returns:**

        A state with buffers of its own, which can be donated along with `params`.
        """
        leaves = trainable(params)
        state = in_precision(self, leaves).start(leaves)
        return own_buffers(state, (self, params, leaves))

    def update(
        self,
        grads: PyTree[Any],
        state: S,
        params: PyTree[Any] = None,
        *,
        value: Any = None,
        grad_fn: Any = None,
        key: Any = None,
        **rest: Any,
    ) -> tuple[PyTree[Any], S]:
        """One step: what to add to the parameters, and the state after it.

        **Arguments:**

        - `grads`: gradients, in the structure and shapes of `params`.
        - `state`: what `init` or the previous `update` returned.
        - `params`: the parameters (or the model) that `grads` were taken at.
        - `value`: the loss at `params`; used by Polyak-type rules.
        - `grad_fn`: `(params, i) -> grads`; used by rules that look at other points.
        - `key`: a random key for this step.
        - `rest`: passed on to wrapped optax transformations, ignored otherwise.

        **Returns:**

        Updates in the structure, shapes and dtypes of `params` (of `grads` without
        them), for `eqx.apply_updates(params, updates)`, and the new state.

        **Raises:** `ValueError`, at trace time, if something that is needed is missing,
        if `grads` do not fit `params` (naming the first leaf), if `state` is that of
        other parameters or of another transform and leads to an error, or if the type
        of the state would change.
        """
        who = name_of(self)
        given = {"params": params, "value": value, "grad_fn": grad_fn, "key": key}
        given = {name: x for name, x in given.items() if x is not None}
        check_given(who, self.needs - {"iterates", "examples"}, {*given, *rest})
        model = given.pop("params", None)
        params = None if params is None else trainable(params)
        grads = self.receive(f"{who}.update", grads, params)
        like = grads if params is None else params
        if value is not None:
            given["value"] = scalar_value(who, value, like)
        if grad_fn is not None:
            given["grad_fn"] = of_trainable(who, grad_fn, model)
        rule = in_precision(self, (grads, like))
        try:
            updates, new_state = rule.step(grads, state, params, Extra(rest | given))
        except Exception as error:
            # Not before, since it takes as long to trace as the first step.
            check_origin(who, rule.start, like, state, error)
            raise
        check_state(who, state, new_state)
        return tree.cast_like(updates, like), new_state

    def eval_params(self, state: S, params: PyTree[Any]) -> PyTree[Any]:
        """The parameters to evaluate (or save, or deploy) the model at.

        Takes and returns whatever `update` is called with, raw models included.
        """
        leaves = trainable(params)
        point = tree.cast_like(self.eval_point(state, leaves), leaves)
        return eqx.combine(point, params)

    # What authors write.

    @abc.abstractmethod
    def start(self, params: Tree) -> S:
        """The state before the first step. It may hold `params` itself."""

    @abc.abstractmethod
    def step(self, grads: Tree, state: S, params: Tree, extra: Extra) -> tuple[Tree, S]:
        """The updates, to be added to `params`, and the new state."""

    @property
    def needs(self) -> frozenset[str]:
        """What `update` cannot do without: of "params", "value", "grad_fn", "key".

        And "iterates", if it recovers hidden points from the parameters, which nothing
        else than its updates may then move; "examples", if it is given the gradients of
        single examples, which nothing may have changed before.
        """
        return frozenset()

    @property
    def laws(self) -> frozenset[str]:
        """The laws that it claims beyond the contract, which everything keeps: of
        symmetries, of estimates and of wrappers, by name. `contrib_core.laws` verifies
        them."""
        return frozenset()

    def receive(self, who: str, grads: PyTree[Any], params: Tree) -> Tree:
        """What `step` is given of the `grads` that `update` is: trees of floating-point
        arrays, which fit `params` unless these are `None`.

        **Raises:** `ValueError`, in the name of `who`, if they do not.
        """
        if isinstance(grads, AbstractUnprotected):
            raise ValueError(
                f"{who}: a `{type(grads).__name__}` is not private yet. Put the noise "
                "in front, `chain(GaussianNoise(noise_multiplier, key), ...)`."
            )
        if params is None:
            return trainable(grads)
        return checked_gradients(who, grads, params)

    def eval_point(self, state: S, params: Tree) -> Tree:
        """Where to evaluate the model; at `params` unless a rule averages."""
        del state
        return params

    def metrics(self, state: S) -> dict[str, Scalar]:
        """What the rule has learned, under the names `<rule>/<quantity>`.

        Rules that learn a step size report it as `<rule>/step_size`.
        """
        del state
        return {}


def name_of(transform: Any) -> str:
    """How errors name a transform: `ScheduleFree(Chain(RMS, Scale))`."""
    fields = [getattr(transform, f.name) for f in dataclasses.fields(transform)]
    inner = jax.tree.leaves(fields, is_leaf=_is_transform)
    names = [name_of(t) for t in inner if _is_transform(t)]
    return type(transform).__name__ + (f"({', '.join(names)})" if names else "")


def _is_transform(x: Any) -> bool:
    return isinstance(x, AbstractTransform)
