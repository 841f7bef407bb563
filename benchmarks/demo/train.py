"""Trains the network with any transform, over all learning rates and seeds at once."""

import functools as ft
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from contrib_core import AbstractTransform

from . import digits
from .methods import Method


BATCH_SIZE = 128
CHUNK = 25  # Steps in one compiled call, so that showing the loss is cheap.


class Run(eqx.Module):
    """A network in training, or many of them under `filter_vmap`."""

    opt: AbstractTransform
    model: digits.Network
    state: Any
    key: PRNGKeyArray


@dataclass(frozen=True)
class Result:
    """The measurements of a method.

    Arrays begin with axes for learning rates and seeds. The axis of learning rates has
    length 1 for a method without learning rates to try. `ms_per_step` is the time of
    one network.
    """

    name: str
    learning_rates: tuple[float, ...]
    train_loss: Float[np.ndarray, "rates seeds"]
    test_accuracy: Float[np.ndarray, "rates seeds"]
    losses: Float[np.ndarray, "rates seeds steps"]
    step_sizes: Float[np.ndarray, "rates seeds steps"] | None
    ms_per_step: float

    @property
    def best(self) -> int:
        """The index of the learning rate with the highest test accuracy."""
        return int(np.argmax(self.test_accuracy.mean(axis=1)))

    @property
    def best_rate(self) -> float | None:
        """The learning rate with the highest test accuracy, if any was tuned."""
        return self.learning_rates[self.best] if self.learning_rates else None

    @property
    def accuracy(self) -> float:
        """The mean test accuracy at the best learning rate."""
        return float(self.test_accuracy[self.best].mean())


def train(
    name: str,
    method: Method,
    data: tuple[digits.Split, digits.Split],
    num_steps: int,
    num_seeds: int,
    report: Callable[[int, float], None],
) -> Result:
    """Trains with `method`.

    Calls `report` with the number of steps done and the loss, which is the smallest one
    if there are several learning rates.
    """
    runs = _start_all(method, num_seeds)

    @ft.cache
    def compiled(length: int) -> Any:
        advance = _for_all(ft.partial(_advance, num_steps=length))
        return advance.lower(runs, data[0]).compile()

    traces, times = [], []
    for done in range(0, num_steps, CHUNK):
        length = min(CHUNK, num_steps - done)
        advance = compiled(length)
        began = time.perf_counter()
        runs, trace = jax.block_until_ready(advance(runs, data[0]))
        times.append((time.perf_counter() - began) / length)
        traces.append(jax.device_get(trace))
        last = traces[-1]["loss"][..., -1].mean(axis=1)
        report(done + length, float(np.fmin.reduce(last)))
    train_loss, test_accuracy = jax.device_get(_for_all(_evaluate)(runs, data))
    trace = {k: np.concatenate([t[k] for t in traces], axis=-1) for k in traces[0]}
    learned = [values for key, values in trace.items() if key.endswith("/step_size")]
    return Result(
        name=name,
        learning_rates=method.learning_rates,
        train_loss=train_loss,
        test_accuracy=test_accuracy,
        losses=trace["loss"],
        step_sizes=learned[0] if learned else None,
        ms_per_step=1e3 * statistics.median(times) / train_loss.size,
    )


def _start_all(method: Method, num_seeds: int) -> Run:
    """A run for each learning rate and seed, in that order of axes."""
    over_seeds = eqx.filter_vmap(_start, in_axes=(None, 0))
    over_rates = eqx.filter_vmap(
        over_seeds,
        in_axes=(eqx.if_array(0), None),
        axis_size=max(1, len(method.learning_rates)),
    )
    keys = jr.split(jr.key(0), num_seeds)
    return eqx.filter_jit(over_rates)(method.transform(), keys)


def _for_all(fn: Callable[[Run, Any], Any]) -> Any:
    """`fn` of one run and the data, compiled for all runs of `_start_all`."""
    for _ in ("seeds", "rates"):
        fn = eqx.filter_vmap(fn, in_axes=(eqx.if_array(0), None))
    return eqx.filter_jit(fn)


# One run


def _start(opt: AbstractTransform, key: PRNGKeyArray) -> Run:
    model_key, key = jr.split(key)
    model = digits.Network(model_key)
    return Run(opt, model, opt.init(model), key)


def _advance(
    run: Run, data: digits.Split, num_steps: int
) -> tuple[Run, dict[str, Array]]:
    """The run after `num_steps` more steps, and the loss and the metrics of each."""

    def step(carry: Any, _: None) -> tuple[Any, dict[str, Array]]:
        model, state, key = carry
        key, batch_key = jr.split(key)
        batch = data.sample(batch_key, BATCH_SIZE)
        loss, grads = eqx.filter_value_and_grad(digits.loss)(model, batch)
        updates, state = run.opt.update(grads, state, model, value=loss)
        model = eqx.apply_updates(model, updates)
        return (model, state, key), {"loss": loss} | run.opt.metrics(state)

    carry = run.model, run.state, run.key
    (model, state, key), trace = lax.scan(step, carry, length=num_steps)
    return Run(run.opt, model, state, key), trace


def _evaluate(
    run: Run, data: tuple[digits.Split, digits.Split]
) -> tuple[Scalar, Scalar]:
    """The loss on the training data, and the accuracy on the held-out data."""
    model = run.opt.eval_params(run.state, run.model)
    train, test = data
    return digits.loss(model, train), digits.accuracy(model, test)
