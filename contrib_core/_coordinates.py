"""Changes of coordinates: an inner transform sees the parameters in another form."""

import abc
import functools as ft
import inspect
from typing import Any

import equinox as eqx
import jax
import numpy as np
from equinox import AbstractVar

from . import tree
from ._boundary import in_precision
from ._errors import first_difference, spot
from ._optax import as_transform
from ._state import AbstractState, Extra, GradFn
from ._transform import AbstractTransform
from .claims import Laws, Needs
from .typing import AnyTree, Mask, Scalar, Tree


class AbstractInnerState(AbstractState):
    """A state that holds nothing but the state of an inner transform."""

    inner_state: AbstractVar[Any]


class AbstractCoordinateChange(AbstractTransform[AbstractInnerState]):
    """Runs `inner` in other coordinates of the same vector.

    Authors write `encode`, `decode` and `wrap`. With these, this class translates
    gradients, extras, updates and evaluation points; metrics are those of `inner`.
    """

    inner: AbstractVar[AbstractTransform[Any]]

    @abc.abstractmethod
    def encode(self, params: Tree) -> Tree:
        """`params` in the coordinates of `inner`."""

    def encode_grads(self, grads: Tree) -> Tree:
        """`grads` in the coordinates of `inner`; by default encoded like parameters."""
        return self.encode(grads)

    @abc.abstractmethod
    def decode(self, inner: Tree, like: Tree) -> Tree:
        """The tree whose encoding is `inner`, completed with the leaves of `like`."""

    @abc.abstractmethod
    def wrap(self, inner_state: Any) -> AbstractInnerState:
        """`inner_state` as a state of this transform."""

    def settled(self, params: Tree) -> "AbstractCoordinateChange":
        """This change of coordinates, with functions of `params` evaluated."""
        return self

    @property
    def needs(self) -> Needs:
        """The needs of `inner`."""
        return self.inner.needs

    @property
    def owns_iterates(self) -> bool:
        """Whether `inner` owns its iterates."""
        return self.inner.owns_iterates

    def start(self, params: Tree) -> AbstractInnerState:
        coordinates = self.settled(params).encode(params)
        inner = in_precision(self.inner, coordinates)
        return self.wrap(inner.start(coordinates))

    def step(
        self, grads: Tree, state: AbstractInnerState, params: Tree, extra: Extra
    ) -> tuple[Tree, AbstractInnerState]:
        change = self.settled(grads if params is None else params)
        inner_grads = change.encode_grads(grads)
        if not jax.tree.leaves(inner_grads):
            return grads, state  # Nothing is selected: optax would see `params=None`.
        inner_params = None if params is None else change.encode(params)
        like = (inner_grads, inner_params)

        def translate(grad_fn: GradFn) -> GradFn:
            return lambda inner, *args: change.encode_grads(
                grad_fn(change.decode(inner, like=params), *args)
            )

        extra = extra.map("grad_fn", translate)
        # A part of the parameters may have a narrower accumulator dtype than the whole.
        extra = extra.map("value", lambda value: tree.scalar(value, like))
        updates, inner_state = in_precision(self.inner, like).step(
            inner_grads, state.inner_state, inner_params, extra
        )
        return change.decode(updates, like=grads), self.wrap(inner_state)

    def eval_point(self, state: AbstractInnerState, params: Tree) -> Tree:
        change = self.settled(params)
        point = self.inner.eval_point(state.inner_state, change.encode(params))
        return change.decode(point, like=params)

    def metrics(self, state: AbstractInnerState) -> dict[str, Scalar]:
        return self.inner.metrics(state.inner_state)


class MaskedState(AbstractInnerState):
    """State of [`contrib_core.Masked`][]."""

    inner_state: Any


class Masked(AbstractCoordinateChange):
    """Applies `inner` to a part of the parameters; the other gradients pass unchanged.

    **Arguments:**

    - `inner`: a transform, ours or optax's.
    - `mask`: a tree of bools that is a prefix of the parameters, or a plain function
        from parameters to such a tree. A callable equinox model counts as a tree.

    **Raises:** `ValueError`, at the first use, for a mask that is no prefix of the
    parameters, or has a leaf that is not a Python bool, such as a tracer.
    """

    inner: AbstractTransform[Any] = eqx.field(converter=as_transform)
    mask: Mask

    @property
    def laws(self) -> Laws:
        """The laws of `inner` that neither mix nor reorder coordinates."""
        return self.inner.laws & {"translation", "complex", "monotone"}

    def encode(self, params: Tree) -> Tree:
        jax.tree_util.tree_map_with_path(_check_mask_leaf, self.mask)
        if _is_prefix(self.mask, params):
            return jax.tree.map(_subtree_or_none, self.mask, params)
        raise ValueError(
            "masked: the mask must be a prefix of the parameters, with a bool for each "
            f"leaf or subtree; they differ at {first_difference(params, self.mask)}."
        )

    def decode(self, inner: Tree, like: Tree) -> Tree:
        return eqx.combine(inner, like)

    def wrap(self, inner_state: Any) -> MaskedState:
        return MaskedState(inner_state)

    def settled(self, params: Tree) -> "Masked":
        # Called with the parameters only: gradients may have other dtypes.
        if inspect.isroutine(self.mask) or isinstance(self.mask, ft.partial):
            return Masked(self.inner, self.mask(params))
        return self


masked = Masked


def _check_mask_leaf(path: tuple[Any, ...], leaf: Any) -> None:
    if not isinstance(leaf, bool | np.bool_):
        raise ValueError(
            f"masked: the mask at {spot(path)} must be a Python bool, not {leaf!r}."
        )


def _is_prefix(mask: AnyTree, x: Tree) -> bool:
    try:
        jax.tree.map(lambda *_: None, mask, x)
    except ValueError:
        return False
    return True


def _subtree_or_none(keep: bool | np.bool_, subtree: Tree) -> Tree:
    return subtree if keep else jax.tree.map(lambda _: None, subtree)
