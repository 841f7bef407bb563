"""Complex parameters as pairs of reals."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from contrib_core import (
    AbstractCoordinateChange,
    AbstractInnerState,
    AbstractTransform,
    as_transform,
    P,
    Transform,
    Tree,
)


class RealAndImaginary(eqx.Module):
    """What an inner transform sees of a complex leaf. A class of its own, so that pairs
    among the user's parameters are not mistaken for it."""

    real: Float[Array, "*shape"]
    imaginary: Float[Array, "*shape"]


class SplitRealAndImaginaryState(AbstractInnerState[P]):
    """State of [`contrib_wrappers.SplitRealAndImaginary`][]."""

    inner_state: Any


class SplitRealAndImaginary(AbstractCoordinateChange):
    r"""Runs `inner` on the real and imaginary parts of complex leaves.

    $\mathbb{C}^n$ as $\mathbb{R}^{2n}$: bit for bit what `inner` does to the pairs, and
    the identity on real trees.

    **Arguments:**

    - `inner`: a transform, ours or optax's.
    - `conjugate`: whether gradients come straight from `jax.grad`, which returns the
        conjugate of the direction of ascent for a real function of complex parameters.

    **Differences from optax.contrib:** parts are joined by `lax.complex`, where
    `1j * inf` is NaN in the real part; extras reach `inner`, and `grad_fn` is
    translated.
    """

    inner: AbstractTransform = eqx.field(converter=as_transform)
    conjugate: bool = eqx.field(default=False, static=True)

    @property
    def laws(self) -> frozenset[str]:
        """Those of `inner`, neutrality, and complex numbers as pairs."""
        own = {"neutral"} if self.conjugate else {"neutral", "complex"}
        return self.inner.laws - {"complex"} | own

    def settled(self, params: Tree) -> "SplitRealAndImaginary":
        return self

    def encode(self, params: Tree) -> Tree:
        return jax.tree.map(_split, params)

    def encode_grads(self, grads: Tree) -> Tree:
        return self.encode(jax.tree.map(jnp.conj, grads) if self.conjugate else grads)

    def decode(self, inner: Tree, like: Tree) -> Tree:
        return jax.tree.map(_join, like, inner)

    def wrap(self, inner_state: Any) -> SplitRealAndImaginaryState[Tree]:
        return SplitRealAndImaginaryState(inner_state)


def _split(x: Array) -> Array | RealAndImaginary:
    return RealAndImaginary(x.real, x.imag) if jnp.iscomplexobj(x) else x


def _join(like: Array, x: Any) -> Array:
    return lax.complex(x.real, x.imaginary) if jnp.iscomplexobj(like) else x


def split_real_and_imaginary(
    inner: Transform, *, conjugate: bool = False
) -> SplitRealAndImaginary:
    """Optimises complex leaves as pairs of reals:
    [`contrib_wrappers.SplitRealAndImaginary`][]."""
    return SplitRealAndImaginary(inner, conjugate)
