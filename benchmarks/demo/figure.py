"""The picture of the demo: three panels with names beside the lines."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .report import verdict
from .train import Result


# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY = "#555555"  # Tuned methods.
DASHED = (0, (5, 1))  # Untuned methods beyond the number of colours.
WINDOW = 20  # Steps to average losses over, which removes their noise.
LINE_HEIGHT = 0.075  # The height of a label as a share of the panel.
ACCURACIES = (0, 50, 80, 90, 95, 98, 99, 99.5)


def draw(results: list[Result], path: Path) -> None:
    """Writes a PNG of 1600 x 560 pixels."""
    # Without pyplot, no display is needed and no state is left behind.
    layout = ConstrainedLayoutEngine(h_pad=0.15, w_pad=0.1)
    figure = Figure(figsize=(16, 5.6), dpi=100, layout=layout)
    panels = {
        "Training loss": _draw_loss,
        "Learned step size": _draw_step_size,
        "Test accuracy, %": _draw_accuracy,
    }
    untuned = [result.name for result in results if not result.learning_rates]
    for axes, (title, draw_line) in zip(
        figure.subplots(1, 3), panels.items(), strict=True
    ):
        axes.set_title(title, loc="left", fontsize=17)
        axes.set_xlabel("step", fontsize=15)
        axes.tick_params(labelsize=13)
        axes.spines[["top", "right"]].set_visible(False)
        labels = []
        for result in results:
            i = None if result.learning_rates else untuned.index(result.name)
            style = _style(i)
            labels += [
                (*label, style["color"]) for label in draw_line(axes, result, style)
            ]
        _write_labels(axes, labels)
    title = verdict(results) or "Networks that learn to read handwritten digits"
    figure.suptitle(title, fontsize=20, fontweight="bold")
    figure.savefig(path)


Style: TypeAlias = dict[str, Any]
Labels: TypeAlias = list[tuple[float, str]]


def _style(i: int | None) -> Style:
    """The style for the line of the untuned method `i`, or of a tuned one."""
    if i is None:
        return {"color": GREY, "linewidth": 2.5}
    turn, i = divmod(i, len(COLOURS))
    return {
        "color": COLOURS[i],
        "linewidth": 2.5,
        "linestyle": DASHED if turn else "-",
    }


# Each function draws the line of a result and returns its label and its height there.


def _draw_loss(axes: Axes, result: Result, style: Style) -> Labels:
    loss = result.losses[result.best].mean(axis=0)
    parts = np.array_split(loss, max(1, len(loss) // WINDOW))
    means = [float(part.mean()) for part in parts]
    axes.set_yscale("log")
    axes.plot(np.cumsum([len(x) for x in parts]), means, **style)
    return [(means[-1], _at_best_rate(result))]


def _draw_step_size(
    axes: Axes, result: Result, style: Style
) -> list[tuple[float, str]]:
    axes.set_yscale("log")
    steps = np.arange(1, result.losses.shape[-1] + 1)
    if result.best_rate is not None:
        best = np.full(len(steps), result.best_rate)
        axes.plot(steps, best, **style | {"linestyle": "--", "linewidth": 1.5})
        return [(result.best_rate, _at_best_rate(result))]
    if result.step_sizes is None:
        return []
    sizes = result.step_sizes[0].mean(axis=0)
    axes.plot(steps, sizes, **style)
    return [(float(sizes[-1]), result.name)]


def _draw_accuracy(axes: Axes, result: Result, style: Style) -> Labels:
    # Errors have a logarithmic scale: 98 and 99 % are as far apart as 80 and 90 %.
    axes.set_yscale("function", functions=(_to_height, _from_height))
    axes.yaxis.set_major_locator(ticker.FixedLocator(ACCURACIES))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("learning rate", fontsize=15)
    axes.set_xscale("log")
    percent = 100 * result.test_accuracy
    mean, spread = percent.mean(axis=1), percent.std(axis=1)
    if result.learning_rates:
        x = result.learning_rates
        axes.errorbar(x, mean, spread, marker="o", **style)
    else:
        axes.axhline(mean[0], **style)
    return [(float(mean[-1]), result.name)]


def _to_height(percent: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(100 - percent, 0.1))


def _from_height(height: np.ndarray) -> np.ndarray:
    return 100 - np.exp(-height)


def _at_best_rate(result: Result) -> str:
    return f"{result.name}, best rate" if result.learning_rates else result.name


def _write_labels(axes: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Writes names to the right of the axes, each tied to the end of its line."""
    to_axes = axes.transData + axes.transAxes.inverted()
    right = axes.get_xlim()[1]
    heights = [to_axes.transform((right, y))[1] for y, *_ in labels]
    # A line that ends in NaN has left the panel, presumably at the top.
    heights = np.clip(np.nan_to_num(heights, nan=1), 0, 1)
    order = np.argsort(heights)
    for i, y in zip(order, _spread(heights[order]), strict=True):
        _, name, colour = labels[i]
        axes.annotate(
            name,
            xy=(1, heights[i]),
            xytext=(1.07, y),
            xycoords="axes fraction",
            color=colour,
            fontsize=15,
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": colour, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def _spread(wanted: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Heights near `wanted`, at least a line apart, and in the panel if they fit."""
    above = LINE_HEIGHT * np.arange(len(wanted))
    spread = np.maximum.accumulate(wanted - above) + above
    return np.minimum(spread, 1 - above[::-1])
