"""Normal random numbers with longer tails than `jax.random.normal` has in float32."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key

from contrib_core import Tree


def normal_like(x: Tree, key: Key[Array, ""]) -> Tree:
    """Independent normal numbers of variance 1, in the shapes and dtypes of `x`.

    The real and the imaginary part of a complex number both have variance 1. The
    numbers of a leaf depend on the key and the position of the leaf, and not on the
    other leaves.

    Each number is half of a sum of four, so that it can exceed 5.4. A single normal
    number in float32 comes from 24 random bits and cannot. A true normal number exceeds
    5.4 in size with probability 7e-8, so a mechanism with a delta below that needs it.
    """
    leaves, structure = jax.tree.flatten(x)
    # Make the keys of all leaves at once: XLA would compile a loop for each leaf.
    own = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(leaves)))
    keys = jax.vmap(lambda key: jax.random.split(key, (2, 4)))(own)
    return structure.unflatten(_normal(leaf, keys[i]) for i, leaf in enumerate(leaves))


def _normal(x: Array, keys: Key[Array, "2 4"]) -> Array:
    if jnp.iscomplexobj(x):
        return lax.complex(*(_half_of_four(x.real, part) for part in keys))
    return _half_of_four(x, keys[0])


def _half_of_four(x: Array, keys: Key[Array, "4"]) -> Array:
    def add(total: Array, key: Array) -> tuple[Array, None]:
        return total + jax.random.normal(key, x.shape, x.dtype), None

    # A scan draws one at a time, so that only one is in memory.
    total, _ = lax.scan(add, jnp.zeros_like(x), keys)
    return total / 2
