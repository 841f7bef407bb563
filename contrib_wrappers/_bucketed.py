"""Joins many small leaves into a few buffers."""

import math
from dataclasses import KW_ONLY
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from contrib_core import (
    AbstractCoordinateChange,
    AbstractInnerState,
    AbstractTransform,
    as_transform,
    name_of,
)
from contrib_core.claims import claim, Laws, Needs, PARAMS
from contrib_core.ranges import Natural, NaturalOrZero, static
from contrib_core.typing import Tree


class BucketedState(AbstractInnerState):
    """State of [`contrib_wrappers.Bucketed`][]."""

    inner_state: Any


class Bucketed(AbstractCoordinateChange):
    r"""Joins small leaves into flat buffers, and runs `inner` on the buffers.

    $$U(x_1, \dots, x_n) = \text{split}(U_\text{inner}(x_1 \oplus \dots \oplus x_n))$$

    The result equals that of `inner` up to rounding, at a lower cost. With many small
    leaves, the operations for each leaf dominate both the run time of a step and its
    compilation. Parameters, gradients and updates keep their structure, while the state
    of `inner` describes the buffers. `inner` must not depend on how coordinates are
    split into leaves; this is the law `partition`. All laws of `inner` are kept.

    A buffer holds leaves of one dtype, in the order of the tree. The leaves are
    distributed evenly, and repeating shapes give equal buffers where possible. Leaves
    above `max_size` are left alone. So are leaves that are sharded over explicit axes,
    because joining would gather them. A sharding over automatic axes is not visible
    while tracing: the results are right, but such leaves are gathered, and the updates
    may have a different sharding. To prevent this, pass `out_shardings` to `jax.jit`,
    or choose a `max_size` below the size of the sharded leaves.

    **Arguments:**

    - `inner`: a transform, ours or optax's.
    - `leaves`: the maximal number of leaves in a buffer. A larger number makes a step a
        little faster, and its compilation slower.
    - `max_size`: the maximal number of entries of a leaf that is joined.
    - `assume_partition`: whether to accept an `inner` that does not claim the law
        `partition`. Transforms of optax cannot claim laws. Most of them obey this one;
        exceptions compute statistics per leaf, such as `optax.lars` or
        `optax.adafactor`.

    `leaves` and `max_size` decide the shapes in the state. Restoring a state requires
    the same values.

    **Raises:** `ValueError` for `leaves` below 1, for a negative `max_size`, and for an
    `inner` that does not claim the law `partition`, unless `assume_partition` is true.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import prodigy
        >>> from contrib_wrappers import bucketed
        >>> params = {f"layer{i}": jnp.ones(3) for i in range(100)}
        >>> state = bucketed(prodigy()).init(params)
        >>> [x.shape for x in state.inner_state.exp_avg]
        [(75,), (75,), (75,), (75,)]

        ```
    """

    inner: AbstractTransform[Any] = eqx.field(converter=as_transform)
    leaves: Natural = static(32)
    max_size: NaturalOrZero = static(2**16)
    _: KW_ONLY
    assume_partition: bool = static(False)
    # The positions of the leaves of each buffer. `settled` fills them in.
    _buckets: tuple[tuple[int, ...], ...] = static(())

    def __check_init__(self):
        if "partition" not in self.inner.laws and not self.assume_partition:
            raise ValueError(
                f"Bucketed: {name_of(self.inner)} does not claim the law `partition`: "
                "updates do not depend on how coordinates are split into leaves. A "
                "transform that works leaf by leaf, or with a mask, breaks this law. "
                "Put a mask outside, `masked(bucketed(inner), mask)`, and a transform "
                "that works leaf by leaf beside, `chain(bucketed(inner), other)`. If "
                "you know that the law holds, as for optax.adam, pass "
                "`bucketed(inner, assume_partition=True)`."
            )

    @property
    def needs(self) -> Needs:
        """Everything that `inner` needs, plus the parameters, because their dtypes
        decide which leaves are joined."""
        return self.inner.needs | PARAMS

    @property
    def laws(self) -> Laws:
        """Every law of `inner`, plus `neutral`: it changes only the cost."""
        return self.inner.laws | claim("neutral")

    def settled(self, params: Tree) -> "Bucketed":
        return Bucketed(
            self.inner,
            self.leaves,
            self.max_size,
            assume_partition=self.assume_partition,
            _buckets=_fill_buckets(params, self.leaves, self.max_size),
        )

    def encode(self, params: Tree) -> Tree:
        leaves = jax.tree.leaves(params)
        return [_join([leaves[i] for i in bucket]) for bucket in self._buckets]

    def decode(self, inner: Tree, like: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(like)
        for bucket, buffer in zip(self._buckets, inner, strict=True):
            parts = _split(buffer, [leaves[i] for i in bucket])
            for i, part in zip(bucket, parts, strict=True):
                leaves[i] = part
        return jax.tree.unflatten(structure, leaves)

    def wrap(self, inner_state: Any) -> BucketedState:
        return BucketedState(inner_state)


bucketed = Bucketed


def _fill_buckets(
    params: Tree, most: int, max_size: int
) -> tuple[tuple[int, ...], ...]:
    """The positions of the leaves of each buffer; a large leaf has its own."""
    buckets: list[tuple[int, ...]] = []
    small: dict[Any, list[int]] = {}
    for i, leaf in enumerate(jax.tree.leaves(params)):
        # The sharding of the type is the same for arrays and for tracers.
        if leaf.size <= max_size and jax.typeof(leaf).sharding.is_fully_replicated:
            small.setdefault(leaf.dtype, []).append(i)
        else:
            buckets.append((i,))
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    for positions in small.values():
        buckets += _most_alike(positions, shapes, most)
    return tuple(sorted(buckets))


def _most_alike(
    positions: list[int], shapes: list[tuple[int, ...]], most: int
) -> list[tuple[int, ...]]:
    """Splits `positions` into buckets with as few different sequences of shapes as
    possible.

    Each bucket has at most `most` leaves; the sizes that are tried are above half of
    `most`. XLA compiles equal loops once. The loop that reads a leaf from a buffer
    differs for each offset in each kind of buffer, so fewer kinds compile faster.
    """

    def split(size: int) -> list[tuple[int, ...]]:
        number = math.ceil(len(positions) / size)
        ends = [k * len(positions) // number for k in range(number + 1)]
        return [tuple(positions[a:b]) for a, b in zip(ends, ends[1:])]

    def kinds(buckets: list[tuple[int, ...]]) -> int:
        return len({tuple(shapes[i] for i in bucket) for bucket in buckets})

    return min(map(split, range(most, most // 2, -1)), key=kinds)


def _join(leaves: list[Array]) -> Array:
    if len(leaves) == 1:
        return leaves[0]
    with jax.numpy_dtype_promotion("standard"):  # Gradients may mix dtypes.
        dtype = jnp.result_type(*leaves)
    flat = [lax.reshape(x, (x.size,)) for x in leaves]
    return lax.concatenate([lax.convert_element_type(x, dtype) for x in flat], 0)


def _split(buffer: Array, like: list[Array]) -> list[Array]:
    if len(like) == 1:
        return [buffer]
    parts = lax.split(buffer, [x.size for x in like])
    return [lax.reshape(part, x.shape) for part, x in zip(parts, like, strict=True)]
