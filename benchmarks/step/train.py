"""`python -m benchmarks train`: a whole training step of a deep and narrow network.

Gradients, update and new parameters are compiled together: with our rule bucketed, with
our rule as it is, and with optax's. Unlike in `compile` and `speed`, the optimiser is
only a part of the step; the other part is the same for all three.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.stages import Compiled
from jaxtyping import Array, Float, PyTree

from contrib_core import Transform
from contrib_wrappers import bucketed

from .. import report, trees
from ..timing import add_rounds, interleaved, spread, turn
from . import arguments
from .program import state_like
from .rules import Rule, RULES


BATCH = 16

CONTENDERS = ("bucketed", "ours", "peer")

HEADER = (
    "rule",
    "compile s: b",
    "ours",
    "peer",
    "b / peer",
    "step ms: b",
    "ours",
    "peer",
    "b / peer",
    "quartiles",
)


def main(argv: list[str]) -> int:
    """Measures, prints and writes."""
    parser = arguments.parser(
        "train", "A whole training step.", ["prodigy", "dog", "adam"]
    )
    parser.add_argument(
        "--layers",
        type=int,
        default=500,
        help="number of layers, each of two leaves; default %(default)s",
    )
    parser.add_argument(
        "--width", type=int, default=32, help="width of a layer; default %(default)s"
    )
    add_rounds(parser)
    args = parser.parse_args(argv)
    for name in args.rules:
        if RULES[name].dtype != "float32":
            parser.error(f"{name} is for {RULES[name].dtype}, the network is float32")
    args.tree = f"mlp:{args.layers}"
    shapes = _shapes(args.layers, args.width)
    rows = {
        name: _measure(name, RULES[name], shapes, args.rounds) for name in args.rules
    }
    report.print_table(
        f"A training step, {args.layers} layers of {args.width}: ours bucketed (b), "
        "ours, optax's (peer)",
        HEADER,
        [_cells(name, row) for name, row in rows.items()],
    )
    arguments.write_json("train", args, rows, shapes)
    return 0


def _shapes(layers: int, width: int) -> trees.Shapes:
    layer = {"weight": (width, width), "bias": (width,)}
    return {f"{i}/{k}": shape for i in range(layers) for k, shape in layer.items()}


def _network(leaves: Mapping[str, Any]) -> PyTree:
    depth = len(leaves) // 2
    return [{k: leaves[f"{i}/{k}"] for k in ("weight", "bias")} for i in range(depth)]


def _loss(network: PyTree, x: Float[Array, "batch width"]) -> Float[Array, ""]:
    """The mean squared difference between a residual network and the rolled input."""
    y = x
    for layer in network:
        # Divided, so that neither outputs nor gradients explode with the depth.
        y = y + jnp.tanh(y @ layer["weight"] + layer["bias"][None]) / len(network)
    return jnp.mean((y - jnp.roll(x, 1, axis=1)) ** 2)


def _measure(
    name: str, rule: Rule, shapes: trees.Shapes, rounds: int
) -> dict[str, Any]:
    report.progress(name)
    contenders: dict[str, Transform] = {
        "bucketed": bucketed(rule.ours),
        "ours": rule.ours,
    }
    if rule.peer is not None:
        contenders["peer"] = optax.with_extra_args_support(rule.peer)
    seconds, turns = {}, {}
    for contender, transform in contenders.items():
        seconds[contender], turns[contender] = _contender(transform, shapes)
    times = interleaved(turns, rounds)
    peer = times.get("peer")
    return {
        "compile_seconds": seconds,
        "compile_ratio": report.ratio(seconds["bucketed"], seconds.get("peer")),
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "ratio": peer and spread(times["bucketed"], peer),
        "ratio_per_leaf": peer and spread(times["ours"], peer),
    }


def _contender(
    transform: Transform, shapes: trees.Shapes
) -> tuple[float, Callable[[], float]]:
    """The seconds to trace and compile, and a function that takes a turn of steps."""
    few = dict(list(shapes.items())[:2])
    _compiled(transform, few)  # The first call of JAX functions is not timed.
    start = time.perf_counter()
    step = _compiled(transform, shapes)
    seconds = time.perf_counter() - start
    params = _network(trees.random(shapes, "float32", seed=0))
    # Copied, because optax's states alias the parameters, which are donated too.
    state = jax.tree.map(jnp.copy, transform.init(params))
    batch = jax.random.normal(jax.random.key(2), _batch(shapes).shape)

    def run(steps: int) -> PyTree:
        nonlocal params, state
        for _ in range(steps):
            params, state = step(params, state, batch)
        return params, state

    return seconds, turn(run)


def _compiled(transform: Any, shapes: trees.Shapes) -> Compiled:
    def step(params: PyTree, state: PyTree, x: Array) -> tuple[PyTree, PyTree]:
        value, grads = jax.value_and_grad(_loss)(params, x)
        updates, state = transform.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params = _network(trees.abstract(shapes, "float32"))
    state = state_like(transform, params)
    donating = jax.jit(step, donate_argnums=(0, 1))
    return donating.lower(params, state, _batch(shapes)).compile()


def _batch(shapes: trees.Shapes) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((BATCH, *shapes["0/bias"]), "float32")


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    compiled, steps, ratio = row["compile_seconds"], row["seconds"], row["ratio"]
    return [
        name,
        *[report.number(compiled.get(key), 1) for key in CONTENDERS],
        report.number(row["compile_ratio"], 3),
        *[_milliseconds(steps.get(key)) for key in CONTENDERS],
        report.number(ratio and ratio["median"], 3),
        f"{ratio['low']:.2f}-{ratio['high']:.2f}" if ratio else "-",
    ]


def _milliseconds(seconds: float | None) -> str:
    return report.number(seconds and 1e3 * seconds, 1)
