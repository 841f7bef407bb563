"""`python -m benchmarks memory`: bytes that a step moves and holds, free of noise.

All figures are in units of the bytes of the parameters. *Streams* are the bytes that
the compiled step reads and writes; *temp* are the bytes of its temporary buffers.
"""

from typing import Any

from contrib_core import Transform

from .. import report, trees
from ..hlo import bytes_accessed, bytes_of, temporary_bytes
from . import arguments
from .program import compiled, state_like
from .rules import Rule, RULES


QUANTITIES = ("streams", "temp", "state")

# Counters and scalars are bytes too; more than this is a tree.
TOLERANCE = 0.01


def main(argv: list[str]) -> int:
    """Measures, prints and writes; 1 if `--check` finds more than optax's."""
    parser = arguments.parser("memory", "Bytes moved and held by a step.", list(RULES))
    arguments.add_tree(parser, default="one")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit 1 where streams or temp are above optax's",
    )
    args = parser.parse_args(argv)
    shapes = arguments.shapes(parser, args)
    rows = {name: _measure(name, RULES[name], shapes) for name in args.rules}
    report.print_table(
        f"Memory, tree {args.tree}, in units of the parameters' bytes",
        ["rule", "floor", "streams", "peer", "ratio", "temp", "peer", "state", "peer"],
        [_cells(name, row) for name, row in rows.items()],
    )
    arguments.write_json("memory", args, rows, shapes)
    return report.verdict(_failures(rows)) if args.check else 0


def _measure(name: str, rule: Rule, shapes: trees.Shapes) -> dict[str, Any]:
    report.progress(name)
    ours = _quantities(rule.ours, rule, shapes)
    peer = None if rule.peer is None else _quantities(rule.peer, rule, shapes)
    return {"floor": rule.floor, "passes": rule.passes, "ours": ours, "peer": peer}


def _quantities(
    transform: Transform, rule: Rule, shapes: trees.Shapes
) -> dict[str, float]:
    params = trees.abstract(shapes, rule.dtype)
    grads = trees.abstract(rule.gradients(shapes), rule.dtype)
    step = compiled(transform, params, grads)
    amounts = (
        bytes_accessed(step),
        temporary_bytes(step),
        bytes_of(state_like(transform, params)),
    )
    unit = bytes_of(params)
    return {q: n / unit for q, n in zip(QUANTITIES, amounts, strict=True)}


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    ours, peer = row["ours"], row["peer"] or dict.fromkeys(QUANTITIES)
    cells = [name, str(row["floor"])]
    for q in QUANTITIES:
        cells += [report.number(ours[q]), report.number(peer[q])]
        if q == "streams":
            cells.append(report.number(report.ratio(ours[q], peer[q])))
    return cells


def _failures(rows: dict[str, Any]) -> list[str]:
    failures = []
    for name, row in rows.items():
        most, more = RULES[name].most or (None, None), RULES[name].more
        for q, limit, extra in zip(("streams", "temp"), most, more, strict=True):
            peer = row["peer"] and row["peer"][q] + extra
            allowed = {"its limit": limit, "the peer's": peer}
            for whose, bound in allowed.items():
                if bound is not None and row["ours"][q] > bound + TOLERANCE:
                    figures = f"{row['ours'][q]:.3f}, {whose} {bound:.3f}"
                    failures.append(f"{name}: {q} {figures}")
    return failures
