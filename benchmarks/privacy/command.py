"""`python -m benchmarks privacy`: how far one example can change a sum, and its noise.

The table has our clipping and noise beside those of
`optax.contrib.differentially_private_aggregate`. Norms of results in lower precision
are computed in float64. Every figure that is a promise has a goal, which `--check`
enforces; times have no goal.
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

from .. import report
from ..timing import add_rounds
from .clipping import clip, nonfinite
from .cost import cost
from .figure import Figure, number
from .noise import noise
from .sensitivity import sensitivity


class Section(NamedTuple):
    """A part of the table, measured from the command line."""

    summary: str
    measure: Callable[[argparse.Namespace], dict[str, Figure]]


SECTIONS = {
    "clip": Section(
        "norms of single examples after clipping",
        lambda args: clip(args.inputs, args.seed),
    ),
    "nonfinite": Section(
        "norms of clipped examples with a NaN or infinity", lambda args: nonfinite()
    ),
    "sensitivity": Section(
        "change of a sum without one row",
        lambda args: sensitivity(args.entries, args.seed, args.all),
    ),
    "noise": Section(
        "its size, tails and correlations",
        lambda args: noise(args.draws, args.seed),
    ),
    "cost": Section(
        "memory and time of the clipped sum of a network",
        lambda args: cost(args.size, args.rounds, args.all),
    ),
}


def main(argv: list[str]) -> int:
    """Measures, prints and writes; 1 if `--check` finds a promise broken."""
    args = _parser().parse_args(argv)
    rows: dict[str, Figure] = {}
    for name in args.figures:
        report.progress(name)
        rows |= {f"{name}: {k}": v for k, v in SECTIONS[name].measure(args).items()}
    report.print_table(
        "Differential privacy; C is the clipping norm",
        ["figure", "ours", f"optax {version('optax')}", "by hand", "goal"],
        [[name, *row.cells()] for name, row in rows.items()],
    )
    print("By hand: clipped and summed with the gradients of all examples in memory.")
    arguments = {k: v for k, v in vars(args).items() if k not in ("out", "check")}
    content = {
        "command": "privacy",
        "arguments": arguments,
        **report.machine(),
        "figures": {name: row._asdict() for name, row in rows.items()},
    }
    report.write_json(args.out, "privacy.json", content)
    return report.verdict(_failures(rows)) if args.check else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks privacy", None, "Bounds, noise and costs of DP-SGD."
    )
    parser.add_argument(
        "--figures",
        type=_sections,
        default=list(SECTIONS),
        help="separated by commas; default all. "
        + "; ".join(f"{name}: {section.summary}" for name, section in SECTIONS.items()),
    )
    numbers = {
        "inputs": (48_000, "clip: number of examples"),
        "entries": (1000, "sensitivity: length of a gradient"),
        "draws": (10**8, "noise: number of draws to count the tails of"),
        "size": (1024, "cost: width of the first hidden layer"),
        "seed": (0, "seed of examples, rows and noise"),
    }
    for name, (default, summary) in numbers.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            help=f"{summary}; default %(default)s",
        )
    add_rounds(parser, default=5)
    parser.add_argument(
        "--all",
        action="store_true",
        help="also measure cases that take gigabytes: sums of 4096 gradients of "
        "100,000 entries, and the time of 256 stacked gradients",
    )
    report.add_out(parser)
    parser.add_argument(
        "--check", action="store_true", help="exit 1 where a goal is missed"
    )
    return parser


def _sections(names: str) -> list[str]:
    chosen = names.split(",")
    for name in chosen:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(
                f"unknown figures {name!r}; choose from: {', '.join(SECTIONS)}"
            )
    return chosen


def _failures(rows: dict[str, Figure]) -> list[str]:
    return [
        f"{name}: {number(row.ours)}, its goal at most {row.most:.6g}"
        for name, row in rows.items()
        if row.is_missed()
    ]
