"""The size, tails and correlations of the noise."""

import itertools as it
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax import contrib

from contrib_algos import ClippedSum, GaussianNoise
from contrib_core import tree

from .figure import Figure


NOISE_MULTIPLIER = 1.1
L2_NORM_CLIP = 0.7

# Distances from 0, in standard deviations. A normal number of float32 ends at the last,
# because it comes from 24 random bits.
TAILS = (3.0, 4.0, 5.0, 5.42)

DRAWS = 10**6


def noise(draws: int, seed: int) -> dict[str, Figure]:
    """Noise without gradients, in units of the standard deviation it should have."""
    steps = {owner: _moments_and_links(owner, seed) for owner in ("ours", "peer")}
    tails = {owner: _tails(owner, draws, seed) for owner in ("ours", "peer")}
    n = next(iter(tails.values()))["draws"]

    def both(results: dict[str, dict[str, float]], name: str) -> list[float]:
        return [result[name] for result in results.values()]

    # The limit is four standard errors of 1e6 draws, which tells 1 from 0.99.
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


def _moments_and_links(owner: str, seed: int) -> dict[str, float]:
    """Standard deviations and correlations of a million draws."""
    draws = _noise(owner, {"a": "float32", "b": "float32", "z": "complex64"}, DRAWS)
    first, second = it.islice(draws(seed), 2)
    other = next(draws(seed + 1))
    # This leaf is alone in its tree. Beside other leaves, optax makes it float32.
    half = next(_noise(owner, {"half": "bfloat16"}, DRAWS)(seed))["half"]
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
    """The correlation, in units of its standard error for independent numbers."""
    return abs(float(np.corrcoef(x, y)[0, 1])) * math.sqrt(len(x))


def _tails(owner: str, draws: int, seed: int) -> dict[str, float]:
    """The number of draws that are far from 0, and the largest."""
    size = max(1, min(draws // 2, DRAWS))
    source = _noise(owner, dict.fromkeys("ab", "float32"), size)
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
    owner: str, dtypes: dict[str, str], size: int
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
    """A function of the seed, which returns the noise of each step in units of the
    standard deviation that it should have."""
    zeros = {leaf: jnp.zeros(size, dtype) for leaf, dtype in dtypes.items()}
    if owner == "ours":
        none, bound = jnp.zeros(1), jnp.float32(L2_NORM_CLIP)
        total = tree.widen(zeros)
        grads = ClippedSum(total, tree.zeros_like(total), none, none, bound)
    else:
        grads = {leaf: x[None] for leaf, x in zeros.items()}

    def transform(seed: int) -> Any:
        if owner == "ours":
            return GaussianNoise(NOISE_MULTIPLIER, seed, normalize_by=1)
        return contrib.differentially_private_aggregate(
            L2_NORM_CLIP, NOISE_MULTIPLIER, key=seed
        )

    # One program serves every seed, because the key is in the state.
    step = jax.jit(transform(0).update)
    std = np.float32(NOISE_MULTIPLIER * L2_NORM_CLIP)

    def draws(seed: int) -> Iterator[dict[str, np.ndarray]]:
        state = transform(seed).init(zeros)
        while True:
            updates, state = step(grads, state, zeros)
            wide = jax.tree.map(np.asarray, tree.widen(updates))
            yield {leaf: x / std for leaf, x in wide.items()}

    return draws
