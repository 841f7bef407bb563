"""What clipping promises of single examples and of sums, and what noise looks like."""

import itertools as it
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from optax import contrib

from contrib_algos import _clip, ClippedSum, GaussianNoise, value_and_clipped_grad
from contrib_core import tree

from .privacy_inputs import DTYPES, groups, norms


BATCHES = (16, 256, 4096)

NOISE_MULTIPLIER = 1.1
L2_NORM_CLIP = 0.7

# Of a standard normal number: how often it is beyond. The last is where one of float32
# ends, as it has 24 random bits.
TAILS = (3.0, 4.0, 5.0, 5.42)

DRAWS = 10**6


class Figure(NamedTuple):
    """A row of the table."""

    ours: float | None
    peer: float | None = None
    by_hand: float | None = None
    most: float | None = None  # The goal for ours.
    about: float | None = None  # What it would be in theory, which is not checked.


# One example


def _clips() -> dict[str, Callable[[PyTree, float], PyTree]]:
    """`(rows, bound) -> rows`, each of which is clipped as a batch of one."""

    def ours(rows: PyTree, bound: Any) -> PyTree:
        return _clip.clipped_rows(rows, bound)[0]

    def peer(rows: PyTree, bound: Any) -> PyTree:
        def one(row: PyTree) -> PyTree:
            batch = [x[None] for x in jax.tree.leaves(row)]
            return optax.per_example_global_norm_clip(batch, bound)[0]

        return jax.vmap(one)(rows)

    # The bound is an argument, so it is compiled once for all; and a Python number, as
    # users write it, which does not decide the dtype.
    return {"ours": jax.jit(ours), "peer": jax.jit(peer)}


def clip(inputs: int, seed: int) -> dict[str, Figure]:
    """How often the norm of a clipped example is above the bound, or 0."""
    clips = _clips()
    number = 0
    exceeded, by_far, dropped = (dict.fromkeys(clips, 0) for _ in range(3))
    worst = dict.fromkeys(clips, 0.0)
    for rows, bound in groups(inputs, seed):
        before = norms(rows)
        number += int(np.sum(before > 0))
        for who, clip in clips.items():
            clipped = clip(rows, bound)
            after = norms(clipped)
            exceeded[who] += int(np.sum(~(after <= bound)))
            by_far[who] += int(np.sum(~(after <= 1.01 * bound)))
            ratio = np.nan_to_num(after / bound, nan=np.inf, posinf=np.inf)
            worst[who] = max(worst[who], float(np.max(ratio)))
            is_lost = (after == 0) & _is_visible(rows, before, bound, clipped)
            dropped[who] += int(np.sum(is_lost))
    return {
        "inputs": Figure(number, number),
        "norm above C": Figure(*exceeded.values(), most=0),
        "norm above 1.01 C": Figure(*by_far.values(), most=0),
        "largest norm / C": Figure(*worst.values(), most=1),
        "dropped, though finite and not 0": Figure(*dropped.values(), most=0),
    }


def _is_visible(
    rows: PyTree, before: np.ndarray, bound: float, clipped: PyTree
) -> np.ndarray:
    """Whether the largest entry is, once clipped, above what its dtype can hold."""
    factor = bound / np.maximum(before, bound)
    result = np.zeros(len(before), bool)
    for x, y in zip(jax.tree.leaves(rows), jax.tree.leaves(clipped), strict=True):
        largest = np.max(np.abs(x.reshape(len(x), -1)), axis=1).astype(np.float64)
        # Twice, as it may be rounded down.
        result |= factor * largest > 2 * float(jnp.finfo(y.dtype).smallest_normal)
    return result


def nonfinite() -> dict[str, Figure]:
    """The norm of what an example adds that has one bad entry, and others of 1e6."""
    rows = {"x": np.full((2, 100), 1e6, np.float32)}
    rows["x"][:, 0] = np.nan, np.inf
    results = {
        who: np.asarray(jax.tree.leaves(clip(rows, 1.0))[0], np.float64)
        for who, clip in _clips().items()
    }
    total = [np.linalg.norm(x, axis=1) for x in results.values()]
    others = [np.linalg.norm(x[:, 1:], axis=1) for x in results.values()]
    figures = {}
    for i, name in enumerate(("NaN", "infinite")):
        whole = (float(x[i]) for x in total)
        rest = (float(x[i]) for x in others)
        figures[f"norm / C of one {name} entry and 99 of 1e6"] = Figure(*whole, most=0)
        figures[f"... of the 99, {name}"] = Figure(*rest, most=0)
    return figures


# Sums


def sensitivity(entries: int, seed: int, is_large: bool) -> dict[str, Figure]:
    """How far the sum goes when a row is taken away, at most; and in float64."""
    cases = [(dtype, batch, entries) for dtype in DTYPES for batch in BATCHES]
    figures = {
        f"{dtype}, B = {batch}, n = {n:,}": _sensitivity(dtype, batch, n, seed)
        for dtype, batch, n in cases
    }
    for dtype in DTYPES[:2] if is_large else ():
        # A sum takes seconds.
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
        for who, total in sums.items():
            full = total(rows, keep, bound)
            for i in removed:
                changed = full - total(rows, np.arange(batch) != i, bound)
                change = float(np.linalg.norm(changed)) / bound
                # In this order, NaN stays.
                worst[who] = worst[who] if change <= worst[who] else change
    *ours, peer = worst.values()
    return Figure(float(np.max(ours)), peer, most=1 + 1e-4)


def _aligned(
    rng: np.random.Generator, dtype: str, batch: int, removed: list[int]
) -> Iterator[tuple[np.ndarray, float]]:
    """For each row, what all its entries are: so all entries of the sum are rounded in
    the same direction. And what they are in a row whose norm is the bound.

    The sum is a little above 1, where a unit in the last place is largest beside it.
    """
    # Neighbours in turn, of norms below the bound. With a power of two of them the sum
    # lies halfway between two numbers; so without one row all entries may be rounded
    # down that were rounded up, to the one of these that is even.
    high = np.asarray(1.03 / batch, jnp.dtype(dtype))
    for _ in range(2):
        low = np.nextafter(high, np.zeros_like(high))
        yield np.where(np.arange(batch) % 2 == 0, high, low), 1.03 / 0.99 / batch
        high = low
    while True:
        # Rounds after every row in a way of its own.
        rows = rng.uniform(0.5, 1, batch)
        rows[removed] = 1
        longest = 1.03 / np.sum(rows)
        # Longer, so that they are clipped.
        rows[removed] = 1.1
        yield (longest * rows).astype(jnp.dtype(dtype)), longest


def _sums() -> dict[str, Callable[[PyTree, np.ndarray, float], np.ndarray]]:
    """`(rows, mask, bound) -> sum`, in float64; the last is the peer's."""

    def stacked(rows: Any, mask: Any, bound: Any) -> tuple[Any, Any]:
        return tree.sum_rows(_clip.clipped_rows(rows, bound, mask)[0])

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


# Noise


def noise(draws: int, seed: int) -> dict[str, Figure]:
    """Noise alone, in units of the standard deviation that it should have."""
    steps = {who: _moments_and_links(who, seed) for who in ("ours", "peer")}
    tails = {who: _tails(who, draws, seed) for who in ("ours", "peer")}
    n = next(iter(tails.values()))["draws"]

    def both(results: dict[str, dict[str, float]], name: str) -> list[float]:
        return [result[name] for result in results.values()]

    # Four standard errors of 1e6 draws, which tells 1 from 0.99.
    figures = {
        f"|std - 1|, {kind}": Figure(*both(steps, f"std {kind}"), most=0.0028)
        for kind in ("float32", "bfloat16", "real part of complex64")
    }
    figures["excess kurtosis"] = Figure(*both(steps, "kurtosis"), about=0.0)
    for tail in TAILS:
        expected = n * math.erfc(tail / math.sqrt(2))
        figures[f"beyond {tail:g}, of {n:.2g}"] = Figure(
            *both(tails, f"{tail:g}"), about=round(expected, 1)
        )
    figures["largest"] = Figure(*both(tails, "largest"))
    figures |= {
        f"bfloat16, {name}": Figure(*both(steps, name))
        for name in ("distinct values", "largest")
    }
    figures |= {
        f"|correlation| sqrt(n), {name}": Figure(*both(steps, name), most=4)
        for name in ("leaves", "steps", "keys", "real and imaginary parts")
    }
    return figures


def _moments_and_links(who: str, seed: int) -> dict[str, float]:
    """What a million draws show: standard deviations and correlations."""
    draws = _noise(who, {"a": "float32", "b": "float32", "z": "complex64"}, DRAWS)
    first, second = it.islice(draws(seed), 2)
    other = next(draws(seed + 1))
    # By itself, since beside others optax makes it float32.
    half = next(_noise(who, {"half": "bfloat16"}, DRAWS)(seed))["half"]
    x, real, imaginary = first["a"], np.real(first["z"]), np.imag(first["z"])
    deviations = {"float32": x, "bfloat16": half, "real part of complex64": real}
    return {
        **{f"std {kind}": abs(float(np.std(x)) - 1) for kind, x in deviations.items()},
        "kurtosis": float(np.mean((x - x.mean()) ** 4) / np.var(x) ** 2) - 3,
        "distinct values": len(np.unique(half)),
        "largest": float(np.max(np.abs(half))),
        "leaves": _correlation(x, first["b"]),
        "steps": _correlation(x, second["a"]),
        "keys": _correlation(x, other["a"]),
        "real and imaginary parts": _correlation(real, imaginary),
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """In units of the standard error for numbers that are independent."""
    return abs(float(np.corrcoef(x, y)[0, 1])) * math.sqrt(len(x))


def _tails(who: str, draws: int, seed: int) -> dict[str, float]:
    """How many of many draws are far out."""
    size = max(1, min(draws // 2, DRAWS))
    source = _noise(who, dict.fromkeys("ab", "float32"), size)
    counts = dict.fromkeys(TAILS, 0)
    number, largest = 0, 0.0
    for leaves in it.islice(source(seed), draws // (2 * size)):
        for leaf in leaves.values():
            x = np.abs(leaf)
            number += x.size
            largest = max(largest, float(x.max()))
            for tail in TAILS:
                counts[tail] += int(np.count_nonzero(x > tail))
    return {
        "draws": number,
        "largest": largest,
        **{f"{tail:g}": count for tail, count in counts.items()},
    }


def _noise(
    who: str, dtypes: dict[str, str], size: int
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
    """A function of the seed: step by step, what is added to leaves of zeros, over the
    standard deviation that it should have."""
    zeros = {leaf: jnp.zeros(size, dtype) for leaf, dtype in dtypes.items()}
    if who == "ours":
        none, bound = jnp.zeros(1), jnp.float32(L2_NORM_CLIP)
        total = tree.widen(zeros)
        grads = ClippedSum(total, tree.zeros_like(total), none, none, bound)
    else:
        grads = {leaf: x[None] for leaf, x in zeros.items()}

    def transform(seed: int) -> Any:
        if who == "ours":
            return GaussianNoise(NOISE_MULTIPLIER, seed, normalize_by=1)
        return contrib.differentially_private_aggregate(
            L2_NORM_CLIP, NOISE_MULTIPLIER, key=seed
        )

    # Of any seed: the key is in the state.
    step = jax.jit(transform(0).update)
    std = np.float32(NOISE_MULTIPLIER * L2_NORM_CLIP)

    def draws(seed: int) -> Iterator[dict[str, np.ndarray]]:
        state = transform(seed).init(zeros)
        while True:
            updates, state = step(grads, state, zeros)
            wide = jax.tree.map(np.asarray, tree.widen(updates))
            yield {leaf: x / std for leaf, x in wide.items()}

    return draws
