"""`python -m benchmarks trace`: the Python side of an update.

Our own functions are counted in an eager update of one leaf, after a call that fills
the caches of JAX; the count is free of noise. Tracing is timed as CPU time, which does
not include waiting for other programs, and without garbage collection, which falls on
some rounds and adds up to 40 % to them. The least of some rounds is reported.
"""

import argparse
import gc
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jaxtyping import PyTree

import contrib_algos
import contrib_core
import contrib_wrappers
from contrib_core import Transform

from .. import report, trees
from ..timing import add_rounds, interleaved
from . import arguments
from .program import extras, state_like
from .rules import Rule, RULES


PACKAGES = [
    Path(inspect.getfile(package)).parent
    for package in (contrib_core, contrib_algos, contrib_wrappers)
]


def main(argv: list[str]) -> int:
    """Measures, prints and writes."""
    parser = arguments.parser(
        "trace",
        "Calls of our own Python functions in an eager update, and time to trace it.",
        ["prodigy", "schedule_free_adam", "dpsgd", "adam"],
    )
    parser.add_argument(
        "--leaves",
        type=int,
        default=200,
        help="number of leaves of 64x16 in the traced update; default %(default)s",
    )
    add_rounds(parser, default=5)
    args = parser.parse_args(argv)
    args.tree = f"leaves:{args.leaves}"
    shapes = _shapes(parser, args)
    rows = {
        name: _measure(name, RULES[name], shapes, args.rounds) for name in args.rules
    }
    report.print_table(
        f"Calls in an eager update of one leaf; CPU time to trace it for {args.leaves} "
        f"leaves, least of {args.rounds} rounds",
        ["rule", "calls", "trace ms", "peer ms", "ratio"],
        [_cells(name, row) for name, row in rows.items()],
    )
    arguments.write_json("trace", args, rows, shapes)
    return 0


def _shapes(parser: argparse.ArgumentParser, args: argparse.Namespace) -> trees.Shapes:
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        return trees.shapes(args.tree, 0)
    except ValueError:
        parser.error("--leaves must be at least 1")


def _measure(
    name: str, rule: Rule, shapes: trees.Shapes, rounds: int
) -> dict[str, Any]:
    report.progress(name)
    contenders = {"ours": rule.ours}
    if rule.peer is not None:
        contenders["peer"] = rule.peer
    turns = {key: _tracing(t, rule, shapes) for key, t in contenders.items()}
    times = interleaved(turns, rounds)
    return {
        "calls": _calls_of_an_update(rule),
        "seconds": min(times["ours"]),
        "peer_seconds": min(times["peer"]) if "peer" in times else None,
    }


def _calls_of_an_update(rule: Rule) -> int:
    """The calls of our functions in one eager update, after a first one."""
    shapes = {"x": (3,)}
    params = trees.random(shapes, rule.dtype, seed=0)["x"]
    grads = trees.random(rule.gradients(shapes), rule.dtype, seed=1)["x"]
    state = rule.ours.init(params)
    extra = extras(rule.ours, grads)

    def update() -> PyTree:
        return rule.ours.update(grads, state, params, **extra)

    update()
    return calls(update, PACKAGES)


def calls(fn: Callable[[], Any], folders: Sequence[Path]) -> int:
    """The number of calls of Python functions in files below `folders` during `fn()`.

    Lambdas, comprehensions that have a frame of their own (before Python 3.12) and each
    resumption of a generator count too.
    """
    prefixes = tuple(f"{folder}/" for folder in folders)
    count = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        if event == "call" and frame.f_code.co_filename.startswith(prefixes):
            count += 1

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        fn()
    finally:
        sys.setprofile(previous)
    return count


def _tracing(
    transform: Transform, rule: Rule, shapes: trees.Shapes
) -> Callable[[], float]:
    """A function that traces the update and returns the seconds of CPU time."""
    params = trees.abstract(shapes, rule.dtype)
    grads = trees.abstract(rule.gradients(shapes), rule.dtype)
    state = state_like(transform, params)
    extra = jax.eval_shape(lambda grads: extras(transform, grads), grads)

    def trace() -> float:
        # A new function each time, because JAX remembers the traces of an old one.
        update = jax.jit(lambda g, s, p, extra: transform.update(g, s, p, **extra))
        gc.collect()
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            start = time.process_time()
            update.trace(grads, state, params, extra)
            return time.process_time() - start
        finally:
            if was_enabled:
                gc.enable()

    return trace


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    seconds, peer = row["seconds"], row["peer_seconds"]
    return [
        name,
        str(row["calls"]),
        report.number(1e3 * seconds, 1),
        report.number(peer and 1e3 * peer, 1),
        report.number(report.ratio(seconds, peer)),
    ]
