"""Gradients of unit norm."""

import jax.numpy as jnp

from contrib_core import AbstractTransform, Extra, ISOMETRIES, Tree, tree


class Normalize(AbstractTransform[None]):
    r"""$g / \|g\|$, and 0 where $g = 0$: invariant to the scale of the gradients, and
    equivariant to rotations.

    The norm is over all leaves, in one pass: its square must be representable. Float32
    gradients of norms below 1e-19 or above 1e19 give 0.
    """

    @property
    def laws(self) -> frozenset[str]:
        """Those of directions."""
        return ISOMETRIES | {"gradient_scale"}

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        norm = tree.sqrt(tree.sq_norm(grads))
        return tree.scale(tree.divide(jnp.ones_like(norm), norm), grads), None


def normalize() -> Normalize:
    """Scales gradients to unit norm: [`contrib_algos.Normalize`][]."""
    return Normalize()
