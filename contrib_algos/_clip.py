"""Clipping: how much the gradient of one example can change the sum of all."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from contrib_core import (
    AbstractUnprotected,
    check_between,
    check_scalar,
    gathered,
    is_tracked,
    RealLike,
    Scalar,
    Tree,
    tree,
    varying_axes,
)


class ClippedSum(AbstractUnprotected):
    """A sum of gradients of single examples, each clipped to an L2 norm.

    What one example adds to `sum + rest` has at most the norm `l2_norm_clip`. Nothing
    of this is private yet: [`contrib_algos.GaussianNoise`][] makes the sum so, and
    `values` and `norms` stay what they are.

    **Arguments:**

    - `sum`: a tree like the parameters, of float32 or wider.
    - `rest`: what rounding took from `sum`. Beside a sum of thousands, the last bits of
        one example are lost, and with them the bound on what it adds.
    - `values`: the losses of the examples, 0 for masked ones. NOT private.
    - `norms`: the norms of their gradients before clipping, 0 for masked ones. NOT
        private.
    - `l2_norm_clip`: the bound, in units of the gradients.
    """

    sum: Tree
    rest: Tree
    values: Float[Array, " examples"]
    norms: Float[Array, " examples"]
    l2_norm_clip: Scalar
    summed: tuple[str, ...] = eqx.field(default=(), static=True)  # Over which axes.

    def psum(self, axis_name: Any) -> "ClippedSum":
        """The sum over the devices of mesh axes, inside of `jax.shard_map`.

        What one example adds is what it adds on its device: the sum goes in two parts,
        of which the coarse one is added without rounding.

        **Arguments:**

        - `axis_name`: a name of an axis, or a tuple of names.

        **Raises:** `ValueError` for an axis that it is summed over already, or along
        which all devices have the same examples.
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
        coarse, fine = tree.split(self.sum, unit)
        parts = lax.psum((coarse, tree.add(fine, self.rest)), axis_name)
        coarse, fine = (tree.twice(part) for part in parts)
        total, rest = tree.add_pairs(coarse, fine)
        return ClippedSum(
            sum=total,
            rest=rest,
            values=gathered(self.values, axis_name),
            norms=gathered(self.norms, axis_name),
            l2_norm_clip=self.l2_norm_clip,
            summed=self.summed + names,
        )


def check_bound(owner: eqx.Module) -> None:
    """`l2_norm_clip` must be in a range where float32 has room for the sum of a million
    examples, and for noise of a millionth of it: what underflows would hide nothing."""
    check_scalar(owner, "l2_norm_clip")
    check_between(owner, 1e-30, 1e30, "l2_norm_clip")


def clip(
    gradient: Tree, l2_norm_clip: RealLike, keep: bool | Bool[Array, ""] = True
) -> tuple[Tree, Scalar]:
    r"""$g \min(1, C / \|g\|)$ of one example, and $\|g\|$.

    Computed in float32 or wider, and in one precision for all leaves.

    | gradient | result |
    |---|---|
    | $\|g\| \le C (1 - 8 \epsilon)$ | $g$ itself, bit by bit |
    | longer, up to the largest floating-point numbers | norm at most $C$, exactly |
    | 0 | 0 |
    | NaN or infinite, in any entry | 0, as if there were no example |
    | `keep` is false | 0, whatever it is, and the norm 0 |

    The norm is known to 2 units in the last place, the result is rounded thrice: a
    margin of $8 \epsilon$, of 1e-6 in float32, covers these.
    """
    g = tree.widen(gradient, tree.accumulator_dtype(gradient))
    root, unit = tree.precise_norm(g)
    bound = tree.scalar(l2_norm_clip, g) * (1 - 8 * jnp.finfo(root.dtype).eps)
    counts = jnp.isfinite(root) & keep
    is_short = root <= bound / unit

    def entry(g: Array, inverse: Array, factor: Array) -> Array:
        # Not by the product of both, which may over- or underflow.
        return jnp.where(counts, jnp.where(is_short, g, g * inverse * factor), 0)

    clipped = tree.map(entry, g, 1 / unit, tree.divide(bound, root))
    return clipped, jnp.where(keep, root * unit, 0)


def clipped_rows(
    grads: Tree, l2_norm_clip: RealLike, mask: Bool[Array, " examples"] | None = None
) -> tuple[Tree, Float[Array, " examples"]]:
    """`clip` of each row of `grads`, and their norms."""
    # Or what is clipped may be computed anew, and rounded to other numbers than those
    # whose norm was taken.
    grads = lax.optimization_barrier(grads)
    if mask is None:
        return tree.map_rows(lambda g: clip(g, l2_norm_clip), grads)
    return tree.map_rows(lambda g, keep: clip(g, l2_norm_clip, keep), grads, mask)


def clipped_sum(l2_norm_clip: RealLike, grads: Tree) -> ClippedSum:
    """The sum of the rows of `grads`, each clipped; their losses are not known."""
    rows, norms = clipped_rows(grads, l2_norm_clip)
    total, rest = tree.sum_rows(rows)
    bound = tree.scalar(l2_norm_clip, grads)
    return ClippedSum(total, rest, jnp.zeros_like(norms), norms, bound)
