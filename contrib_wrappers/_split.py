"""Splits complex parameters into pairs of reals."""

from dataclasses import KW_ONLY
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
)
from contrib_core.claims import Laws
from contrib_core.ranges import static
from contrib_core.typing import Tree


class RealAndImaginary(eqx.Module):
    """The two parts of a complex leaf, as the inner transform gets them. They have
    their own class, so that pairs in the user's tree are not mistaken for them."""

    real: Float[Array, "*shape"]
    imaginary: Float[Array, "*shape"]


class SplitRealAndImaginaryState(AbstractInnerState):
    """State of [`contrib_wrappers.SplitRealAndImaginary`][]."""

    inner_state: Any


class SplitRealAndImaginary(AbstractCoordinateChange):
    r"""Runs `inner` on the real and imaginary parts of complex leaves.

    It identifies $\mathbb{C}^n$ with $\mathbb{R}^{2n}$. The result is bitwise that of
    `inner` on the pairs. On real trees, this wrapper changes nothing.

    **Arguments:**

    - `inner`: a transform, ours or optax's.
    - `conjugate`: whether to conjugate the gradients. Pass true for gradients straight
        from `jax.grad`: for a real function of complex parameters, it returns the
        conjugate of the direction of ascent.

    **Differences from optax.contrib:**

    - `lax.complex` joins the parts. In optax, `1j * inf` makes the real part NaN.
    - Extras reach `inner`, and `grad_fn` is translated to pairs.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import sgd
        >>> from contrib_wrappers import split_real_and_imaginary
        >>> f = lambda z: jnp.sum(jnp.abs(z) ** 2)
        >>> opt = split_real_and_imaginary(sgd(0.25), conjugate=True)
        >>> z = jnp.array([1 + 2j])
        >>> updates, state = opt.update(jax.grad(f)(z), opt.init(z), z)
        >>> print(z + updates)
        [0.5+1.j]

        ```
    """

    inner: AbstractTransform[Any] = eqx.field(converter=as_transform)
    _: KW_ONLY
    conjugate: bool = static(False)

    @property
    def laws(self) -> Laws:
        """Every law of `inner`, plus `neutral`: on real trees it changes nothing.

        It also claims `complex`, unless it conjugates the gradients first.
        """
        own: Laws = frozenset({"neutral"} if self.conjugate else {"neutral", "complex"})
        return self.inner.laws - {"complex"} | own

    def encode(self, params: Tree) -> Tree:
        return jax.tree.map(_split, params)

    def encode_grads(self, grads: Tree) -> Tree:
        return self.encode(jax.tree.map(jnp.conj, grads) if self.conjugate else grads)

    def decode(self, inner: Tree, like: Tree) -> Tree:
        return jax.tree.map(_join, like, inner)

    def wrap(self, inner_state: Any) -> SplitRealAndImaginaryState:
        return SplitRealAndImaginaryState(inner_state)


def _split(x: Array) -> Array | RealAndImaginary:
    return RealAndImaginary(x.real, x.imag) if jnp.iscomplexobj(x) else x


def _join(like: Array, x: Any) -> Array:
    return lax.complex(x.real, x.imaginary) if jnp.iscomplexobj(like) else x


split_real_and_imaginary = SplitRealAndImaginary
