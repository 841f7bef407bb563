"""Gradients of unit norm."""

import jax.numpy as jnp

from contrib_core import AbstractTransform, Extra, tree
from contrib_core.claims import claim, ISOMETRIES, Laws
from contrib_core.typing import Tree


class Normalize(AbstractTransform[None]):
    r"""$g / \|g\|$, and 0 if $g = 0$.

    It is invariant to the scale of the gradients, and equivariant to rotations. The
    norm is taken over all leaves in one pass, so its square must be representable:
    float32 gradients with a norm below 1e-19 or above 1e19 give 0.
    """

    @property
    def laws(self) -> Laws:
        """Every isometry, and the scale of the gradients, which a direction lacks."""
        return ISOMETRIES | claim("gradient_scale")

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        norm = tree.sqrt(tree.sq_norm(grads))
        return tree.scale(tree.divide(jnp.ones_like(norm), norm), grads), None


normalize = Normalize
