"""A rule for each leaf."""

from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import Array

from . import tree
from ._boundary import in_precision
from ._optax import as_transform
from ._state import AbstractState, Extra, GradFn
from ._transform import AbstractTransform, Transform
from ._types import P, Scalar, Tree


class LeafState(AbstractState[P]):
    """State of the transform of one leaf, inside of a
    [`contrib_core.LayerwiseState`][]."""

    inner_state: Any


class LayerwiseState(AbstractState[P]):
    """State of [`contrib_core.Layerwise`][]."""

    inner_states: Any  # The parameters' structure, with a `LeafState` for each leaf.


class Layerwise(AbstractTransform[LayerwiseState[Tree]]):
    r"""Runs `inner` on each leaf by itself, as if there were no others.

    $$U(x_1, \dots, x_n) = (U_\text{inner}(x_1), \dots, U_\text{inner}(x_n))$$

    So a rule that learns one step size learns one for each leaf; around DoG this is
    LDoG. Whatever `inner` is invariant under that is done to each leaf alike is kept:
    translations, the scale of the gradients, the unit of the parameters. How
    coordinates are split into leaves is all that matters, so the rest is not.

    Each leaf is computed in its own precision, and whatever is common to all of them is
    passed on to each: the `value`, and a `grad_fn` that moves this leaf and holds the
    others where they are. A `key` becomes one for each leaf. Keys that `inner` keeps in
    its state do not: leaves of one shape would draw the same noise, so add noise for
    privacy outside of this.

    ??? cite "Reference"

        LDoG is in Ivgi, Hinder, Carmon, *DoG is SGD's Best Friend: A Parameter-Free
        Dynamic Step Size Schedule*, arXiv 2302.12022, section 4.

    **Arguments:**

    - `inner`: a transform, ours or optax's.
    """

    inner: AbstractTransform = eqx.field(converter=as_transform)

    @property
    def needs(self) -> frozenset[str]:
        """What `inner` needs."""
        return self.inner.needs

    @property
    def laws(self) -> frozenset[str]:
        """Those of `inner` that are about each leaf, and not of what is in which."""
        common = {"translation", "gradient_scale", "units"}
        own = {"monotone", "bounded_growth", "initial_guess", "average"}
        return self.inner.laws & (common | own)

    def start(self, params: Tree) -> LayerwiseState[Tree]:
        return LayerwiseState(
            jax.tree.map(
                lambda leaf: LeafState(in_precision(self.inner, leaf).start(leaf)),
                params,
            )
        )

    def step(
        self, grads: Tree, state: LayerwiseState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, LayerwiseState[Tree]]:
        leaves, structure = jax.tree.flatten(grads)
        points = [None] * len(leaves) if params is None else jax.tree.leaves(params)
        states = structure.flatten_up_to(state.inner_states)
        updates, new_states = [], []
        for i, (g, s, x) in enumerate(zip(leaves, states, points, strict=True)):
            # A leaf may be less precise than all of them.
            own = _of_leaf(extra, i, params)
            own = own.map_value(lambda value: tree.scalar(value, like=(g, x)))
            u, new_state = in_precision(self.inner, (g, x)).step(
                g, s.inner_state, x, own
            )
            updates.append(u)
            new_states.append(LeafState(new_state))
        return (
            jax.tree.unflatten(structure, updates),
            LayerwiseState(jax.tree.unflatten(structure, new_states)),
        )

    def eval_point(self, state: LayerwiseState[Tree], params: Tree) -> Tree:
        return jax.tree.map(
            lambda x, s: self.inner.eval_point(s.inner_state, x),
            params,
            state.inner_states,
        )

    def metrics(self, state: LayerwiseState[Tree]) -> dict[str, Scalar]:
        """Those of each leaf, prefixed by its path: `layers[0].weight/dog/distance`,
        `['bias']/dog/distance`, and as they are where the parameters are an array."""
        pairs = jtu.tree_leaves_with_path(state.inner_states, is_leaf=_is_leaf_state)
        return {
            f"{_prefix(path)}{name}": x
            for path, leaf in pairs
            for name, x in self.inner.metrics(leaf.inner_state).items()
        }


def layerwise(inner: Transform) -> Layerwise:
    """Runs `inner` on each leaf by itself: [`contrib_core.Layerwise`][].

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import DoG
        >>> from contrib_core import layerwise
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
    return Layerwise(inner)


def _of_leaf(extra: Extra, i: int, params: Tree) -> Extra:
    """`extra` for leaf `i`: a `grad_fn` and a `key` of its own."""

    def translate(grad_fn: GradFn) -> GradFn:
        leaves, structure = jax.tree.flatten(params)

        def grad_of_leaf(leaf: Array, *args: Any) -> Array:
            moved = [*leaves[:i], leaf, *leaves[i + 1 :]]
            grads = grad_fn(jax.tree.unflatten(structure, moved), *args)
            return jax.tree.leaves(grads)[i]

        return grad_of_leaf

    extra = extra.map_grad_fn(translate)
    if "key" in extra.given:
        key = jax.random.fold_in(extra.key, i)
        extra = Extra(extra.given | {"key": key})
    return extra


def _is_leaf_state(x: Any) -> bool:
    return isinstance(x, LeafState)


def _prefix(path: tuple[Any, ...]) -> str:
    return f"{jtu.keystr(path).removeprefix('.')}/" if path else ""
