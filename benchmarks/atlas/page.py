"""The atlas in docs/laws.md: tables, and breaches of the contract in optax."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from contrib_laws import Law

from .figure import draw
from .measure import Atlas, Cell, Row, Status
from .report import NOT_CHECKED, remarks, versions


DOCS = Path(__file__).parents[2] / "docs"

MARKS = {
    Status.HOLDS: "✓",
    Status.BREACH: "**✗**",
    Status.FAILS: "·",
    Status.NONE: "",
    Status.UNSTEADY: "~",
}


def write(atlas: Atlas, docs: Path = DOCS) -> Path:
    """Writes the statement of each law below its heading, the atlas between its markers
    and the picture beside the page; returns the path of the page.

    **Raises:** `ValueError` if the page lacks a place for one of them.
    """
    path = docs / "laws.md"
    page = path.read_text()
    for law in atlas.laws:
        place = rf"^### {law.name}\n.*?^\*Tolerance:[^\n]*\n"
        page = _replaced(page, place, statement(law), f"{path}, {law.name}")
    place = r"^<!-- atlas -->\n.*?^<!-- /atlas -->\n"
    tables = "\n".join(["<!-- atlas -->", *_lines(atlas), "<!-- /atlas -->", ""])
    path.write_text(_replaced(page, place, tables, f"{path}, the atlas"))
    draw(atlas, docs / "images" / "atlas.png")
    return path


def statement(law: Law) -> str:
    """The heading of a law, followed by its statement."""
    names = ", ".join(f"`{name}`" for name in law.hooks)
    hooks = f" *Hooks:* {names}." if names else ""
    return (
        f"### {law.name}\n\n{law.sentence}\n\n$$\n{law.formula}\n$$\n\n"
        f"*Tolerance:* {law.tolerance}.{hooks}\n"
    )


def _replaced(page: str, place: str, text: str, what: str) -> str:
    page, count = re.subn(f"(?sm){place}", lambda _: text, page)
    if count != 1:
        raise ValueError(f"{what}: {count} places for it, not one.")
    return page


def _lines(atlas: Atlas) -> Iterator[str]:
    """The lines between the markers, with an empty line at both ends."""
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield ""
    yield f"{atlas.title}. With {found}."
    yield ""
    for group, laws in atlas.law_groups():
        yield from _table(atlas, group, laws)
    yield from _list(remarks(atlas))
    for group, rows in atlas.groups():
        if any(_breaches(row) for row in rows):
            yield f"### Breaches of the contract in {group}"
            yield ""
            for row in rows:
                yield from _section(row)


def _table(atlas: Atlas, title: str, laws: list[Law]) -> Iterator[str]:
    """A table of the laws of a group, without empty rows."""
    header = [title, *(f"[{law.name}](#{law.name.lower()})" for law in laws)]
    yield _row(header)
    yield _row([":--", *(":-:" for _ in laws)])
    for group, rows in atlas.groups():
        yield _row([f"**{group}**", *("" for _ in laws)])
        for row in rows:
            marks = [_mark(row, law) for law in laws]
            if any(marks):
                yield _row([f"`{row.entry.expression}`", *marks])
    yield ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mark(row: Row, law: Law) -> str:
    return NOT_CHECKED if row.error else MARKS[row.cells[law.name].status]


def _breaches(row: Row) -> list[Cell]:
    return [cell for cell in row.cells.values() if cell.status is Status.BREACH]


def _section(row: Row) -> Iterator[str]:
    """The broken promises of a transform, with counterexamples; empty if none."""
    cells = _breaches(row)
    if not cells:
        return
    yield f"#### `{row.entry.expression}`"
    yield ""
    yield from _list([f"{cell.law.name}: {cell.told.note}" for cell in cells])
    codes = [cell.told.counterexample for cell in cells]
    yield from _details([code for code in codes if code])


def _list(items: list[str]) -> Iterator[str]:
    for item in items:
        text = textwrap.shorten(item, 300, placeholder=" …")
        yield "- " + re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", text)
    if items:
        yield ""


def _details(codes: list[str]) -> Iterator[str]:
    if not codes:
        return
    yield f"<details><summary>counterexamples: {len(codes)}</summary>"
    yield ""
    for code in codes:
        yield f"```python\n{code}```"
        yield ""
    yield "</details>"
    yield ""
