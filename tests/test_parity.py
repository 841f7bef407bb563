"""The rules compute what the official codes and optax compute, to rounding.

All runs are in float64, on gradients from NumPy that both sides share bit for bit: 160
steps on ill-conditioned least squares with noise and on logistic regression.
"""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib as peer
from problems import NUM_STEPS, Problem, PROBLEMS, Reference, references, table

from contrib_algos import adam, adamw, dog, lion, normalize, prodigy, sgd
from contrib_core import chain, scale_by_learning_rate
from contrib_wrappers import (
    RealAndImaginary,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
    split_real_and_imaginary,
)


TOLERANCE = 1e-10
RULES = {f.__name__: f for f in (dog, prodigy, schedule_free_sgd, schedule_free_adamw)}
REFERENCES = references()

pytestmark = pytest.mark.usefixtures("x64")
over_problems = pytest.mark.parametrize(
    "problem", PROBLEMS.values(), ids=lambda problem: problem.name
)


def trajectory(
    opt: Any,
    problem: Problem,
    eval_params: Callable[[Any, Any], Any] = lambda state, params: params,
    encode: Callable[[Any], Any] = lambda tree: tree,
    decode: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[Any, Any]:
    """Parameters, and where to evaluate them, after each step; in the coordinates of
    the problem, which the optimiser sees through `encode`."""

    @jax.jit
    def step(grads, state, params):
        updates, state = opt.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return params, state, eval_params(state, params)

    params = jax.tree.map(jnp.asarray, encode(problem.params))
    state = opt.init(params)
    points = []
    for i in range(NUM_STEPS):
        _, grads = problem.value_and_grad(decode(params), i)
        params, state, evaluated = step(encode(grads), state, params)
        points.append((decode(params), evaluated))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *points)


def distance(actual: Any, expected: Any, start: Any) -> float:
    """max_t ||x_t - x_t^ref|| / max_t ||x_t^ref - x_0||."""

    def largest_norm(xs, ys):
        pairs = zip(jax.tree.leaves(xs), jax.tree.leaves(ys), strict=True)
        parts = [(np.abs(x - y) ** 2).reshape(NUM_STEPS, -1).sum(1) for x, y in pairs]
        return np.sqrt(np.max(sum(parts)))

    return float(largest_norm(actual, expected) / largest_norm(expected, start))


# The official codes


def test_every_reference_is_of_a_rule_and_of_options_that_exist():
    assert len(REFERENCES) == 46
    for reference in REFERENCES:
        assert set(reference.kwargs) <= set(
            inspect.signature(RULES[reference.rule]).parameters
        )


def rates(values: np.ndarray) -> Callable[[Any], Any]:
    return lambda count: jnp.asarray(values)[count]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.id)
def test_as_the_official_code(reference: Reference):
    kwargs = dict(reference.kwargs)
    if reference.learning_rates is not None:
        kwargs["learning_rate"] = rates(reference.learning_rates)
    opt = RULES[reference.rule](**kwargs)
    trained, evaluated = trajectory(opt, reference.problem, opt.eval_params)
    recorded = np.array(reference.steps) - 1
    trained = {name: leaf[recorded] for name, leaf in trained.items()}
    evaluated = {name: leaf[recorded] for name, leaf in evaluated.items()}
    assert reference.error(trained) <= TOLERANCE
    if reference.eval_params is not None:
        assert reference.error(evaluated, evaluated=True) <= TOLERANCE


# Optax 0.2.8, where nothing had to be fixed


MASK = {"b": False, "t": True, "w": True}
COSINE = table({"cosine": NUM_STEPS})

PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "sgd": lambda: (sgd(0.3), optax.sgd(0.3)),
    "sgd-schedule": lambda: (sgd(rates(COSINE)), optax.sgd(rates(COSINE))),
    "momentum": lambda: (sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "nesterov": lambda: (sgd(0.1, 0.9, True), optax.sgd(0.1, 0.9, True)),
    "adam": lambda: (adam(0.01), optax.adam(0.01)),
    "adam-nondefault": lambda: (
        adam(rates(0.03 * COSINE), 0.8, 0.98, 1e-3),
        optax.adam(rates(0.03 * COSINE), 0.8, 0.98, 1e-3),
    ),
    "adam-b1-0": lambda: (adam(0.01, 0.0), optax.adam(0.01, 0.0)),
    "adamw": lambda: (
        adamw(0.01, weight_decay=0.1, mask=MASK),
        optax.adamw(0.01, weight_decay=0.1, mask=MASK),
    ),
    "lion": lambda: (lion(0.003), optax.lion(0.003)),
    "lion-nondefault": lambda: (
        lion(0.003, 0.8, 0.95, 0.1, MASK),
        optax.lion(0.003, 0.8, 0.95, weight_decay=0.1, mask=MASK),
    ),
    "normalize": lambda: (
        chain(normalize(), scale_by_learning_rate(0.02)),
        optax.chain(peer.normalize(), optax.scale_by_learning_rate(0.02)),
    ),
    "dog": lambda: (dog(), peer.dog()),
    "dog-nondefault": lambda: (
        dog(0.7, 1e-4, 1e-2, weight_decay=0.05, mask=MASK),
        peer.dog(0.7, ("heuristic", 1e-4), 1e-2, weight_decay=0.05, mask=MASK),
    ),
    "dog-init_learning_rate": lambda: (
        dog(rates(COSINE), init_learning_rate=1e-3),
        peer.dog(rates(COSINE), ("learning_rate", 1e-3)),
    ),
    "prodigy": lambda: (prodigy(), peer.prodigy()),
    "prodigy-nondefault": lambda: (
        prodigy(rates(COSINE), (0.8, 0.99), 0.98, 1e-3, 1e-4, 0.5, 0.1),
        peer.prodigy(rates(COSINE), (0.8, 0.99), 0.98, 1e-3, 1e-4, 0.5, 0.1),
    ),
    "prodigy-safeguard_warmup": lambda: (
        prodigy(rates(table({"warmup": 20})), safeguard_warmup=True),
        peer.prodigy(rates(table({"warmup": 20})), safeguard_warmup=True),
    ),
    "schedule_free": lambda: (
        schedule_free(sgd(0.5), 0.5),
        peer.schedule_free(optax.sgd(0.5), 0.5),
    ),
    "schedule_free-adam": lambda: (
        schedule_free(adam(0.01, 0.0), 0.01, 0.7, 1.0),
        peer.schedule_free(optax.adam(0.01, 0.0), 0.01, 0.7, 1.0),
    ),
    "schedule_free_sgd": lambda: (
        schedule_free_sgd(0.5, weight_decay=0.05),
        peer.schedule_free_sgd(0.5, weight_decay=0.05),
    ),
    "schedule_free_adamw": lambda: (
        schedule_free_adamw(0.02, weight_decay=0.2),
        peer.schedule_free_adamw(0.02, weight_decay=0.2),
    ),
}


@over_problems
@pytest.mark.parametrize("name", PAIRS)
def test_as_optax(name: str, problem: Problem):
    ours, theirs = PAIRS[name]()
    trained, evaluated = trajectory(ours, problem, ours.eval_params)
    with jax.numpy_dtype_promotion("standard"):
        if name.startswith("schedule_free"):
            expected = trajectory(theirs, problem, peer.schedule_free_eval_params)
        else:
            expected = trajectory(theirs, problem)
    assert distance(trained, expected[0], problem.params) <= TOLERANCE
    assert distance(evaluated, expected[1], problem.params) <= TOLERANCE


# Complex parameters


def as_complex(tree: Any) -> Any:
    """The first rows of `w` are real parts, the others imaginary."""
    w = jnp.asarray(tree["w"])
    return {"b": tree["b"], "t": tree["t"], "w": jax.lax.complex(w[:2], w[2:])}


def from_complex(tree: Any) -> Any:
    w = tree["w"]
    return {"b": tree["b"], "t": tree["t"], "w": jnp.concatenate([w.real, w.imag])}


def as_pair(tree: Any) -> Any:
    w = jnp.asarray(tree["w"])
    return {"b": tree["b"], "t": tree["t"], "w": RealAndImaginary(w[:2], w[2:])}


def from_pair(tree: Any) -> Any:
    pair = tree["w"]
    w = jnp.concatenate([pair.real, pair.imaginary])
    return {"b": tree["b"], "t": tree["t"], "w": w}


@over_problems
@pytest.mark.parametrize("rule", [adam, lion, schedule_free_adamw, prodigy, dog])
def test_split_is_the_explicit_pair_bit_for_bit(
    rule: Callable[..., Any], problem: Problem
):
    opt = rule(0.5)
    split = trajectory(
        split_real_and_imaginary(opt), problem, encode=as_complex, decode=from_complex
    )
    pair = trajectory(opt, problem, encode=as_pair, decode=from_pair)
    assert eqx.tree_equal(split[0], pair[0])


@over_problems
def test_split_as_optax(problem: Problem):
    def run(opt):
        return trajectory(opt, problem, encode=as_complex, decode=from_complex)[0]

    ours = run(split_real_and_imaginary(adam(0.01)))
    with jax.numpy_dtype_promotion("standard"):
        theirs = run(peer.split_real_and_imaginary(optax.adam(0.01)))
        real = trajectory(optax.adam(0.01), problem)[0]
    assert distance(ours, theirs, problem.params) <= TOLERANCE
    assert distance(ours, real, problem.params) <= TOLERANCE
