"""`python -m benchmarks compile`: the size of the compiled step, and its growth.

Instructions are counted at N leaves and at a tenth of them, and are free of noise.
Seconds to trace and compile are for information: they are measured once.
"""

import time
from typing import Any

from contrib_core import Transform

from .. import report, trees
from ..hlo import instructions
from . import arguments
from .program import compiled
from .rules import Rule, RULES


# Ten times the leaves may have little more than ten times the instructions. The growth
# is larger if a sum over all leaves is copied into the loop of every leaf.
MOST_GROWTH = 10.5


def main(argv: list[str]) -> int:
    """Measures, prints and writes; 1 if `--check` finds more than it allows."""
    parser = arguments.parser("compile", "Size of the compiled step.", list(RULES))
    arguments.add_tree(parser, default="leaves:200")
    arguments.add_bucketed(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"exit 1 where instructions grow more than {MOST_GROWTH} times, or are "
        "more than optax's",
    )
    args = parser.parse_args(argv)
    large = arguments.shapes(parser, args)
    if not args.tree.startswith("leaves:") or len(large) % 10:
        parser.error("compile needs --tree leaves:N with N a multiple of 10")
    rows = {
        name: _measure(name, arguments.ours(name, args), RULES[name], large)
        for name in args.rules
    }
    counts = [str(len(large) // 10), str(len(large))]
    report.print_table(
        f"HLO instructions, {arguments.described(args)}, of 64x16",
        ["rule", *counts, "growth", "peer", "ratio", "s", "peer s", "ratio"],
        [_cells(name, row) for name, row in rows.items()],
    )
    arguments.write_json("compile", args, rows, large)
    return report.verdict(_failures(rows)) if args.check else 0


def _measure(
    name: str, transform: Transform, rule: Rule, large: trees.Shapes
) -> dict[str, Any]:
    report.progress(name)
    ours = _size(transform, rule, large)
    peer = None if rule.peer is None else _size(rule.peer, rule, large)
    return {"leaves": len(large), "ours": ours, "peer": peer}


def _size(transform: Transform, rule: Rule, large: trees.Shapes) -> dict[str, Any]:
    small = dict(list(large.items())[: len(large) // 10])
    arguments = [
        [trees.abstract(x, rule.dtype) for x in (shapes, rule.gradients(shapes))]
        for shapes in (small, large)
    ]
    # The small one first, so that the time of the large one contains no first calls.
    before = instructions(compiled(transform, *arguments[0]))
    start = time.perf_counter()
    step = compiled(transform, *arguments[1])
    seconds = time.perf_counter() - start
    after = instructions(step)
    return {
        "instructions_small": before,
        "instructions": after,
        "growth": after / before,
        "seconds": seconds,
    }


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    ours, peer = row["ours"], row["peer"] or {}
    count = peer.get("instructions")
    return [
        name,
        str(ours["instructions_small"]),
        str(ours["instructions"]),
        report.number(ours["growth"]),
        report.number(count, 0),
        report.number(report.ratio(ours["instructions"], count), 3),
        report.number(ours["seconds"]),
        report.number(peer.get("seconds")),
        report.number(report.ratio(ours["seconds"], peer.get("seconds")), 3),
    ]


def _failures(rows: dict[str, Any]) -> list[str]:
    failures = []
    for name, row in rows.items():
        ours, peer = row["ours"], row["peer"]
        if ours["growth"] > MOST_GROWTH:
            failures.append(f"{name}: growth {ours['growth']:.2f}, most {MOST_GROWTH}")
        rule = RULES[name]
        guards = rule.guards + rule.leaf_guards * row["leaves"]
        if peer and ours["instructions"] > peer["instructions"] + guards:
            failures.append(
                f"{name}: {ours['instructions']} instructions, the peer's "
                f"{peer['instructions']} (and {guards} for guards)"
            )
    return failures
