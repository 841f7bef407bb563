"""The change of a clipped sum when one example is taken away."""

import itertools as it
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from optax import contrib

from contrib_algos import value_and_clipped_grad
from contrib_algos.privacy import _clip
from contrib_core import tree

from .figure import Figure
from .inputs import DTYPES


BATCHES = (16, 256, 4096)


def sensitivity(entries: int, seed: int, is_large: bool) -> dict[str, Figure]:
    """The largest change of a sum when a row is taken away, over the clipping norm."""
    cases = [(dtype, batch, entries) for dtype in DTYPES for batch in BATCHES]
    figures = {
        f"{dtype}, B = {batch}, n = {n:,}": _sensitivity(dtype, batch, n, seed)
        for dtype, batch, n in cases
    }
    for dtype in DTYPES[:2] if is_large else ():
        # Few, because a sum takes seconds.
        figure = _sensitivity(dtype, BATCHES[-1], 100_000, seed, tries=3, removals=1)
        figures[f"{dtype}, B = {BATCHES[-1]}, n = 100,000"] = figure
    return figures


def _sensitivity(
    dtype: str, batch: int, n: int, seed: int, tries: int = 6, removals: int = 4
) -> Figure:
    rng = np.random.default_rng(seed)
    removed = [batch // 2, 0, batch - 1, int(rng.integers(batch))][:removals]
    keep = np.ones(batch, bool)
    sums = _sums()
    worst = dict.fromkeys(sums, 0.0)
    for entries, longest in it.islice(_aligned(rng, dtype, batch, removed), tries):
        bound = float(np.float32(longest * math.sqrt(n)))
        rows = jnp.broadcast_to(jnp.asarray(entries)[:, None], (batch, n))
        for owner, total in sums.items():
            full = total(rows, keep, bound)
            for i in removed:
                changed = full - total(rows, np.arange(batch) != i, bound)
                change = float(np.linalg.norm(changed)) / bound
                # In this order a NaN is kept.
                worst[owner] = worst[owner] if change <= worst[owner] else change
    *ours, peer = worst.values()
    return Figure(float(np.max(ours)), peer, most=1 + 1e-4)


def _aligned(
    rng: np.random.Generator, dtype: str, batch: int, removed: list[int]
) -> Iterator[tuple[np.ndarray, float]]:
    """Yields the entry of each row, and the entry of a row whose norm is the bound.

    All entries of a row are equal, so that all entries of the sum are rounded in the
    same direction. The sum is a little above 1, where a unit in the last place is
    largest relative to it.
    """
    # Two neighbouring numbers in turn, with norms below the bound. The sum of a power
    # of two of them lies halfway between two numbers and is rounded to the even one.
    # Without one row, all entries may be rounded down that were rounded up before.
    high = np.asarray(1.03 / batch, jnp.dtype(dtype))
    for _ in range(2):
        low = np.nextafter(high, np.zeros_like(high))
        yield np.where(np.arange(batch) % 2 == 0, high, low), 1.03 / 0.99 / batch
        high = low
    while True:
        # Each row rounds the sum in another way.
        rows = rng.uniform(0.5, 1, batch)
        rows[removed] = 1
        longest = 1.03 / np.sum(rows)
        # These rows are longer than the bound, so that they are clipped.
        rows[removed] = 1.1
        yield (longest * rows).astype(jnp.dtype(dtype)), longest


def _sums() -> dict[str, Callable[[PyTree, np.ndarray, float], np.ndarray]]:
    """`(rows, mask, bound) -> sum in float64`: several of ours, and last the peer's."""

    def stacked(rows: Any, mask: Any, bound: Any) -> tuple[Any, Any]:
        clipped = _clip.clipped_sum(bound, jnp.where(mask[:, None], rows, 0))
        return clipped.sum, clipped.rest

    def in_blocks(size: int) -> Callable[..., tuple[Any, Any]]:
        def blocks(rows: Any, mask: Any, bound: Any) -> tuple[Any, Any]:
            grad = value_and_clipped_grad(jnp.vdot, bound, microbatch_size=size)
            clipped = grad(jnp.zeros_like(rows[0]), rows, mask)
            return clipped.sum, clipped.rest

        return blocks

    def peer(rows: Any, mask: Any, bound: Any) -> tuple[Any, Any]:
        kept = jnp.where(mask[:, None], rows, 0)
        mean = contrib.differentially_private_aggregate(bound, 0.0, key=0)
        updates, _ = mean.update(kept, mean.init(kept))
        return updates, tree.zeros_like(updates)

    def exactly(fn: Callable[..., tuple[Any, Any]], is_mean: bool = False):
        jitted = jax.jit(fn)

        def total(rows: Any, mask: np.ndarray, bound: float) -> np.ndarray:
            parts = [np.asarray(x, np.float64) for x in jitted(rows, mask, bound)]
            return (parts[0] + parts[1]) * (len(mask) if is_mean else 1)

        return total

    return {
        "stacked": exactly(stacked),
        "microbatch 1": exactly(in_blocks(1)),
        "microbatch 16": exactly(in_blocks(16)),
        "peer": exactly(peer, is_mean=True),
    }
