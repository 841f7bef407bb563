"""Training 16-bit parameters without losing small steps to rounding."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from contrib_core import (
    AbstractState,
    AbstractTransform,
    as_transform,
    Extra,
    GradFn,
    in_precision,
    P,
    Scalar,
    Transform,
    Tree,
    tree,
)


class MasterWeightsState(AbstractState[P]):
    """State of [`contrib_wrappers.MasterWeights`][]."""

    inner_state: Any
    master: P  # The wide copy of narrow leaves; `None` for leaves wide enough.


class MasterWeights(AbstractTransform[MasterWeightsState[Tree]]):
    r"""Keeps a copy of narrow parameters in a wider dtype, and runs `inner` on it.

    `inner` sees and moves the copy alone, and the update takes the model's parameters
    to the copy, rounded: so steps below the parameters' resolution add up instead of
    disappearing. Leaves that are wide enough are not copied. Invariances are those of
    `inner`.

    The copy starts anew from the parameters, entry by entry, wherever these are not its
    rounding: where something else has moved them (a clip, a restored model, a transform
    behind this one, so put this one last), or where an update is not representable (a
    step much larger than the parameter, by 2⁻⁹ of that step in bfloat16).

    ??? cite "Reference"

        Micikevicius et al., *Mixed Precision Training*, arXiv 1710.03740, section 3.1.

    **Arguments:**

    - `inner`: a transform, ours or optax's.
    - `dtype`: the dtype of the copy.
    """

    inner: AbstractTransform = eqx.field(converter=as_transform)
    dtype: DTypeLike = eqx.field(default=jnp.float32, static=True)

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, and what `inner` needs."""
        return self.inner.needs | {"params"}

    @property
    def laws(self) -> frozenset[str]:
        """Those of `inner`, and neutrality."""
        return self.inner.laws | {"neutral"}

    def start(self, params: Tree) -> MasterWeightsState[Tree]:
        master = tree.widen(params, self.dtype)
        return self._state(
            in_precision(self.inner, master).start(master), master, params
        )

    def step(
        self, grads: Tree, state: MasterWeightsState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, MasterWeightsState[Tree]]:
        def translate(grad_fn: GradFn) -> GradFn:
            return lambda master, *args: tree.widen(
                grad_fn(tree.cast_like(master, params), *args), self.dtype
            )

        master = self._master(state, params)
        extra = extra.map_grad_fn(translate)
        extra = extra.map_value(lambda value: tree.scalar(value, like=master))
        updates, inner_state = in_precision(self.inner, master).step(
            tree.widen(grads, self.dtype),
            state.inner_state,
            master,
            extra,
        )
        master = tree.add(master, updates)
        new_state = self._state(inner_state, master, params)
        rounded = tree.widen(tree.cast_like(master, params), self.dtype)
        step = tree.sub(rounded, params)
        # Leaves that have no copy move by the inner updates as they are.
        step = jax.tree.map(_if_copied, updates, new_state.master, step)
        return step, new_state

    def _master(self, state: MasterWeightsState[Tree], params: Tree) -> Tree:
        """The copy, but the parameters themselves where they are not its rounding."""

        def leaf(param: Array, copy: Array | None) -> Array:
            if copy is None:
                return param
            return jnp.where(
                copy.astype(param.dtype) == param, copy, param.astype(copy.dtype)
            )

        return jax.tree.map(leaf, params, state.master)

    def _state(
        self, inner_state: Any, master: Tree, params: Tree
    ) -> MasterWeightsState[Tree]:
        copies = jax.tree.map(_unless_same_dtype, master, params)
        return MasterWeightsState(inner_state, copies)

    def eval_point(self, state: MasterWeightsState[Tree], params: Tree) -> Tree:
        master = self._master(state, params)
        return self.inner.eval_point(state.inner_state, master)

    def metrics(self, state: MasterWeightsState[Tree]) -> dict[str, Scalar]:
        return self.inner.metrics(state.inner_state)


def _if_copied(update: Array, copy: Array | None, step: Array) -> Array:
    return update if copy is None else step


def _unless_same_dtype(master: Array, param: Array) -> Array | None:
    return None if master.dtype == param.dtype else master


def master_weights(inner: Transform, dtype: DTypeLike = jnp.float32) -> MasterWeights:
    """Runs `inner` on a wide copy of narrow parameters:
    [`contrib_wrappers.MasterWeights`][]."""
    return MasterWeights(inner, dtype)
