"""The numbers of the demo: as a table, as a sentence and as JSON."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from .train import BATCH_SIZE, Result


def table(results: list[Result]) -> Table:
    """A row for each method."""
    num_seeds, num_steps = results[0].losses.shape[1:]
    grid = Table(
        title=f"Handwritten digits, {num_steps} steps of {BATCH_SIZE} images",
        caption=f"Mean over {num_seeds} seeds, ± the standard deviation, at the rate "
        "with the best test accuracy. Milliseconds are for one of the networks that "
        "are trained at once.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    grid.add_column("method", no_wrap=True)
    grid.add_column("what had\nto be tuned", no_wrap=True)
    for name in ("train\nloss", "test\naccuracy", "learned\nstep size", "ms a\nstep"):
        grid.add_column(name, justify="right", no_wrap=True)
    for result in results:
        grid.add_row(*_row(result))
    return grid


def _row(result: Result) -> tuple[str, ...]:
    i, rate, tried = result.best, result.best_rate, len(result.learning_rates)
    sizes = result.step_sizes
    accuracy = 100 * result.test_accuracy[i]
    return (
        result.name,
        "nothing" if rate is None else f"learning rate,\n{tried} tried: {rate:.2g}",
        f"{result.train_loss[i].mean():.1e}",
        f"{accuracy.mean():.1f} ± {accuracy.std():.1f} %",
        "-" if sizes is None else f"{sizes[i, :, -1].mean():.2g}",
        f"{result.ms_per_step:.2f}",
    )


def verdict(results: list[Result]) -> str | None:
    """The accuracy of the worst untuned method beside that of the best learning rate.

    The learning rate is that of the best tuned method, which is adam by default. `None`
    unless there are tuned and untuned methods.
    """
    tuned = [r for r in results if r.learning_rates]
    untuned = [r.accuracy for r in results if not r.learning_rates]
    if not (tuned and untuned):
        return None
    best = max(tuned, key=lambda r: r.accuracy)
    points = 100 * (best.accuracy - min(untuned))
    how = f"at most {points:.1f} points below" if points > 0 else "no lower than"
    return (
        f"Nothing tuned: accuracy {how} the best of {best.name}'s "
        f"{len(best.learning_rates)} learning rates"
    )


def write_json(results: list[Result], seconds: float, path: Path) -> None:
    """Writes all measurements.

    Arrays become nested lists: learning rates, then seeds, then (for losses and step
    sizes) steps. Numbers that are not finite become null.
    """
    num_seeds, num_steps = results[0].losses.shape[1:]
    content = {
        "steps": num_steps,
        "seeds": num_seeds,
        "batch_size": BATCH_SIZE,
        "seconds": seconds,
        "verdict": verdict(results),
        "methods": {result.name: _plain(vars(result)) for result in results},
    }
    path.write_text(json.dumps(content, allow_nan=False) + "\n")


def _plain(x: Any) -> Any:
    """`x` as types of JSON, floats with four digits."""
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, np.ndarray | tuple | list):
        return [_plain(value) for value in x]
    if isinstance(x, float | np.floating):
        return float(f"{x:.4g}") if math.isfinite(x) else None
    return x
