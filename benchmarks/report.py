"""The output of a measurement: progress, a table, a JSON file and a verdict."""

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


def add_out(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that `write_json` reads."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        help="JSON file, or folder to write it in; default %(default)s",
    )


def progress(subject: str) -> None:
    """Prints on stderr what is being measured."""
    print(f"measuring {subject} ...", file=sys.stderr, flush=True)


def ratio(ours: float, peer: float | None) -> float | None:
    """`ours / peer`; `None` without a peer, and 1 where both are 0."""
    if peer is None:
        return None
    return ours / peer if peer else (1.0 if ours == 0 else math.inf)


def number(x: float | None, digits: int = 2) -> str:
    """`x` for a table; a dash stands for `None`."""
    return "-" if x is None else f"{x:.{digits}f}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]):
    """Prints a table, with rich if it is installed."""
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
    # Rich takes 80 columns for a file, which has no width.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _print_plain(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]):
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(title)
    for row in (header, *rows):
        cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join((row[0].ljust(widths[0]), *list(cells)[1:])))


def machine() -> dict[str, Any]:
    """The device and the versions that a measurement was made with."""
    return {
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "optax")},
    }


def write_json(out: Path, name: str, content: dict[str, Any]) -> Path:
    """Writes `content` to `out`, or to `name` in it if it is a folder; prints the path
    and returns it."""
    path = out if out.suffix == ".json" else out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"Figures: {path}")
    return path


def verdict(failures: Sequence[str]) -> int:
    """Prints the failures that `--check` found; returns the exit code."""
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print("Check: " + (f"{len(failures)} failed" if failures else "passed"))
    return 1 if failures else 0
