"""`python -m benchmarks privacy`: what one example can change, and what hides it.

The figures behind `docs/privacy.md`, for our clipping and noise and for those of
`optax.contrib.differentially_private_aggregate`. Norms are taken in float64, of what
was computed in lower precision. Whatever is a promise has a goal, which `--check`
looks at; times never have one.
"""

import argparse
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax

from . import privacy_cost, privacy_figures as figures, report
from .privacy_figures import Figure
from .speed import add_rounds


class Section(NamedTuple):
    """Some of the figures, and where their command line is."""

    summary: str
    measure: Callable[[argparse.Namespace], dict[str, Figure]]


SECTIONS = {
    "clip": Section(
        "norms of single examples after clipping",
        lambda args: figures.clip(args.inputs, args.seed),
    ),
    "nonfinite": Section(
        "what an example with a NaN adds", lambda args: figures.nonfinite()
    ),
    "sensitivity": Section(
        "what a row changes of a sum",
        lambda args: figures.sensitivity(args.entries, args.seed, args.all),
    ),
    "noise": Section(
        "its size, tails and correlations",
        lambda args: figures.noise(args.draws, args.seed),
    ),
    "cost": Section(
        "memory and time of the clipped sum of a network",
        lambda args: privacy_cost.cost(args.size, args.rounds, args.all),
    ),
}


def main(argv: list[str]) -> int:
    """Measures, prints, writes; 1 if `--check` finds a promise broken."""
    args = _parser().parse_args(argv)
    rows: dict[str, Figure] = {}
    for name in args.figures:
        report.progress(name)
        rows |= {f"{name}: {k}": v for k, v in SECTIONS[name].measure(args).items()}
    report.print_table(
        "Differential privacy, C: the clipping norm",
        ["figure", "ours", f"optax {version('optax')}", "by hand", "goal"],
        [_cells(name, row) for name, row in rows.items()],
    )
    print("By hand: clipped and summed with the gradients of all examples in memory.")
    _write(args, rows)
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
        "inputs": (48_000, "clip: examples"),
        "entries": (1000, "sensitivity: length of a gradient"),
        "draws": (10**8, "noise: numbers to count the tails of"),
        "size": (1024, "cost: width of the first hidden layer"),
        "seed": (0, "of examples, rows and noise"),
    }
    for name, (default, summary) in numbers.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            help=f"{summary}; default %(default)s",
        )
    add_rounds(parser)
    parser.set_defaults(rounds=5)
    parser.add_argument(
        "--all",
        action="store_true",
        help="also what takes gigabytes: sums of 4096 gradients of 100,000 entries, "
        "and the time of 256 stacked gradients",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        help="JSON file, or folder to write it in; default %(default)s",
    )
    parser.add_argument(
        "--check", action="store_true", help="exit 1 where a goal is not reached"
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


def _cells(name: str, row: Figure) -> list[str]:
    goal = "-"
    if row.most is not None:
        goal = "0" if row.most == 0 else f"<= {row.most:.6g}"
    elif row.about is not None:
        goal = f"about {_number(row.about)}"
    return [name, *map(_number, (row.ours, row.peer, row.by_hand)), goal]


def _number(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:,}" if isinstance(x, int) else f"{x:.6g}"


def _write(args: argparse.Namespace, rows: dict[str, Figure]) -> None:
    path = args.out
    if path.suffix != ".json":
        path = path / "privacy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": "privacy",
        "arguments": {k: v for k, v in vars(args).items() if k not in ("out", "check")},
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "optax")},
        "figures": {name: row._asdict() for name, row in rows.items()},
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"Figures: {path}")


def _failures(rows: dict[str, Figure]) -> list[str]:
    return [
        f"{name}: {_number(row.ours)}, its goal at most {row.most:.6g}"
        for name, row in rows.items()
        # Not `>`, which NaN would pass.
        if row.most is not None and not (row.ours is not None and row.ours <= row.most)
    ]
