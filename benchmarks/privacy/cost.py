"""Memory and time of the clipped sum of a network's gradients."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.stages import Compiled
from jaxtyping import PyTree

from .. import report, trees
from ..hlo import temporary_bytes
from ..timing import interleaved, spread, turn
from . import network
from .contenders import contenders, is_ours, rival
from .figure import Figure


BATCHES = (64, 256)

# Each example has a loss, a norm and a mask, of 9 bytes together.
MOST_BYTES_AN_EXAMPLE = 16


def cost(size: int, rounds: int, is_large: bool) -> dict[str, Figure]:
    """Bytes of temporary buffers, and times.

    Ours with noise is compared with optax's; ours without noise with gradients that are
    stacked, clipped and summed by hand.
    """
    shapes = network.shapes(size)
    temp, times = {}, {}
    for batch in BATCHES:
        report.progress(f"cost at B = {batch}")
        steps = _compiled(shapes, batch)
        temp[batch] = {k: float(temporary_bytes(step)) for k, step in steps.items()}
        if batch > BATCHES[0] and not is_large:
            # The others stack gradients of 1.4 GB, and need more than that beside them.
            steps = {name: step for name, step in steps.items() if is_ours(name)}
        times[batch] = _times(steps, *network.random(shapes, batch), rounds)
    parameters = {"parameters": Figure(trees.number_of_entries(shapes))}
    return parameters | _memory(temp) | _time(times)


def _compiled(shapes: trees.Shapes, batch: int) -> dict[str, Compiled]:
    arguments = trees.abstract(shapes, "float32"), network.batch_like(batch)
    return {
        name: jax.jit(fn).lower(*arguments).compile()
        for name, fn in contenders().items()
    }


def _times(
    steps: dict[str, Compiled], params: PyTree, batch: PyTree, rounds: int
) -> dict[str, list[float]]:
    def contender(step: Compiled) -> Callable[[], float]:
        return turn(lambda steps: [step(params, batch) for _ in range(steps)][-1])

    turns = {name: contender(step) for name, step in steps.items()}
    return interleaved(turns, rounds)


def _memory(temp: dict[int, dict[str, float]]) -> dict[str, Figure]:
    figures = {}
    for batch, amounts in temp.items():
        for name, figure in _figures(amounts, lambda x: x / 1e6):
            figures[f"temp MB, B = {batch}, {name}"] = figure
    (few, low), (many, high) = temp.items()
    growth = {name: (high[name] - low[name]) / (many - few) for name in low}
    for name, figure in _figures(growth, float):
        figure = figure._replace(most=MOST_BYTES_AN_EXAMPLE)
        figures[f"temp bytes an example, {name}"] = figure
    return figures


def _time(times: dict[int, dict[str, list[float]]]) -> dict[str, Figure]:
    figures = {}
    for batch, seconds in times.items():
        for name, figure in _figures(seconds, lambda x: 1e3 * statistics.median(x)):
            figures[f"ms, B = {batch}, {name}"] = figure
            if other := seconds.get(rival(name)):
                ratio = spread(seconds[name], other)["median"]
                figures[f"ms over the other's, B = {batch}, {name}"] = Figure(ratio)
    return figures


def _figures(
    measured: dict[str, Any], number: Callable[[Any], float]
) -> Iterator[tuple[str, Figure]]:
    """A figure for each contender of ours, beside its rival if that was measured."""
    for name in filter(is_ours, measured):
        figure = Figure(number(measured[name]))
        if (other := rival(name)) in measured:
            figure = figure._replace(**{other: number(measured[other])})
        yield name, figure
