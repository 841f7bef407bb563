"""The picture of the atlas: a sign for every law of every transform."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from .measure import Atlas, Status


# Okabe and Ito's colours, which colour-blind readers can tell apart; signs also differ
# in shape.
GREEN, RED, ORANGE = "#009E73", "#D55E00", "#E69F00"
INK, GREY, FAINT = "#222222", "#8A8A8A", "#F4F4F4"

WIDTH = 1600  # Pixels.
CELL = 26  # The height of a cell in pixels; other lengths are in cells.
LABELS, HEADER, MARGIN, GAP = 10.5, 6.4, 0.6, 0.7
TITLE, LEGEND, GROUP = 3.2, 2.2, 1.5


def draw(atlas: Atlas, path: Path) -> None:
    """Writes the picture as a PNG, 1600 pixels wide."""
    width = WIDTH / CELL
    rows = len(atlas.rows) + sum(GROUP + GAP for _ in atlas.groups())
    height = TITLE + HEADER + rows + LEGEND + MARGIN
    # Without pyplot it needs no display and leaves no state behind.
    figure = Figure(figsize=(16, 16 * height / width), dpi=WIDTH / 16)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    places = _columns(atlas, width)
    _write_title(axes, atlas)
    _write_header(axes, atlas, places)
    _draw_rows(axes, atlas, places)
    _write_legend(axes, atlas, height - MARGIN - LEGEND / 2)
    figure.savefig(path)


def _columns(atlas: Atlas, width: float) -> dict[str, tuple[float, float]]:
    """The left edge and the width of the column of each law."""
    groups = [laws for _, laws in atlas.law_groups()]
    # The last name leans over the right edge of its column.
    room = width - LABELS - HEADER / 2 - MARGIN - GAP * (len(groups) - 1)
    step = min(room / len(atlas.laws), 2.0)
    places, left = {}, LABELS
    for laws in groups:
        for law in laws:
            places[law.name] = (left, step)
            left += step
        left += GAP
    return places


def _write_title(axes: Axes, atlas: Atlas) -> None:
    axes.text(
        MARGIN,
        TITLE / 2,
        "Which transform obeys which law",
        fontsize=22,
        fontweight="bold",
        color=INK,
        va="center",
    )
    axes.text(MARGIN, TITLE, atlas.title, fontsize=13, color=GREY, va="center")


def _write_header(
    axes: Axes, atlas: Atlas, places: dict[str, tuple[float, float]]
) -> None:
    bottom = TITLE + HEADER
    for group, laws in atlas.law_groups():
        left, right = places[laws[0].name][0], sum(places[laws[-1].name])
        axes.plot([left, right], [bottom + 0.5] * 2, color=GREY, linewidth=1)
        axes.text(
            (left + right) / 2,
            bottom + 1.1,
            group,
            fontsize=13,
            color=GREY,
            ha="center",
            va="center",
        )
        for law in laws:
            start, step = places[law.name]
            axes.text(
                start + step / 2,
                bottom + 0.1,
                law.name.replace("_", " "),
                fontsize=13,
                color=INK,
                rotation=50,
                rotation_mode="anchor",
                va="center",
            )


def _draw_rows(
    axes: Axes, atlas: Atlas, places: dict[str, tuple[float, float]]
) -> None:
    top = TITLE + HEADER + GAP
    for group, rows in atlas.groups():
        axes.text(
            MARGIN,
            top + GROUP / 2,
            group,
            fontsize=15,
            fontweight="bold",
            color=INK,
            va="center",
        )
        top += GROUP
        for row in rows:
            middle = top + 0.5
            axes.text(
                LABELS - GAP / 2,
                middle,
                row.name.removeprefix("optax."),
                fontsize=12.5,
                color=INK,
                ha="right",
                va="center",
            )
            if row.error:
                axes.text(LABELS, middle, row.error[:120], color=RED, va="center")
            for name, cell in row.cells.items():
                left, step = places[name]
                _draw_cell(axes, cell.status, left, top, step)
            top += 1
        top += GAP


def _draw_cell(
    axes: Axes, status: Status, left: float, top: float, width: float
) -> None:
    """Fills the cells of laws that hold, so that they stand out."""
    x, y = left + width / 2, top + 0.5
    filled = {Status.HOLDS: GREEN, Status.UNSTEADY: ORANGE}.get(status, FAINT)
    box = FancyBboxPatch(
        (left + 0.08, top + 0.08),
        width - 0.16,
        1 - 0.16,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor="white" if status is Status.NONE else filled,
        edgecolor="none",
    )
    axes.add_patch(box)
    if status is Status.BREACH:
        axes.plot(x, y, marker="X", markersize=10, color=RED, markeredgewidth=0)
    if status is Status.FAILS:
        axes.plot(x, y, marker="o", markersize=4, color=GREY, markeredgewidth=0)
    if status is Status.UNSTEADY:
        axes.text(x, y, "~", color=INK, fontweight="bold", ha="center", va="center")


def _write_legend(axes: Axes, atlas: Atlas, y: float) -> None:
    """The statuses that occur, from left to right; blank cells need no sign."""
    there = {cell.status for row in atlas.rows for cell in row.cells.values()}
    x = LABELS
    for status in Status:
        if status in there and status is not Status.NONE:
            _draw_cell(axes, status, x, y - 0.5, 1.6)
            axes.text(x + 2, y, status.value, fontsize=12.5, color=INK, va="center")
            x += 3.5 + 0.32 * len(status.value)
