"""The demo from end to end: train, print a table, draw a picture, write the numbers."""

import functools as ft
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from . import digits
from .figure import draw
from .methods import METHODS
from .report import table, verdict, write_json
from .train import Result, train


INTERRUPTED = 130  # The exit code that shells give a command ended by Ctrl-C.


def run(names: list[str], steps: int, seeds: int, out: Path, show: bool) -> int:
    """Runs the demo and writes into `out`; returns the exit code."""
    out.mkdir(parents=True, exist_ok=True)  # An error must come before the training.
    console = Console()
    began = time.perf_counter()
    results: list[Result] = []
    try:
        with _progress(console, show) as progress:
            _train_all(names, steps, seeds, progress, results)
    except KeyboardInterrupt:
        console.print(f"Interrupted with {len(results)} of {len(names)} methods done.")
        if results:
            console.print(table(results))
        return INTERRUPTED
    seconds = time.perf_counter() - began

    console.print(table(results))
    if sentence := verdict(results):
        print(f"{sentence}.")
    write_json(results, seconds, out / "demo.json")
    draw(results, out / "demo.png")
    print(f"Took {seconds:.0f} s, with compilation. Picture and numbers:")
    print(out / "demo.png", out / "demo.json", sep="\n")
    return 0


def _train_all(
    names: list[str],
    steps: int,
    seeds: int,
    progress: Progress,
    results: list[Result],
) -> None:
    """Appends to `results` one by one, so that an interrupt keeps those that exist."""

    def report(task, done: int, loss: float) -> None:
        progress.update(task, completed=done, loss=f"loss {loss:.2g}")

    data = digits.load()
    tasks = [progress.add_task(name, total=steps, loss="") for name in names]
    for name, task in zip(names, tasks, strict=True):
        progress.update(task, loss="compiling")
        method, tell = METHODS[name], ft.partial(report, task)
        results.append(train(name, method, data, steps, seeds, tell))


def _progress(console: Console, show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:<19}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]:<12}"),
        console=console,
        disable=not show,
    )
