"""Changes of coordinates: an inner transform that sees the parameters differently."""

import abc
import functools as ft
import inspect
from typing import Any

import equinox as eqx
import jax
import numpy as np
from equinox import AbstractVar
from jaxtyping import PyTree

from . import tree
from ._boundary import in_precision
from ._errors import first_difference, spot
from ._optax import as_transform
from ._state import AbstractState, Extra, GradFn
from ._transform import AbstractTransform, Transform
from ._types import P, Scalar, Tree


class AbstractInnerState(AbstractState[P]):
    """A state that holds that of an inner transform, and nothing else."""

    inner_state: AbstractVar[Any]


class AbstractCoordinateChange(AbstractTransform[AbstractInnerState]):
    """Runs `inner` in other coordinates of the same vector.

    Authors say how parameters and gradients are written in the new coordinates and how
    the result is read back; everything else follows: extras are translated (`grad_fn`
    too), metrics and evaluation points passed through.
    """

    inner: AbstractVar[AbstractTransform]

    @abc.abstractmethod
    def encode(self, params: Tree) -> Tree:
        """Parameters in the coordinates of `inner`."""

    @abc.abstractmethod
    def encode_grads(self, grads: Tree) -> Tree:
        """Gradients in the coordinates of `inner`."""

    @abc.abstractmethod
    def decode(self, inner: Tree, like: Tree) -> Tree:
        """The tree that `inner` encodes; what it does not cover is that of `like`."""

    @abc.abstractmethod
    def wrap(self, inner_state: Any) -> AbstractInnerState:
        """The state of this transform that holds `inner_state`."""

    @abc.abstractmethod
    def settled(self, params: Tree) -> "AbstractCoordinateChange":
        """This change of coordinates, with whatever depends on parameters settled."""

    @property
    def needs(self) -> frozenset[str]:
        """What `inner` needs."""
        return self.inner.needs

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
            return grads, state  # Nothing is selected; optax would miss `params`.
        inner_params = None if params is None else change.encode(params)
        like = (inner_grads, inner_params)

        def translate(grad_fn: GradFn) -> GradFn:
            return lambda inner, *args: change.encode_grads(
                grad_fn(change.decode(inner, like=params), *args)
            )

        extra = extra.map_grad_fn(translate)
        # A part of the parameters may be less precise than all of them.
        extra = extra.map_value(lambda value: tree.scalar(value, like))
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


class MaskedState(AbstractInnerState[P]):
    """State of [`contrib_core.Masked`][]."""

    inner_state: Any


class Masked(AbstractCoordinateChange):
    """Applies `inner` to the leaves that `mask` selects; the others pass unchanged.

    **Arguments:**

    - `inner`: a transform, ours or optax's.
    - `mask`: as for [`contrib_core.masked`][].

    **Raises:** `ValueError`, when first used, if the mask does not fit or is traced.
    """

    inner: AbstractTransform = eqx.field(converter=as_transform)
    mask: PyTree[Any]

    @property
    def laws(self) -> frozenset[str]:
        """Those that do not mix coordinates, of which it knows which are which."""
        return self.inner.laws & {"translation", "complex", "monotone"}

    def encode(self, params: Tree) -> Tree:
        return self._select(params)

    def encode_grads(self, grads: Tree) -> Tree:
        return self._select(grads)

    def decode(self, inner: Tree, like: Tree) -> Tree:
        return eqx.combine(inner, like)

    def wrap(self, inner_state: Any) -> MaskedState[Tree]:
        return MaskedState(inner_state)

    def settled(self, params: Tree) -> "Masked":
        # Once, of the parameters: gradients may have other dtypes.
        if _is_plain_function(self.mask):
            return Masked(self.inner, self.mask(params))
        return self

    def _select(self, x: Tree) -> Tree:
        mask = self.mask
        jax.tree_util.tree_map_with_path(_check_mask_leaf, mask)
        if _is_prefix(mask, x):
            return jax.tree.map(_subtree_or_none, mask, x)
        raise ValueError(
            "masked: the mask must be a prefix of the parameters, with a bool for each "
            f"leaf or subtree; they differ at {first_difference(x, mask)}."
        )


def masked(inner: Transform, mask: PyTree[Any]) -> Masked:
    """Applies `inner` to a part of the parameters; the other gradients pass unchanged.

    **Arguments:**

    - `inner`: a transform, ours or optax's.
    - `mask`: a tree of bools that is a prefix of the parameters, or a plain function
        from parameters to such a tree. Equinox models are trees, callable or not.

    **Raises:** `ValueError`, when first used, if the mask does not fit or is traced.
    """
    return Masked(inner, mask)


def _is_plain_function(x: Any) -> bool:
    return inspect.isroutine(x) or isinstance(x, ft.partial)


def _check_mask_leaf(path: tuple[Any, ...], leaf: Any) -> None:
    if not isinstance(leaf, bool | np.bool_):
        raise ValueError(
            f"masked: the mask at {spot(path)} must be a Python bool, not {leaf!r}."
        )


def _is_prefix(mask: PyTree[Any], x: Tree) -> bool:
    try:
        jax.tree.map(lambda *_: None, mask, x)
    except ValueError:
        return False
    return True


def _subtree_or_none(keep: bool | np.bool_, subtree: Tree) -> Tree:
    return subtree if keep else jax.tree.map(lambda _: None, subtree)
