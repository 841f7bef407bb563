"""Problems on which the rules are compared with their official implementations.

Losses, gradients and schedules are plain NumPy in float64, so that the script that
made the reference numbers (PyTorch, `references/make_references.py`) and the tests
(JAX) run the same code and see the same gradients. The constants of the problems come
from integer arithmetic instead of a random number library: they never change.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np


Array: TypeAlias = np.ndarray
Params: TypeAlias = dict[str, Array]

# All recorded runs have this length, and so have the noise and the schedules.
NUM_STEPS = 160

SHAPES: dict[str, tuple[int, ...]] = {"b": (3,), "t": (), "w": (4, 3)}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())


def ravel(params: Mapping[str, Any]) -> Array:
    """All leaves as one vector, in the order of their names, as in JAX.

    Leading axes are kept, here and in `unravel`, so both work on trajectories.
    """
    vectors = []
    for name, shape in SHAPES.items():
        leaf = np.asarray(params[name], np.float64)
        leading = leaf.shape[: leaf.ndim - len(shape)]
        vectors.append(leaf.reshape(*leading, math.prod(shape)))
    return np.concatenate(vectors, axis=-1)


def unravel(vectors: Array) -> Params:
    """The inverse of `ravel`, in buffers of its own."""
    params, start = {}, 0
    for name, shape in SHAPES.items():
        stop = start + math.prod(shape)
        leaf = vectors[..., start:stop].reshape(vectors.shape[:-1] + shape)
        params[name], start = np.array(leaf), stop
    return params


@dataclass(frozen=True)
class Problem:
    """A loss to minimise.

    `value_and_grad(params, step)` takes anything that NumPy can convert, JAX arrays
    included, and returns the loss and the gradient given to the optimiser at the step
    with that number, counted from 0.
    """

    name: str
    params: Params
    value_and_grad: Callable[[Mapping[str, Any], int], tuple[float, Params]]


def _constants(seed: int, *shape: int) -> Array:
    """Numbers in [-1, 1) from Knuth's congruential generator, exact in float64."""
    values = []
    for _ in range(math.prod(shape)):
        seed = (6364136223846793005 * seed + 1442695040888963407) % 2**64
        values.append((seed >> 11) * 2.0**-52 - 1)
    return np.array(values).reshape(shape)


# The parameters start small: the first steps of a learning-rate-free rule are about
# 1e-6 long, and adding them to parameters of order 1 would round off ten digits of the
# distance from which the later steps are computed.
def _start(seed: int) -> Params:
    return unravel(0.02 * _constants(seed, SIZE))


def _least_squares() -> Problem:
    # A product of reflections is orthogonal to rounding without any factorisation.
    rotation = np.eye(SIZE)
    for normal in _constants(1, 4, SIZE):
        rotation -= np.outer(rotation @ normal, normal) * (2 / (normal @ normal))
    # Eigenvalues of the Hessian: 1 down to 1e-4.
    matrix = np.logspace(0, -2, SIZE)[:, None] * rotation
    target = _constants(2, SIZE)
    noise = 0.01 * _constants(3, NUM_STEPS, SIZE)

    def value_and_grad(params: Mapping[str, Any], step: int) -> tuple[float, Params]:
        residual = matrix @ (ravel(params) - target)
        grad = matrix.T @ residual + noise[step]
        return float(residual @ residual / 2), unravel(grad)

    return Problem("least_squares", _start(4), value_and_grad)


def _logistic_regression() -> Problem:
    num_examples, (num_features, num_classes) = 40, SHAPES["w"]
    features = _constants(5, num_examples, num_features)
    # The scalar parameter weighs these fixed scores, so the loss is convex in it.
    scores = _constants(6, num_examples, num_classes)
    # Noisy labels: separable classes would have no minimiser.
    signal = features @ _constants(7, num_features, num_classes) - scores / 2
    noise = _constants(8, num_examples, num_classes)
    labels = np.eye(num_classes)[np.argmax(signal + noise, axis=1)]

    def value_and_grad(params: Mapping[str, Any], step: int) -> tuple[float, Params]:
        del step
        p = unravel(ravel(params))
        logits = features @ p["w"] + p["b"] + p["t"] * scores
        logits -= logits.max(axis=1, keepdims=True)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        residual = (np.exp(log_probs) - labels) / num_examples
        grad = {
            "b": residual.sum(axis=0),
            "t": np.array((residual * scores).sum()),
            "w": features.T @ residual,
        }
        return float(-(labels * log_probs).sum() / num_examples), grad

    return Problem("logistic_regression", _start(9), value_and_grad)


PROBLEMS = {p.name: p for p in (_least_squares(), _logistic_regression())}


def warmup(num_warmup: int) -> Array:
    """(k+1)/num_warmup at step k, at most 1; never 0, as in the official codes."""
    return np.minimum(np.arange(1, NUM_STEPS + 1) / num_warmup, 1.0)


def cosine(num_decay: int) -> Array:
    """(1 + cos(pi k/num_decay)) / 2 at step k: starts at 1, decays to 0."""
    return (1 + np.cos(np.pi * np.arange(NUM_STEPS) / num_decay)) / 2


def table(schedule: dict[str, int]) -> Array:
    """The learning rates of a description such as {"warmup": 20}."""
    ((name, length),) = schedule.items()
    return {"warmup": warmup, "cosine": cosine}[name](length)


@dataclass(frozen=True)
class Reference:
    """A trajectory of an official implementation, in float64.

    `kwargs` are arguments of our function `rule`. They do not contain a learning rate
    that varies. Instead, `learning_rates` is a table of its value at every step, so
    that both sides use the same bits (`lambda k: jnp.asarray(learning_rates)[k]`).

    The leaves of `params` have a leading axis: `params[name][i]` is the leaf after
    `steps[i]` updates. `eval_params` is None for the rules that evaluate the model
    where they train it.
    """

    id: str
    rule: str
    kwargs: dict[str, Any]
    learning_rates: Array | None
    problem: Problem
    steps: tuple[int, ...]
    params: Params
    eval_params: Params | None

    def error(self, params: Mapping[str, Any], *, evaluated: bool = False) -> float:
        """max_t ||x_t - x_t^ref|| / max_t ||x_t^ref - x_0||, over the recorded steps.

        `params` is a trajectory laid out like `self.params`, and is compared with
        `self.eval_params` if `evaluated`.
        """
        expected = self.eval_params if evaluated else self.params
        assert expected is not None, f"{self.id} has no separate evaluation parameters"
        difference = ravel(params) - ravel(expected)
        displacement = ravel(expected) - ravel(self.problem.params)
        # `np.max` passes a NaN on; the built-in would drop it, depending on its place.
        return float(
            np.max(np.linalg.norm(difference, axis=1))
            / np.max(np.linalg.norm(displacement, axis=1))
        )


def references() -> list[Reference]:
    """The committed trajectories; parametrise tests with `ids=lambda r: r.id`."""
    path = Path(__file__).parents[1] / "references" / "references.json"
    data = json.loads(path.read_text())

    def build(run: dict[str, Any]) -> Reference:
        schedule, evaluated = run["schedule"], run["eval_params"]
        return Reference(
            id="-".join((run["rule"], run["config"], run["problem"])),
            rule=run["rule"],
            kwargs={
                # JSON has no tuples, and our betas are one.
                name: tuple(value) if isinstance(value, list) else value
                for name, value in run["kwargs"].items()
            },
            learning_rates=schedule and table(schedule),
            problem=PROBLEMS[run["problem"]],
            steps=tuple(data["steps"]),
            params=unravel(np.array(run["params"])),
            eval_params=evaluated and unravel(np.array(evaluated)),
        )

    return [build(run) for run in data["runs"]]
