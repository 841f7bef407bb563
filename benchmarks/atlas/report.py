"""The atlas as a table of marks and as JSON."""

import json
import platform
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Group
from rich.table import Table
from rich.text import Text

from contrib_laws import Law

from .measure import Atlas, Cell, Row, Status


PACKAGES = ("contrib-algebra", "jax", "jaxlib", "equinox", "optax", "hypothesis")

MARKS: dict[Status, tuple[str, str]] = {
    Status.HOLDS: ("●", "green"),
    Status.BREACH: ("✗", "bold red"),
    Status.FAILS: ("·", "bright_black"),
    Status.NONE: (" ", ""),
    Status.UNSTEADY: ("~", "bold yellow"),
}
"""The mark of each status, and its style for rich."""

NOT_CHECKED = "!"
"""The mark of a transform that raises an error."""


def table(atlas: Atlas) -> Group:
    """A row for each transform and a column for each law, with its name downwards."""
    grid = Table(box=None, padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    height = max(len(law.name) for law in atlas.laws)
    for _, laws in atlas.law_groups():
        for law in laws:
            grid.add_column(
                "\n".join(law.name.replace("_", " ").rjust(height)), no_wrap=True
            )
        grid.add_column()  # Sets the groups apart.
    for group, rows in atlas.groups():
        grid.add_row()
        grid.add_row(Text(group, "bold"))
        for row in rows:
            grid.add_row(f"  {row.name}", *_marks(atlas, row))
    return Group(Text(atlas.title, "bold"), grid, Text(), _legend(atlas))


def _legend(atlas: Atlas) -> Text:
    """The marks that occur, with their meaning."""
    there = {cell.status for row in atlas.rows for cell in row.cells.values()}
    parts = [
        Text.assemble((mark, style), f" {status.value}   ")
        for status, (mark, style) in MARKS.items()
        if status in there and mark.strip()
    ]
    return Text.assemble(*parts)


def _marks(atlas: Atlas, row: Row) -> Iterator[Text]:
    if row.error:
        yield Text(NOT_CHECKED, "bold red")
        return
    for _, laws in atlas.law_groups():
        yield from (Text(*MARKS[row.cells[law.name].status]) for law in laws)
        yield Text()


def remarks(atlas: Atlas) -> list[str]:
    """Remarks on transforms that could not be checked, and on unsteady cells."""
    lines = [f"{row.name}: {row.error}" for row in atlas.rows if row.error]
    for row, cell in atlas.unsteady():
        verdicts = ", ".join(outcome.verdict.value for outcome in cell.outcomes)
        what = f"{row.name}, {cell.law.name}: unsteady: {verdicts}"
        lines.append(f"{what}. {cell.told.note}")
    return [textwrap.shorten(line, 300, placeholder=" …") for line in lines]


def versions() -> dict[str, str]:
    """The versions of the packages that the atlas may depend on."""
    return {name: version(name) for name in PACKAGES}


def write_json(atlas: Atlas, seconds: float, path: Path) -> None:
    """Writes all outcomes, with the settings and versions."""
    content = {
        "command": "atlas",
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": versions(),
        "examples": atlas.examples,
        "seeds": list(range(atlas.seeds)),
        "seconds": round(seconds, 1),
        "laws": {law.name: _law(law) for law in atlas.laws},
        "subjects": {row.name: _row(row) for row in atlas.rows},
        "unsteady": [[row.name, cell.law.name] for row, cell in atlas.unsteady()],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _law(law: Law) -> dict[str, Any]:
    return {"group": law.group, "sentence": law.sentence, "formula": law.formula}


def _row(row: Row) -> dict[str, Any]:
    return {
        "group": row.entry.group,
        "expression": row.entry.expression,
        "error": row.error,
        "traces": row.traces,
        "seconds": round(row.seconds, 1),
        "laws": {name: _cell(cell) for name, cell in row.cells.items()},
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "status": cell.status.name.lower(),
        "promised": cell.promised,
        "verdicts": [outcome.verdict.value for outcome in cell.outcomes],
        "note": cell.told.note,
        "counterexample": cell.told.counterexample,
        "examples": sum(outcome.examples for outcome in cell.outcomes),
        "seconds": round(sum(outcome.seconds for outcome in cell.outcomes), 2),
    }
