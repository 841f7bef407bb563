"""Many small leaves as few buffers."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ._checks import check_whole
from ._coordinates import AbstractCoordinateChange, AbstractInnerState
from ._optax import as_transform
from ._transform import AbstractTransform, name_of, Transform
from ._types import P, Tree


class BucketedState(AbstractInnerState[P]):
    """State of [`contrib_core.Bucketed`][]."""

    inner_state: Any


class Bucketed(AbstractCoordinateChange):
    r"""Joins small leaves into flat buffers, and runs `inner` on these.

    $$U(x_1, \dots, x_n) = \text{split}(U_\text{inner}(x_1 \oplus \dots \oplus x_n))$$

    To rounding what `inner` does by itself, for less: with many small leaves, most of a
    step is one call for each of them, and most of its compilation too. Parameters,
    gradients and updates stay trees; the state of `inner` is of the buffers. For
    `inner` it must not matter how coordinates are split into leaves, which is the law
    `partition`. All laws of `inner` are kept.

    Leaves are joined in the order of the tree, with leaves of their own dtype, evenly,
    and so that buffers are alike where shapes repeat. Larger leaves are left alone, and
    so are leaves that are sharded over explicit axes, since joining them would gather
    them. Over automatic axes a sharding cannot be seen: there results are right, but
    sharded leaves are gathered, and may come back sharded otherwise: tell `jax.jit` the
    `out_shardings`, or leave such leaves alone by a `max_size` below theirs.

    **Arguments:**

    - `inner`: a transform, ours or optax's.
    - `leaves`: the most leaves in a buffer. With more of them a step is a little
        faster, and takes longer to compile.
    - `max_size`: the most entries of a leaf that is joined.
    - `assume_partition`: whether to take `inner` though it does not claim the law, as
        transforms of optax cannot. Right for most of them, and wrong for those that
        look at leaves, such as `optax.lars` or `optax.adafactor`.

    These decide what the state looks like: to restore it, they must be the same.

    **Raises:** `ValueError` for `leaves` below 1 or a negative `max_size`, and for an
    `inner` that does not claim the law `partition`, unless `assume_partition`.
    """

    inner: AbstractTransform = eqx.field(converter=as_transform)
    leaves: int = eqx.field(default=32, static=True)
    max_size: int = eqx.field(default=2**16, static=True)
    assume_partition: bool = eqx.field(default=False, kw_only=True, static=True)
    # The positions of the leaves of each buffer, once parameters have settled them.
    _buckets: tuple[tuple[int, ...], ...] = eqx.field(
        default=(), kw_only=True, static=True
    )

    def __post_init__(self):
        check_whole(self, "leaves")
        check_whole(self, "max_size", least=0)
        inner = as_transform(self.inner)  # Fields are not converted yet.
        if "partition" not in inner.laws and not self.assume_partition:
            raise ValueError(
                f"Bucketed: {name_of(inner)} does not claim the law `partition`, that "
                "it does not matter how coordinates are split into leaves; nothing can "
                "that works leaf by leaf, or by a mask. Put masks around this, "
                "`masked(bucketed(inner), mask)`, and the rest beside it, "
                "`chain(bucketed(inner), other)`. If you know that the law holds, as "
                "of optax.adam, say so: `bucketed(inner, assume_partition=True)`."
            )

    @property
    def needs(self) -> frozenset[str]:
        """What `inner` needs, and the parameters, by whose dtypes leaves are joined."""
        return self.inner.needs | {"params"}

    @property
    def laws(self) -> frozenset[str]:
        """Those of `inner`, and neutrality."""
        return self.inner.laws | {"neutral"}

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

    def encode_grads(self, grads: Tree) -> Tree:
        return self.encode(grads)

    def decode(self, inner: Tree, like: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(like)
        for bucket, buffer in zip(self._buckets, inner, strict=True):
            parts = _split(buffer, [leaves[i] for i in bucket])
            for i, part in zip(bucket, parts, strict=True):
                leaves[i] = part
        return jax.tree.unflatten(structure, leaves)

    def wrap(self, inner_state: Any) -> BucketedState[Tree]:
        return BucketedState(inner_state)


def bucketed(
    inner: Transform,
    leaves: int = 32,
    max_size: int = 2**16,
    *,
    assume_partition: bool = False,
) -> Bucketed:
    """Joins small leaves into buffers, so that many of them cost little:
    [`contrib_core.Bucketed`][], whose arguments these are.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import prodigy
        >>> from contrib_core import bucketed
        >>> params = {f"layer{i}": jnp.ones(3) for i in range(100)}
        >>> state = bucketed(prodigy()).init(params)
        >>> [x.shape for x in state.inner_state.exp_avg]
        [(75,), (75,), (75,), (75,)]

        ```
    """
    return Bucketed(inner, leaves, max_size, assume_partition=assume_partition)


def _fill_buckets(
    params: Tree, most: int, max_size: int
) -> tuple[tuple[int, ...], ...]:
    """The positions of the leaves of each buffer; a large leaf is one by itself."""
    buckets: list[tuple[int, ...]] = []
    small: dict[Any, list[int]] = {}
    for i, leaf in enumerate(jax.tree.leaves(params)):
        # Of the type, which is the same for arrays and while tracing.
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
    """`positions` in buckets of `most` or fewer, but more than half as many, that hold
    the same shapes as each other as often as possible.

    XLA compiles a loop once for all that are the same, but the loop that takes a leaf
    out of a buffer is different for each place in each kind of buffer.
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
