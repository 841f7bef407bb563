"""Memory and time of the clipped sum of a network's gradients."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
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


BY_HAND, PEER = "by hand", "peer"


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
    """The cross-entropy of a perceptron with three layers."""
    x = example["image"]
    for i in range(3):
        x = x @ params[f"weight{i}"] + params[f"bias{i}"]
        x = jax.nn.relu(x) if i < 2 else jax.nn.log_softmax(x)
    return -x[example["label"]]


# What is reported


def _times(
    steps: dict[str, Compiled], shapes: trees.Shapes, batch: int, rounds: int
) -> dict[str, list[float]]:
    params = trees.random(shapes, "float32", seed=0)
    key = jax.random.key(1)
    examples = {
        "image": jax.random.normal(key, (batch, INPUTS)),
        "label": jax.random.randint(key, (batch,), 0, CLASSES),
    }

    def contender(step: Compiled) -> Callable[[], float]:
        return turn(lambda steps: [step(params, examples) for _ in range(steps)][-1])

    turns = {who: contender(step) for who, step in steps.items()}
    return interleaved(turns, rounds)


def _memory(temp: dict[int, dict[str, float]]) -> dict[str, Figure]:
    figures = {}
    for batch, of in temp.items():
        for name, ours, peer, by_hand in _rows(of, lambda x: x / 1e6):
            figures[f"temp MB, B = {batch}, {name}"] = Figure(ours, peer, by_hand)
    (few, low), (many, high) = temp.items()
    growth = {who: (high[who] - low[who]) / (many - few) for who in low}
    for name, ours, peer, by_hand in _rows(growth, float):
        most = None if name.startswith("microbatch 16") else MOST_BYTES_AN_EXAMPLE
        figures[f"temp bytes an example, {name}"] = Figure(ours, peer, by_hand, most)
    return figures


def _time(times: dict[int, dict[str, list[float]]]) -> dict[str, Figure]:
    figures = {}
    for batch, of in times.items():
        rows = _rows(of, lambda x: 1e3 * statistics.median(x))
        for name, ours, peer, by_hand in rows:
            figures[f"ms, B = {batch}, {name}"] = Figure(ours, peer, by_hand)
            if other := of.get(_other(name)):
                ratio = spread(of[name], other)["median"]
                figures[f"ratio of ms, B = {batch}, {name}"] = Figure(ratio)
    return figures


def _rows(
    of: dict[str, Any], number: Callable[[Any], float]
) -> Iterator[tuple[str, float, float | None, float | None]]:
    """For each way of ours: its name, what it takes, and the peer or by hand."""
    for name, ours in of.items():
        if name in (BY_HAND, PEER):
            continue
        other = of.get(_other(name))
        compared = None if other is None else number(other)
        is_noisy = _other(name) == PEER
        peer, by_hand = (compared, None) if is_noisy else (None, compared)
        yield name, number(ours), peer, by_hand


def _other(name: str) -> str:
    """What a way of ours is compared with: optax's has noise."""
    return PEER if name.endswith("noise") else BY_HAND
