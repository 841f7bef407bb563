"""Runs a transform on each leaf separately."""

from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
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
from contrib_core.claims import Laws, Needs
from contrib_core.typing import Scalar, Tree


class LeafState(AbstractState):
    """State of the transform of one leaf, inside a
    [`contrib_wrappers.LayerwiseState`][]."""

    inner_state: Any


class LayerwiseState(AbstractState):
    """State of [`contrib_wrappers.Layerwise`][]."""

    inner_states: Any  # The tree of parameters, with a `LeafState` for each leaf.


class Layerwise(AbstractTransform[LayerwiseState]):
    r"""Runs `inner` on each leaf separately, as if there were no other leaves.

    $$U(x_1, \dots, x_n) = (U_\text{inner}(x_1), \dots, U_\text{inner}(x_n))$$

    A rule that learns one step size thus learns one for each leaf; `layerwise(dog())`
    is LDoG. Invariances of `inner` that act on each leaf alike are kept: translations,
    the scale of the gradients, the unit of the parameters. Rotations and other
    invariances that mix leaves are lost.

    Each leaf is computed in its own precision. All leaves receive the same `value`. For
    each leaf, `grad_fn` moves that leaf and keeps the others fixed, and `key` is folded
    with the position of the leaf. A key in the state of `inner` is the same for all
    leaves, so leaves of one shape would draw the same noise: add noise for privacy
    outside of this wrapper.

    ??? cite "Reference"

        LDoG is in Ivgi, Hinder, Carmon, *DoG is SGD's Best Friend: A Parameter-Free
        Dynamic Step Size Schedule*, arXiv 2302.12022, section 4.

    **Arguments:**

    - `inner`: a transform, ours or optax's.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import DoG
        >>> from contrib_wrappers import layerwise
        >>> opt = layerwise(DoG(reps_rel=0.125, eps=0.0))
        >>> params = {"a": jnp.zeros(4), "b": jnp.full(4, 1.5)}
        >>> grads = jax.tree.map(jnp.ones_like, params)
        >>> updates, state = opt.update(grads, opt.init(params), params)
        >>> print(updates["a"], updates["b"])
        [-0.0625 -0.0625 -0.0625 -0.0625] [-0.25 -0.25 -0.25 -0.25]
        >>> print(opt.metrics(state)["['b']/dog/step_size"])
        0.25

        ```
    """

    inner: AbstractTransform[Any] = eqx.field(converter=as_transform)

    @property
    def needs(self) -> Needs:
        """Everything that `inner` needs."""
        return self.inner.needs

    @property
    def owns_iterates(self) -> bool:
        """Whether `inner` owns its iterates."""
        return self.inner.owns_iterates

    @property
    def laws(self) -> Laws:
        """The laws of `inner` that do not mix the coordinates of different leaves."""
        common = {"translation", "gradient_scale", "units"}
        own = {"monotone", "bounded_growth", "initial_guess", "average"}
        return self.inner.laws & (common | own)

    def start(self, params: Tree) -> LayerwiseState:
        return LayerwiseState(
            jax.tree.map(
                lambda leaf: LeafState(in_precision(self.inner, leaf).start(leaf)),
                params,
            )
        )

    def step(
        self, grads: Tree, state: LayerwiseState, params: Tree, extra: Extra
    ) -> tuple[Tree, LayerwiseState]:
        leaves, structure = jax.tree.flatten(grads)
        points = [None] * len(leaves) if params is None else jax.tree.leaves(params)
        states = structure.flatten_up_to(state.inner_states)
        updates, new_states = [], []
        for i, (g, s, x) in enumerate(zip(leaves, states, points, strict=True)):
            # The value has the precision of the tree; one leaf may have less.
            own = _of_leaf(extra, i, params)
            own = own.map("value", lambda value: tree.scalar(value, like=(g, x)))
            u, new_state = in_precision(self.inner, (g, x)).step(
                g, s.inner_state, x, own
            )
            updates.append(u)
            new_states.append(LeafState(new_state))
        return (
            jax.tree.unflatten(structure, updates),
            LayerwiseState(jax.tree.unflatten(structure, new_states)),
        )

    def eval_point(self, state: LayerwiseState, params: Tree) -> Tree:
        return jax.tree.map(
            lambda x, s: self.inner.eval_point(s.inner_state, x),
            params,
            state.inner_states,
        )

    def metrics(self, state: LayerwiseState) -> dict[str, Scalar]:
        """The metrics of each leaf, with its path as prefix, such as
        `layers[0].weight/dog/distance` or `['bias']/dog/distance`. Parameters that are
        a single array have no prefix."""
        pairs = jtu.tree_leaves_with_path(state.inner_states, is_leaf=_is_leaf_state)
        return {
            f"{_prefix(path)}{name}": x
            for path, leaf in pairs
            for name, x in self.inner.metrics(leaf.inner_state).items()
        }


layerwise = Layerwise


def _of_leaf(extra: Extra, i: int, params: Tree) -> Extra:
    """`extra` for leaf `i`: a `grad_fn` and a `key` of its own."""

    def translate(grad_fn: GradFn) -> GradFn:
        leaves, structure = jax.tree.flatten(params)

        def grad_of_leaf(leaf: Array, *args: Any) -> Array:
            moved = [*leaves[:i], leaf, *leaves[i + 1 :]]
            grads = grad_fn(jax.tree.unflatten(structure, moved), *args)
            return jax.tree.leaves(grads)[i]

        return grad_of_leaf

    extra = extra.map("grad_fn", translate)
    return extra.map("key", lambda key: jax.random.fold_in(key, i))


def _is_leaf_state(x: Any) -> bool:
    return isinstance(x, LeafState)


def _prefix(path: tuple[Any, ...]) -> str:
    return f"{jtu.keystr(path).removeprefix('.')}/" if path else ""
