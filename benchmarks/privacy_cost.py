"""Memory and time of the clipped sum of a network's gradients."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled
from jaxtyping import Array, PyTree
from optax import contrib

from contrib_algos import GaussianNoise, value_and_clipped_grad

from . import report, trees
from .privacy_figures import Figure
from .speed import interleaved, spread, turn
from .step import temporary_bytes


BATCHES = (64, 256)
MICROBATCHES = (1, 16)

# Exceeded by examples of random numbers in a network of random parameters.
L2_NORM_CLIP = 1.0

# A loss, a norm and the mask of each example are 9.
MOST_BYTES_AN_EXAMPLE = 16

INPUTS, CLASSES = 784, 10

# `(params, batch) -> sum of the clipped gradients, and more`
Contender: TypeAlias = Callable[[PyTree, PyTree], Any]


def cost(size: int, rounds: int, is_large: bool) -> dict[str, Figure]:
    """Bytes of temporary buffers, and times: ours with noise beside optax's, and
    without beside gradients that are stacked, clipped and summed by hand."""
    shapes = _shapes(size)
    temp, times = {}, {}
    for batch in BATCHES:
        report.progress(f"cost at B = {batch}")
        steps = {
            who: jax.jit(fn)
            .lower(trees.abstract(shapes, "float32"), _batch(batch))
            .compile()
            for who, fn in _contenders().items()
        }
        temp[batch] = {who: float(temporary_bytes(step)) for who, step in steps.items()}
        if batch > BATCHES[0] and not is_large:
            # Gradients of 1.4 GB, and more than that beside them.
            steps = {k: v for k, v in steps.items() if k not in (BY_HAND, PEER)}
        times[batch] = _times(steps, shapes, batch, rounds)
    parameters = {"parameters": Figure(trees.number_of_entries(shapes))}
    return parameters | _memory(temp) | _time(times)


# What is compared


# As the columns of `Figure`.
BY_HAND, PEER = "by_hand", "peer"


def _contenders() -> dict[str, Contender]:
    contenders: dict[str, Contender] = {BY_HAND: _by_hand, PEER: _peer}
    for size in MICROBATCHES:
        contenders[f"microbatch {size}"] = _ours(size)
        contenders[f"microbatch {size} and noise"] = _ours(size, GaussianNoise(1.0, 0))
    return contenders


def _ours(size: int, noise: GaussianNoise | None = None) -> Contender:
    grad = value_and_clipped_grad(_loss, L2_NORM_CLIP, microbatch_size=size)

    def contender(params: PyTree, batch: PyTree) -> Any:
        clipped = grad(params, batch)
        if noise is None:
            return clipped
        return noise.update(clipped, noise.init(params), params), clipped.values

    return contender


def _by_hand(params: PyTree, batch: PyTree) -> Any:
    values, grads = _stacked(params, batch)
    squares = [jnp.sum(g**2, range(1, g.ndim)) for g in jax.tree.leaves(grads)]
    norms = jnp.sqrt(sum(squares))
    factors = jnp.minimum(1, L2_NORM_CLIP / norms)
    total = jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), grads)
    return total, values, norms


def _peer(params: PyTree, batch: PyTree) -> Any:
    values, grads = _stacked(params, batch)
    mean = contrib.differentially_private_aggregate(L2_NORM_CLIP, 1.0, key=0)
    return mean.update(grads, mean.init(params)), values


def _stacked(params: PyTree, batch: PyTree) -> Any:
    return jax.vmap(jax.value_and_grad(_loss), (None, 0))(params, batch)


def _shapes(size: int) -> trees.Shapes:
    widths = (INPUTS, size, size // 2, CLASSES)
    pairs = list(zip(widths, widths[1:]))
    weights = {f"weight{i}": (fan_in, out) for i, (fan_in, out) in enumerate(pairs)}
    return weights | {f"bias{i}": (out,) for i, (_, out) in enumerate(pairs)}


def _batch(number: int) -> PyTree:
    return {
        "image": jax.ShapeDtypeStruct((number, INPUTS), jnp.float32),
        "label": jax.ShapeDtypeStruct((number,), jnp.int32),
    }


def _loss(params: PyTree, example: PyTree) -> Array:
    """The cross-entropy of a perceptron."""
    x, last = example["image"], len(params) // 2 - 1
    for i in range(last + 1):
        x = x @ params[f"weight{i}"] + params[f"bias{i}"]
        x = jax.nn.relu(x) if i < last else jax.nn.log_softmax(x)
    return -x[example["label"]]


# What is reported


def _times(
    steps: dict[str, Compiled], shapes: trees.Shapes, batch: int, rounds: int
) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    params = {name: 0.02 * normal(shape) for name, shape in shapes.items()}
    examples = {
        "image": normal((batch, INPUTS)),
        "label": jnp.asarray(rng.integers(CLASSES, size=batch, dtype=np.int32)),
    }

    def contender(step: Compiled) -> Callable[[], float]:
        return turn(lambda steps: [step(params, examples) for _ in range(steps)][-1])

    turns = {who: contender(step) for who, step in steps.items()}
    return interleaved(turns, rounds)


def _memory(temp: dict[int, dict[str, float]]) -> dict[str, Figure]:
    figures = {}
    for batch, of in temp.items():
        for name, figure in _figures(of, lambda x: x / 1e6):
            figures[f"temp MB, B = {batch}, {name}"] = figure
    (few, low), (many, high) = temp.items()
    growth = {who: (high[who] - low[who]) / (many - few) for who in low}
    for name, figure in _figures(growth, float):
        figure = figure._replace(most=MOST_BYTES_AN_EXAMPLE)
        figures[f"temp bytes an example, {name}"] = figure
    return figures


def _time(times: dict[int, dict[str, list[float]]]) -> dict[str, Figure]:
    figures = {}
    for batch, of in times.items():
        for name, figure in _figures(of, lambda x: 1e3 * statistics.median(x)):
            figures[f"ms, B = {batch}, {name}"] = figure
            if other := of.get(_other(name)):
                ratio = spread(of[name], other)["median"]
                figures[f"ms over the other's, B = {batch}, {name}"] = Figure(ratio)
    return figures


def _figures(
    of: dict[str, Any], number: Callable[[Any], float]
) -> Iterator[tuple[str, Figure]]:
    """Each way of ours, beside what it is compared with, if that was measured."""
    for name in (who for who in of if who not in (BY_HAND, PEER)):
        figure = Figure(number(of[name]))
        if (other := _other(name)) in of:
            figure = figure._replace(**{other: number(of[other])})
        yield name, figure


def _other(name: str) -> str:
    """What a way of ours is compared with: optax's has noise."""
    return PEER if name.endswith("noise") else BY_HAND
