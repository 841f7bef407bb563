"""Clipping: a bound on what the gradient of one example adds to the sum."""

from typing import Annotated, Any, ClassVar, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from contrib_core import AbstractMechanismInput, tree
from contrib_core.ranges import Range
from contrib_core.typing import RealLike, Scalar, Tree

from ._devices import gathered, is_tracked, varying_axes
from ._examples import map_rows
from ._precise import add_pairs, as_pair, precise_norm, split, sum_rows


Bound: TypeAlias = Annotated[
    RealLike, Range("between 1e-30 and 1e+30", lambda x: (x >= 1e-30) & (x <= 1e30))
]
"""A clipping norm. In this range, float32 has room for the sum of a million gradients
of that norm, and for noise of a millionth of it. Noise that underflows hides nothing.
"""


class ClippedSum(AbstractMechanismInput):
    """A sum of gradients of single examples, each clipped to an L2 norm.

    One example adds to `sum + rest` a vector of norm at most `l2_norm_clip`. Nothing in
    a `ClippedSum` is private: [`contrib_algos.GaussianNoise`][] makes the sum private,
    but not `values` and `norms`.

    **Arguments:**

    - `sum`: a tree like the parameters, of float32 or wider, in units of the gradients.
    - `rest`: the rounding error of `sum`. A sum of thousands of gradients rounds off
        the last bits of each, so the bound holds for `sum + rest`, not for `sum`.
    - `values`: the losses of the examples, 0 for masked ones. NOT private.
    - `norms`: the norms of their gradients before clipping, 0 for masked ones. NOT
        private.
    - `l2_norm_clip`: the clipping norm, in units of the gradients.
    """

    remedy: ClassVar[str] = (
        "It is not private yet: put the noise in front, "
        "`chain(GaussianNoise(noise_multiplier, key), ...)`."
    )

    sum: Tree
    rest: Tree
    values: Float[Array, " examples"]
    norms: Float[Array, " examples"]
    l2_norm_clip: Scalar
    summed: tuple[str, ...] = eqx.field(default=(), static=True)  # Mesh axes.

    def psum(self, axis_name: Any) -> "ClippedSum":
        """The sum over the devices along mesh axes, inside of `jax.shard_map`.

        One example adds the same as on its own device. To keep that bound, the sum is
        split into multiples of a coarse unit, which are added without rounding, and the
        rest.

        **Arguments:**

        - `axis_name`: a name of an axis, or a tuple of names.

        **Raises:** `ValueError` for an axis over which it has been summed already, or
        along which all devices have the same examples.
        """
        names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
        for name in names:
            is_same = is_tracked(name) and name not in varying_axes(self.norms)
            if is_same or name in self.summed:
                raise ValueError(
                    f"ClippedSum.psum: devices along the axis {name!r} have the same "
                    "sum, which must not be counted again."
                )
        number = self.norms.shape[0] * lax.axis_size(axis_name)
        digits = jnp.finfo(self.l2_norm_clip.dtype).nmant
        _, exponent = jnp.frexp(number * self.l2_norm_clip)
        unit = jnp.ldexp(jnp.ones_like(self.l2_norm_clip), exponent - digits)
        coarse, fine = split(self.sum, unit)
        parts = lax.psum((coarse, tree.add(fine, self.rest)), axis_name)
        coarse, fine = (as_pair(part) for part in parts)
        total, rest = add_pairs(coarse, fine)
        return ClippedSum(
            sum=total,
            rest=rest,
            values=gathered(self.values, axis_name),
            norms=gathered(self.norms, axis_name),
            l2_norm_clip=self.l2_norm_clip,
            summed=self.summed + names,
        )


def clip(
    gradient: Tree, l2_norm_clip: RealLike, keep: bool | Bool[Array, ""] = True
) -> tuple[Tree, Scalar]:
    r"""The clipped gradient $g \min(1, C / \|g\|)$ of one example, and $\|g\|$.

    All leaves are computed in the same precision, float32 or wider.

    | gradient | result |
    |---|---|
    | $\|g\| \le C (1 - 8 \epsilon)$ | $g$ itself, bit by bit |
    | longer, up to the largest floating-point numbers | norm at most $C$, exactly |
    | 0 | 0 |
    | NaN or infinite, in any entry | 0, as if there were no example |
    | any, with `keep` false | 0, and 0 as its norm |

    The norm has an error of at most 2 units in the last place, and the result is
    rounded three times. A margin of $8 \epsilon$ (1e-6 in float32) covers both.
    """
    g = tree.widen(gradient, tree.accumulator_dtype(gradient))
    root, unit = precise_norm(g)
    bound = tree.scalar(l2_norm_clip, g) * (1 - 8 * jnp.finfo(root.dtype).eps)
    counts = jnp.isfinite(root) & keep
    is_short = root <= bound / unit

    def entry(g: Array, inverse: Array, factor: Array) -> Array:
        # One factor at a time, because their product may over- or underflow.
        return jnp.where(counts, jnp.where(is_short, g, g * inverse * factor), 0)

    clipped = tree.map(entry, g, 1 / unit, tree.divide(bound, root))
    return clipped, jnp.where(keep, root * unit, 0)


def clipped_rows(
    grads: Tree, l2_norm_clip: RealLike, mask: Bool[Array, " examples"] | None = None
) -> tuple[Tree, Float[Array, " examples"]]:
    """The rows of `grads`, each clipped, and their norms before clipping."""
    # Without the barrier, XLA may compute the gradients twice: once for the norm, and
    # again, with other roundings, for the product.
    grads = lax.optimization_barrier(grads)
    if mask is None:
        return map_rows(lambda g: clip(g, l2_norm_clip), grads)
    return map_rows(lambda g, keep: clip(g, l2_norm_clip, keep), grads, mask)


def clipped_sum(l2_norm_clip: RealLike, grads: Tree) -> ClippedSum:
    """The sum of the rows of `grads`, each clipped. Losses are unknown and set to 0."""
    rows, norms = clipped_rows(grads, l2_norm_clip)
    total, rest = sum_rows(rows)
    bound = tree.scalar(l2_norm_clip, grads)
    return ClippedSum(total, rest, jnp.zeros_like(norms), norms, bound)
