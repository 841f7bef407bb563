"""The atlas from end to end: check, print a table, draw a picture, write files."""

import sys
import time
from pathlib import Path

import jax
from rich.console import Console

from contrib_laws import LAWS

from . import page
from .figure import draw
from .measure import Atlas, fill, Row, Status
from .report import remarks, table, write_json
from .subjects import SUBJECTS


INTERRUPTED = 130  # The status that shells give a command after Ctrl-C.

_TOLD = {
    "hold": Status.HOLDS,
    "broken": Status.BREACH,
    "unsteady": Status.UNSTEADY,
}


def run(
    subjects: list[str],
    laws: list[str],
    examples: int,
    seeds: int,
    out: Path,
    write_docs: bool,
) -> int:
    """Makes the atlas and writes it into `out`; returns the exit code."""
    out.mkdir(parents=True, exist_ok=True)  # A failure must come before the checks.
    began = time.perf_counter()
    atlas = Atlas(tuple(LAWS[name] for name in laws), examples, seeds)
    try:
        _fill_all(atlas, subjects)
    except KeyboardInterrupt:
        print(f"Interrupted with {len(atlas.rows)} of {len(subjects)} transforms done.")
        _print(atlas)
        return INTERRUPTED
    seconds = time.perf_counter() - began

    _print(atlas)
    write_json(atlas, seconds, out / "atlas.json")
    draw(atlas, out / "atlas.png")
    print(f"Took {seconds:.0f} s, with compilation. Picture and numbers:")
    print(out / "atlas.png", out / "atlas.json", sep="\n")
    if write_docs:
        print(page.write(atlas))
    return 0


def _fill_all(atlas: Atlas, subjects: list[str]) -> None:
    """Appends rows one by one, so that an interrupt leaves the finished ones."""
    for i, name in enumerate(subjects, 1):
        tell(f"[{i:{len(str(len(subjects)))}}/{len(subjects)}] {name} ...", end=" ")
        row = Row(name, SUBJECTS[name])
        fill(row, atlas.laws, atlas.examples, atlas.seeds)
        atlas.rows.append(row)
        tell(_summary(row))
        jax.clear_caches()  # The next transform has no use for them.


def _summary(row: Row) -> str:
    if row.error:
        return row.error
    statuses = [cell.status for cell in row.cells.values()]
    found = {what: statuses.count(status) for what, status in _TOLD.items()}
    parts = [f"{n} {what}" for what, n in found.items() if n]
    return f"{', '.join(parts) or 'nothing holds'} ({row.seconds:.0f} s)"


def tell(text: str, end: str = "\n") -> None:
    """Tells the progress on stderr."""
    print(text, end=end, file=sys.stderr, flush=True)


def _print(atlas: Atlas) -> None:
    """Prints the table and the remarks."""
    # A file has no width, and rich would assume 80.
    Console(width=None if sys.stdout.isatty() else 120).print(table(atlas))
    print("", *remarks(atlas), sep="\n")
