"""The norm of one example after clipping."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from contrib_algos.privacy import _clip

from .figure import Figure
from .inputs import groups, norms


def _clips() -> dict[str, Callable[[PyTree, float], PyTree]]:
    """`(rows, bound) -> clipped rows`, where each row is a batch of its own."""

    def ours(rows: PyTree, bound: Any) -> PyTree:
        return _clip.clipped_rows(rows, bound)[0]

    def peer(rows: PyTree, bound: Any) -> PyTree:
        def one(row: PyTree) -> PyTree:
            batch = [x[None] for x in jax.tree.leaves(row)]
            return optax.per_example_global_norm_clip(batch, bound)[0]

        return jax.vmap(one)(rows)

    # The bound is an argument, so that one compilation serves all bounds. Callers pass
    # a Python number, as users do, because it does not decide the dtype.
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
        for owner, clip in clips.items():
            clipped = clip(rows, bound)
            after = norms(clipped)
            exceeded[owner] += int(np.sum(~(after <= bound)))
            by_far[owner] += int(np.sum(~(after <= 1.01 * bound)))
            ratio = np.nan_to_num(after / bound, nan=np.inf, posinf=np.inf)
            worst[owner] = max(worst[owner], float(np.max(ratio)))
            is_lost = (after == 0) & _is_visible(rows, before, bound, clipped)
            dropped[owner] += int(np.sum(is_lost))
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
    """Whether the dtype can hold the largest entry of each row once it is clipped."""
    factor = bound / np.maximum(before, bound)
    result = np.zeros(len(before), bool)
    for x, y in zip(jax.tree.leaves(rows), jax.tree.leaves(clipped), strict=True):
        largest = np.max(np.abs(x.reshape(len(x), -1)), axis=1).astype(np.float64)
        # Twice the smallest number, because the entry may be rounded down.
        result |= factor * largest > 2 * float(jnp.finfo(y.dtype).smallest_normal)
    return result


def nonfinite() -> dict[str, Figure]:
    """The norm of a clipped example with one NaN or infinite entry and 99 of 1e6."""
    rows = {"x": np.full((2, 100), 1e6, np.float32)}
    rows["x"][:, 0] = np.nan, np.inf
    results = {
        owner: np.asarray(jax.tree.leaves(clip(rows, 1.0))[0], np.float64)
        for owner, clip in _clips().items()
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
