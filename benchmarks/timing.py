"""Times of contenders that take turns.

Other work on the machine disturbs all of them alike: every contender takes one turn in
each round, ratios are between times of the same round, and medians over the rounds are
reported. Every second round goes backwards, because the previous contender decides what
is in the cache.
"""

import argparse
import itertools as it
import statistics
import time
from collections.abc import Callable, Mapping

import jax
from jaxtyping import PyTree


# A turn takes at least this long, so that the clock and the dispatch do not matter.
SECONDS_A_TURN = 0.05


def add_rounds(parser: argparse.ArgumentParser, default: int = 15) -> None:
    """Adds the argument for the number of rounds."""
    parser.add_argument(
        "--rounds",
        type=int,
        default=default,
        help="turns that each contender takes; default %(default)s",
    )


def interleaved(
    turns: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """The numbers that each contender returned, one for each round."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    forth = list(turns)
    for _, order in zip(range(rounds), it.cycle([forth, forth[::-1]]), strict=False):
        for name in order:
            times[name].append(turns[name]())
    return times


def turn(run: Callable[[int], PyTree]) -> Callable[[], float]:
    """A function that takes a turn and returns the mean seconds of a step.

    **Arguments:**

    - `run`: takes as many steps as it is told, and returns arrays to wait for.
    """

    def take(steps: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(run(steps))
        return (time.perf_counter() - start) / steps

    take(2)  # Compiles: twice, where the first state is weakly typed.
    steps = max(1, round(SECONDS_A_TURN / take(2)))
    return lambda: take(steps)


def spread(ours: list[float], peer: list[float]) -> dict[str, float]:
    """The median and the quartiles of the ratios between times of the same round."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    low, median, high = (
        statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    )
    return {"low": low, "median": median, "high": high}
