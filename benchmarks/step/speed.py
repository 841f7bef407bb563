"""`python -m benchmarks speed`: the time of a step, ours beside optax's.

Contenders take turns: see `benchmarks.timing`.
"""

import itertools as it
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from contrib_core import Transform

from .. import report, trees
from ..hlo import bytes_of
from ..timing import add_rounds, interleaved, spread, turn
from . import arguments
from .program import jitted
from .rules import LR, Rule, RULES


HEADER = (
    "rule",
    "floor",
    "ms",
    "peer",
    "ratio",
    "quartiles",
    "/ adam",
    "peer / adam",
    "GB/s",
)


def main(argv: list[str]) -> int:
    """Measures, prints and writes."""
    parser = arguments.parser("speed", "Time of a step, ours and optax's.", list(RULES))
    arguments.add_tree(parser, default="one")
    arguments.add_bucketed(parser)
    add_rounds(parser)
    args = parser.parse_args(argv)
    shapes = arguments.shapes(parser, args)
    rows = {
        name: _measure(
            name, arguments.ours(name, args), RULES[name], shapes, args.rounds
        )
        for name in args.rules
    }
    report.print_table(
        f"Time of a step, tree {arguments.described(args)}: medians of {args.rounds} "
        "rounds",
        HEADER,
        [_cells(name, row) for name, row in rows.items()],
    )
    ratios = [row["ratio"]["median"] for row in rows.values() if row["ratio"]]
    if ratios:
        mean = statistics.geometric_mean(ratios)
        print(f"Ratio, geometric mean over {len(ratios)} rules: {mean:.3f}")
    print("adam: optax's, in float32. GB/s: the bytes of the floor over our time.")
    arguments.write_json("speed", args, rows, shapes)
    return 0


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


def _contender(
    transform: Transform, shapes: trees.Shapes, gradients: trees.Shapes, dtype: str
) -> Callable[[], float]:
    """A function that takes a turn of steps and returns the mean seconds of one."""
    params = trees.random(shapes, dtype, seed=0)
    # Copied, because optax's states alias the parameters, which are donated too.
    state = jax.tree.map(jnp.copy, transform.init(params))
    grads = trees.random(gradients, dtype, seed=1)
    # Forth and back: on an endless slope the learned step sizes would explode.
    signs = it.cycle([grads, jax.tree.map(jnp.negative, grads)])
    step = jitted(transform)

    def run(steps: int) -> PyTree:
        nonlocal params, state
        for grads in it.islice(signs, steps):
            params, state = step(params, state, grads)
        return params, state

    return turn(run)


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
