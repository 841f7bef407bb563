"""`python -m benchmarks speed`: the time of a step, ours beside optax's.

Other work on the machine disturbs all alike: in each round every contender takes its
turn, ratios are of times of the same round, and medians over the rounds are reported.
Every second round goes backwards, since what went before decides what is in the cache.
"""

import argparse
import itertools as it
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from contrib_core import Transform

from . import report, trees
from .rules import LR, Rule, RULES
from .step import bytes_of, jitted


# A turn takes at least this long, so that the clock and the dispatch do not matter.
SECONDS_A_TURN = 0.05


def main(argv: list[str]) -> int:
    """Measures, prints, writes."""
    parser = report.parser("speed", "Time of a step, ours and optax's.", tree="one")
    report.add_bucketed(parser)
    add_rounds(parser)
    args = parser.parse_args(argv)
    shapes = report.shapes(parser, args)
    rows = {
        name: _measure(name, report.ours(name, args), RULES[name], shapes, args.rounds)
        for name in args.rules
    }
    report.print_table(
        f"Time of a step, tree {report.described(args)}: medians of {args.rounds} "
        "rounds",
        [
            "rule",
            "floor",
            "ms",
            "peer",
            "ratio",
            "quartiles",
            "/ adam",
            "peer / adam",
            "GB/s",
        ],
        [_cells(name, row) for name, row in rows.items()],
    )
    ratios = [row["ratio"]["median"] for row in rows.values() if row["ratio"]]
    if ratios:
        mean = statistics.geometric_mean(ratios)
        print(f"Ratio, geometric mean over {len(ratios)} rules: {mean:.3f}")
    print("adam: optax's, of float32. GB/s: the bytes of the floor over our time.")
    report.write_json("speed", args, rows)
    return 0


def add_rounds(parser: argparse.ArgumentParser) -> None:
    """The argument that says how often each contender takes its turn."""
    parser.add_argument(
        "--rounds",
        type=int,
        default=15,
        help="turns that each contender takes; default %(default)s",
    )


def _measure(
    name: str, transform: Transform, rule: Rule, shapes: trees.Shapes, rounds: int
) -> dict[str, Any]:
    report.progress(name)
    gradients = rule.gradients(shapes)
    turns = {"ours": _contender(transform, shapes, gradients, rule.dtype)}
    if rule.peer is not None:
        turns["peer"] = _contender(rule.peer, shapes, gradients, rule.dtype)
    turns["adam"] = _contender(optax.adam(LR), shapes, shapes, "float32")
    times = interleaved(turns, rounds)
    size = bytes_of(trees.abstract(shapes, rule.dtype))
    peer = times.get("peer")
    seconds = statistics.median(times["ours"])
    return {
        "floor": rule.floor,
        "seconds": seconds,
        "peer_seconds": peer and statistics.median(peer),
        "ratio": peer and spread(times["ours"], peer),
        "to_adam": spread(times["ours"], times["adam"]),
        "peer_to_adam": peer and spread(peer, times["adam"]),
        "bytes_per_second": rule.floor * size / seconds,
    }


def interleaved(
    turns: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """What each contender returned in each round."""
    times: dict[str, list[float]] = {who: [] for who in turns}
    forth = list(turns)
    for _, order in zip(range(rounds), it.cycle([forth, forth[::-1]]), strict=False):
        for who in order:
            times[who].append(turns[who]())
    return times


def _contender(
    transform: Transform, shapes: trees.Shapes, gradients: trees.Shapes, dtype: str
) -> Callable[[], float]:
    """A function that takes some steps and returns the mean seconds of one."""
    params = trees.random(shapes, dtype, seed=0)
    # Copied, since optax's states alias the parameters, which are donated too.
    state = jax.tree.map(jnp.copy, transform.init(params))
    grads = trees.random(gradients, dtype, seed=1)
    # There and back: on a slope without end the learned step sizes would explode.
    signs = it.cycle([grads, jax.tree.map(jnp.negative, grads)])
    step = jitted(transform)

    def run(steps: int) -> PyTree:
        nonlocal params, state
        for grads in it.islice(signs, steps):
            params, state = step(params, state, grads)
        return params, state

    return turn(run)


def turn(run: Callable[[int], PyTree]) -> Callable[[], float]:
    """A function that takes as many steps as make a turn, by `run`, which returns what
    to wait for; and that returns the mean seconds of one."""

    def take(steps: int) -> float:
        start = time.perf_counter()
        _wait_for(run(steps))
        return (time.perf_counter() - start) / steps

    take(2)  # Compiles; twice, where the first state is weakly typed.
    steps = max(1, round(SECONDS_A_TURN / take(2)))
    return lambda: take(steps)


def _wait_for(x: PyTree) -> None:
    jax.block_until_ready(x)


def spread(ours: list[float], peer: list[float]) -> dict[str, float]:
    """The median and the quartiles of the ratios of times of the same round."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    low, median, high = (
        statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    )
    return {"low": low, "median": median, "high": high}


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    def median(key: str) -> str:
        return report.number(row[key] and row[key]["median"])

    spread = row["ratio"]
    quartiles = f"{spread['low']:.2f}-{spread['high']:.2f}" if spread else "-"
    peer = row["peer_seconds"]
    return [
        name,
        str(row["floor"]),
        report.number(1e3 * row["seconds"]),
        report.number(peer and 1e3 * peer),
        median("ratio"),
        quartiles,
        median("to_adam"),
        median("peer_to_adam"),
        report.number(row["bytes_per_second"] / 1e9, 1),
    ]
