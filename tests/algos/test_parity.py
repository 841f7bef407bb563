"""The rules compute what the official codes and optax compute, to rounding.

All runs are in float64, on gradients from NumPy that both sides share bit for bit: 160
steps on ill-conditioned least squares with noise and on logistic regression.
"""

import functools
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
from support.problems import NUM_STEPS, Problem, PROBLEMS, Reference, references, table

from contrib_algos import (
    adam,
    adamw,
    cocob,
    dadapt_adamw,
    dog,
    dowg,
    lion,
    momo,
    momo_adam,
    normalize,
    prodigy,
    sgd,
)
from contrib_core import chain, scale_by_learning_rate
from contrib_wrappers import (
    average,
    layerwise,
    mechanize,
    polynomial_decay,
    RealAndImaginary,
    sam,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
    split_real_and_imaginary,
)


TOLERANCE = 1e-10
REFERENCES = references()

pytestmark = pytest.mark.usefixtures("x64")
over_problems = pytest.mark.parametrize(
    "problem", PROBLEMS.values(), ids=lambda problem: problem.name
)


class Rates(eqx.Module):
    """A schedule with tabulated values."""

    values: Any

    def __call__(self, count: Any) -> Any:
        return jnp.asarray(self.values)[count]


class GradFn(eqx.Module):
    """The gradients of a problem at any point; `i` counts from the current step."""

    value_and_grad: Callable[..., Any] = eqx.field(static=True)
    step: Any

    def __call__(self, params: Any, i: int) -> Any:
        def grads(params: Any, step: Any) -> Any:
            return self.value_and_grad(params, int(step) % NUM_STEPS)[1]

        shapes = jax.eval_shape(lambda x: x, params)
        return jax.pure_callback(grads, shapes, params, self.step + i + 1)


def where_trained(state: Any, params: Any) -> Any:
    del state
    return params


# All problems share one compilation, which takes most of the time of these tests.
@eqx.filter_jit
def step(opt, eval_params, extra, grads, state, params):
    updates, state = opt.update(grads, state, params, **extra)
    params = jax.tree.map(jnp.add, params, updates)
    return params, state, eval_params(state, params)


def trajectory(
    opt: Any,
    problem: Problem,
    eval_params: Callable[[Any, Any], Any] = where_trained,
    needs: frozenset[str] = frozenset(),
    encode: Callable[[Any], Any] = lambda tree: tree,
    decode: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[Any, Any]:
    """Parameters, and where to evaluate them, after each step; in the coordinates of
    the problem, which the optimiser sees through `encode`."""
    params = jax.tree.map(jnp.asarray, encode(problem.params))
    state = opt.init(params)
    points = []
    for i in range(NUM_STEPS):
        value, grads = problem.value_and_grad(decode(params), i)
        extra = {
            "value": jnp.asarray(value),
            "grad_fn": GradFn(problem.value_and_grad, jnp.asarray(i)),
        }
        # Some transforms of optax raise an error for extras that they do not need.
        extra = {name: x for name, x in extra.items() if name in needs}
        params, state, evaluated = step(
            opt, eval_params, extra, encode(grads), state, params
        )
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


def averaged_dog(learning_rate: Any = 1.0, gamma: float = 8.0) -> Any:
    return average(dog(learning_rate), polynomial_decay(gamma))


RULES = {
    "averaged_dog": averaged_dog,
    "cocob": cocob,
    "dadapt_adamw": dadapt_adamw,
    "dog": dog,
    "dowg": dowg,
    "momo": momo,
    "momo_adam": momo_adam,
    "prodigy": prodigy,
    "schedule_free_adamw": schedule_free_adamw,
    "schedule_free_sgd": schedule_free_sgd,
}


def test_every_reference_names_a_rule_and_options_that_exist():
    assert len(REFERENCES) == 124
    for reference in REFERENCES:
        options = set(inspect.signature(RULES[reference.rule]).parameters)
        if reference.rule == "dog":
            options.add("layer_wise")
        assert set(reference.kwargs) <= options


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.id)
def test_rules_match_the_official_code(reference: Reference):
    kwargs = dict(reference.kwargs)
    layer_wise = kwargs.pop("layer_wise", False)
    if reference.learning_rates is not None:
        kwargs["learning_rate"] = Rates(reference.learning_rates)
    opt = RULES[reference.rule](**kwargs)
    opt = layerwise(opt) if layer_wise else opt
    trained, evaluated = trajectory(opt, reference.problem, opt.eval_params, opt.needs)
    recorded = np.array(reference.steps) - 1
    trained = {name: leaf[recorded] for name, leaf in trained.items()}
    evaluated = {name: leaf[recorded] for name, leaf in evaluated.items()}
    assert reference.error(trained) <= TOLERANCE
    if reference.eval_params is not None:
        assert reference.error(evaluated, evaluated=True) <= TOLERANCE


# Optax 0.2.8, in rules without a defect


MASK = {"b": False, "t": True, "w": True}
COSINE, WARMUP = table({"cosine": NUM_STEPS}), table({"warmup": 20})

PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "sgd": lambda: (sgd(0.3), optax.sgd(0.3)),
    "sgd-schedule": lambda: (sgd(Rates(COSINE)), optax.sgd(Rates(COSINE))),
    "momentum": lambda: (sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "nesterov": lambda: (sgd(0.1, 0.9, True), optax.sgd(0.1, 0.9, True)),
    "adam": lambda: (adam(0.01), optax.adam(0.01)),
    "adam-nondefault": lambda: (
        adam(Rates(0.03 * COSINE), 0.8, 0.98, 1e-3),
        optax.adam(Rates(0.03 * COSINE), 0.8, 0.98, 1e-3),
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
        dog(Rates(COSINE), init_learning_rate=1e-3),
        peer.dog(Rates(COSINE), ("learning_rate", 1e-3)),
    ),
    "prodigy": lambda: (prodigy(), peer.prodigy()),
    "prodigy-nondefault": lambda: (
        prodigy(Rates(COSINE), (0.8, 0.99), 0.98, 1e-3, 1e-4, 0.5, 0.1),
        peer.prodigy(Rates(COSINE), (0.8, 0.99), 0.98, 1e-3, 1e-4, 0.5, 0.1),
    ),
    "prodigy-safeguard_warmup": lambda: (
        prodigy(Rates(WARMUP), safeguard_warmup=True),
        peer.prodigy(Rates(WARMUP), safeguard_warmup=True),
    ),
    "dadapt_adamw": lambda: (dadapt_adamw(), peer.dadapt_adamw()),
    "dadapt_adamw-nondefault": lambda: (
        dadapt_adamw(Rates(COSINE), (0.8, 0.99), 1e-3, 1e-4, 0.05),
        peer.dadapt_adamw(Rates(COSINE), (0.8, 0.99), 1e-3, 1e-4, 0.05),
    ),
    "dadapt_adamw-warmup": lambda: (
        dadapt_adamw(Rates(WARMUP), weight_decay=0.02),
        peer.dadapt_adamw(Rates(WARMUP), weight_decay=0.02),
    ),
    "cocob": lambda: (cocob(), peer.cocob()),
    "cocob-nondefault": lambda: (
        cocob(Rates(COSINE), 5.0, 0.1, 0.05, MASK),
        peer.cocob(Rates(COSINE), 5.0, 0.1, 0.05, MASK),
    ),
    "dowg": lambda: (dowg(), peer.dowg()),
    "dowg-nondefault": lambda: (
        dowg(Rates(COSINE), 1e-3, 1e-2, 0.05, MASK),
        peer.dowg(Rates(COSINE), 1e-3, 1e-2, 0.05, MASK),
    ),
    # Optax decays differently, so these run without decay.
    "momo": lambda: (momo(), peer.momo()),
    "momo-nondefault": lambda: (
        momo(Rates(COSINE), 0.6, 0.3),
        peer.momo(Rates(COSINE), 0.6, 0.3),
    ),
    "momo-adapt": lambda: (
        momo(20.0, 0.95, 0.3, adapt_lower_bound=True),
        peer.momo(20.0, 0.95, 0.3, adapt_lower_bound=True),
    ),
    "momo_adam": lambda: (momo_adam(), peer.momo_adam()),
    "momo_adam-nondefault": lambda: (
        momo_adam(Rates(0.1 * COSINE), 0.7, 0.98, 1e-3, 0.3),
        peer.momo_adam(Rates(0.1 * COSINE), 0.7, 0.98, 1e-3, 0.3),
    ),
    "momo_adam-adapt": lambda: (
        momo_adam(0.1, lower_bound=0.3, adapt_lower_bound=True),
        peer.momo_adam(0.1, lower_bound=0.3, adapt_lower_bound=True),
    ),
    # These do not amplify rounding; the ones below do.
    "mechanize-sgd": lambda: (
        mechanize(sgd(Rates(0.3 * WARMUP)), 5.0, 1e-4, 1e-2),
        peer.mechanize(optax.sgd(Rates(0.3 * WARMUP)), 5.0, 1e-4, 1e-2),
    ),
    "mechanize-adam": lambda: (
        mechanize(adam(Rates(WARMUP)), 1.0, 1e-4, 1e-2, 3),
        peer.mechanize(optax.adam(Rates(WARMUP)), 1.0, 1e-4, 1e-2, 3),
    ),
    "mechanize-lion": lambda: (
        mechanize(lion(Rates(3 * WARMUP), weight_decay=0.0)),
        peer.mechanize(optax.lion(Rates(3 * WARMUP), weight_decay=0.0)),
    ),
    "mechanize-no_decay": lambda: (
        mechanize(lion(3.0, weight_decay=0.0), 0.0, 1e-6, 1e-4),
        peer.mechanize(optax.lion(3.0, weight_decay=0.0), 0.0, 1e-6, 1e-4),
    ),
    # Optax has no stored sum: it differs by `eps` beside the scale.
    "mechanize-store_delta": lambda: (
        mechanize(sgd(Rates(WARMUP)), 5.0, 1e-20, 1e-2, store_delta=True),
        peer.mechanize(optax.sgd(Rates(WARMUP)), 5.0, 1e-20, 1e-2),
    ),
    "sam": lambda: (
        sam(sgd(0.3), chain(normalize(), sgd(0.1))),
        peer.sam(optax.sgd(0.3), optax.chain(peer.normalize(), optax.sgd(0.1))),
    ),
    "sam-period_3": lambda: (
        sam(adam(Rates(0.1 * COSINE)), sgd(0.1, 0.9), 3),
        peer.sam(optax.adam(Rates(0.1 * COSINE)), optax.sgd(0.1, 0.9), 3),
    ),
    "sam-no_reset": lambda: (
        sam(sgd(0.1, 0.9), sgd(0.1, 0.9), reset_state=False),
        peer.sam(optax.sgd(0.1, 0.9), optax.sgd(0.1, 0.9), reset_state=False),
    ),
    "sam-opaque": lambda: (
        sam(adam(0.01), chain(normalize(), sgd(0.1)), opaque_mode=True),
        peer.sam(
            optax.adam(0.01),
            optax.chain(peer.normalize(), optax.sgd(0.1)),
            opaque_mode=True,
        ),
    ),
    "sam-opaque-period_3": lambda: (
        sam(sgd(0.3), sgd(0.1, 0.9), 3, False, opaque_mode=True),
        peer.sam(optax.sgd(0.3), optax.sgd(0.1, 0.9), 3, False, opaque_mode=True),
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


def where_outer(state: Any, params: Any) -> Any:
    """The point of the outer optimiser of optax's `sam`."""
    if state.cache is None:
        return params
    is_outer = state.steps_since_sync == 0
    return jax.tree.map(lambda x, c: jnp.where(is_outer, x, c), params, state.cache)


EVAL_PARAMS = {"schedule_free": peer.schedule_free_eval_params, "sam": where_outer}


@functools.cache
def pair(name: str) -> tuple[Any, Any]:
    """One instance for all problems, because transforms of optax are equal only to
    themselves."""
    return PAIRS[name]()


@pytest.mark.one_in(3)
@over_problems
@pytest.mark.parametrize("name", PAIRS)
def test_trajectories_match_optax(name: str, problem: Problem):
    ours, theirs = pair(name)
    trained, evaluated = trajectory(ours, problem, ours.eval_params, ours.needs)
    found = (f for prefix, f in EVAL_PARAMS.items() if name.startswith(prefix))
    eval_params = next(found, where_trained)
    with jax.numpy_dtype_promotion("standard"):
        expected = trajectory(theirs, problem, eval_params, ours.needs)
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
