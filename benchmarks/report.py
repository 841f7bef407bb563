"""Command lines in, a table and a JSON file out."""

import argparse
import json
import math
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from contrib_core import bucketed, Transform

from . import rules, trees


def parser(command: str, summary: str, *, tree: str) -> argparse.ArgumentParser:
    """The arguments of a measurement of optimisers alone; `tree` is the default one."""
    parser = plain_parser(command, summary, list(rules.RULES))
    parser.add_argument(
        "--tree",
        default=tree,
        help="one, gpt2 (148 leaves), leaves:N (N of 64x16); default %(default)s",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=2**24,
        help="entries of the leaf of the tree `one`; default %(default)s",
    )
    return parser


def plain_parser(
    command: str, summary: str, default: Sequence[str]
) -> argparse.ArgumentParser:
    """The arguments that all measurements take; `default` are the rules."""
    parser = argparse.ArgumentParser(f"python -m benchmarks {command}", None, summary)
    parser.add_argument(
        "--rules",
        type=_rules,
        default=list(default),
        help=f"which, separated by commas, of: {', '.join(rules.RULES)}; "
        f"default {'all' if len(default) == len(rules.RULES) else ','.join(default)}",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        help="JSON file, or folder to write it in; default %(default)s",
    )
    return parser


def add_bucketed(parser: argparse.ArgumentParser) -> None:
    """The argument that `ours` looks at."""
    parser.add_argument(
        "--bucketed",
        action="store_true",
        help="put our rules in contrib_core.bucketed; optax's stay as they are",
    )


def ours(name: str, args: argparse.Namespace) -> Transform:
    """Our rule of this name, in the way that the command line wants it."""
    rule = rules.RULES[name].ours
    return bucketed(rule) if args.bucketed else rule


def described(args: argparse.Namespace) -> str:
    """The tree of the command line, and what is done to it, for a title."""
    return args.tree + (", ours bucketed" if args.bucketed else "")


def _rules(names: str) -> list[str]:
    chosen = names.split(",")
    for name in chosen:
        if name not in rules.RULES:
            raise argparse.ArgumentTypeError(
                f"unknown rule {name!r}; choose from: {', '.join(rules.RULES)}"
            )
    return chosen


def shapes(parser: argparse.ArgumentParser, args: argparse.Namespace) -> trees.Shapes:
    """The tree of the command line; an unknown one ends the program."""
    try:
        return trees.shapes(args.tree, args.size)
    except ValueError as error:
        parser.error(str(error))


def progress(rule: str) -> None:
    """Says on stderr what is being measured."""
    print(f"measuring {rule} ...", file=sys.stderr, flush=True)


def ratio(ours: float, peer: float | None) -> float | None:
    """`ours / peer`, `None` without a peer; 1 where both are 0."""
    if peer is None:
        return None
    return ours / peer if peer else (1.0 if ours == 0 else math.inf)


def number(x: float | None, digits: int = 2) -> str:
    """`x` for a table; a dash where there is no number."""
    return "-" if x is None else f"{x:.{digits}f}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]):
    """Prints a table, by rich if it is there."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _print_plain(title, header, rows)
        return
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A file has no width, for which rich would take 80.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _print_plain(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]):
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(title)
    for row in (header, *rows):
        cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join((row[0].ljust(widths[0]), *list(cells)[1:])))


def write_json(
    command: str,
    args: argparse.Namespace,
    rows: dict[str, Any],
    shapes: trees.Shapes | None = None,
) -> Path:
    """Writes the figures, and what they were measured on; prints and returns where.

    The parameters have the `shapes`, by default those of `args.tree`.
    """
    is_bucketed = getattr(args, "bucketed", False)
    path = args.out
    if path.suffix != ".json":
        name = f"{command}-{args.tree.replace(':', '-')}"
        path = path / f"{name}{'-bucketed' if is_bucketed else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = shapes or trees.shapes(args.tree, args.size)
    report = {
        "command": command,
        "tree": args.tree,
        "parameters": trees.number_of_entries(shapes),
        "bucketed": is_bucketed,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "optax")},
        "rules": rows,
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Figures: {path}")
    return path


def verdict(failures: Sequence[str]) -> int:
    """Prints what `--check` found; the exit code."""
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print("Check: " + (f"{len(failures)} failed" if failures else "passed"))
    return 1 if failures else 0
