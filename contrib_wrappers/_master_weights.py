"""Trains 16-bit parameters without losing small steps to rounding."""

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
    tree,
)
from contrib_core.claims import claim, Laws, Needs, PARAMS
from contrib_core.typing import P, Scalar, Tree


class MasterWeightsState(AbstractState):
    """State of [`contrib_wrappers.MasterWeights`][]."""

    inner_state: Any
    master: P  # The wide copy of narrow leaves; `None` for leaves that are wide enough.


class MasterWeights(AbstractTransform[MasterWeightsState]):
    r"""Keeps a copy of narrow parameters in a wider dtype, and runs `inner` on it.

    `inner` sees and moves only the copy. The update moves the model's parameters to the
    copy, rounded to their dtype. Steps below the resolution of the parameters thus add
    up instead of disappearing. Leaves that are wide enough are not copied. The
    invariances are those of `inner`.

    An entry of the copy restarts from the parameter wherever the parameter is not the
    rounded copy. This happens in two cases:

    - Something else has moved the parameter: a projection, a restored model, or a
        transform behind this one. Put this transform last.
    - The update is not representable. In bfloat16, a step that is much larger than the
        parameter is rounded by up to 2⁻⁹ of the step.

    ??? cite "Reference"

        Micikevicius et al., *Mixed Precision Training*, arXiv 1710.03740, section 3.1.

    **Arguments:**

    - `inner`: a transform, ours or optax's.
    - `dtype`: the dtype of the copy.

    !!! example

        In bfloat16, numbers just above 1 are multiples of 1/128, so a step of 1/1000 by
        itself changes nothing:

        ```python
        >>> import jax.numpy as jnp
        >>> from contrib_algos import sgd
        >>> from contrib_wrappers import master_weights
        >>> for opt in (sgd(1e-3), master_weights(sgd(1e-3))):
        ...     x = jnp.array(1.0, jnp.bfloat16)
        ...     state = opt.init(x)
        ...     for _ in range(100):
        ...         updates, state = opt.update(-jnp.ones_like(x), state, x)
        ...         x = x + updates
        ...     print(x)
        1
        1.10156

        ```
    """

    inner: AbstractTransform[Any] = eqx.field(converter=as_transform)
    dtype: DTypeLike = eqx.field(default=jnp.float32, static=True)

    @property
    def needs(self) -> Needs:
        """Everything that `inner` needs, plus the parameters."""
        return self.inner.needs | PARAMS

    @property
    def owns_iterates(self) -> bool:
        """Whether `inner` owns its iterates."""
        return self.inner.owns_iterates

    @property
    def laws(self) -> Laws:
        """Every law of `inner`, plus `neutral`: it changes nothing if every leaf has
        `dtype` or is wider."""
        return self.inner.laws | claim("neutral")

    def start(self, params: Tree) -> MasterWeightsState:
        master = tree.widen(params, self.dtype)
        return self._state(
            in_precision(self.inner, master).start(master), master, params
        )

    def step(
        self, grads: Tree, state: MasterWeightsState, params: Tree, extra: Extra
    ) -> tuple[Tree, MasterWeightsState]:
        def translate(grad_fn: GradFn) -> GradFn:
            return lambda master, *args: tree.widen(
                grad_fn(tree.cast_like(master, params), *args), self.dtype
            )

        master = self._master(state, params)
        extra = extra.map("grad_fn", translate)
        extra = extra.map("value", lambda value: tree.scalar(value, like=master))
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
        # Leaves without a copy use the inner updates unchanged.
        step = jax.tree.map(_if_copied, updates, new_state.master, step)
        return step, new_state

    def _master(self, state: MasterWeightsState, params: Tree) -> Tree:
        """The copy, with entries replaced by the parameters where these differ from the
        rounded copy."""

        def leaf(param: Array, copy: Array | None) -> Array:
            if copy is None:
                return param
            return jnp.where(
                copy.astype(param.dtype) == param, copy, param.astype(copy.dtype)
            )

        return jax.tree.map(leaf, params, state.master)

    def _state(
        self, inner_state: Any, master: Tree, params: Tree
    ) -> MasterWeightsState:
        copies = jax.tree.map(_unless_same_dtype, master, params)
        return MasterWeightsState(inner_state, copies)

    def eval_point(self, state: MasterWeightsState, params: Tree) -> Tree:
        master = self._master(state, params)
        return self.inner.eval_point(state.inner_state, master)

    def metrics(self, state: MasterWeightsState) -> dict[str, Scalar]:
        return self.inner.metrics(state.inner_state)


def _if_copied(update: Array, copy: Array | None, step: Array) -> Array:
    return update if copy is None else step


def _unless_same_dtype(master: Array, param: Array) -> Array | None:
    return None if master.dtype == param.dtype else master


master_weights = MasterWeights
