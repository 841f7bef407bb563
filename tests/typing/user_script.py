# pyright: strict
"""A script of a user, which the strictest type checker accepts."""

from typing import assert_type

import equinox as eqx
from jaxtyping import Array, Float

from contrib_algos import (
    adam,
    dog,
    dpsgd,
    LinearWarmup,
    Momo,
    MomoState,
    prodigy,
    ProdigyState,
    sgd,
)
from contrib_core import apply_updates, chain, scale
from contrib_wrappers import average, AverageState, schedule_free, ScheduleFreeState


class Model(eqx.Module):
    """A linear model."""

    weight: Float[Array, " 3"]

    def __call__(self, x: Float[Array, " 3"]) -> Float[Array, ""]:
        return self.weight @ x


def train(model: Model, grads: Model, x: Float[Array, " 3"]) -> Model:
    """One step each of several optimisers."""
    opt = prodigy()
    state = assert_type(opt.init(model), ProdigyState)
    updates, state = opt.update(grads, state, model)
    assert_type(updates, Model)
    assert_type(state, ProdigyState)
    model = assert_type(apply_updates(model, updates), Model)
    best = assert_type(opt.eval_params(state, model), Model)

    base = adam(LinearWarmup(1e-3, 10))
    updates, _ = base.update(grads, base.init(model), model)
    wrapped = average(schedule_free(base, 1e-3), lambda t: 1 / t)
    assert_type(wrapped.init(model), AverageState)
    assert_type(schedule_free(sgd(0.1), 0.1).init(model), ScheduleFreeState)

    rule = Momo()
    momo_state = assert_type(rule.init(model), MomoState)
    updates, momo_state = rule.update(grads, momo_state, model, value=model(x))
    names = [*rule.metrics(momo_state), *dog().metrics(dog().init(model))]
    assert_type(names, list[str])

    private = chain(dpsgd(0.1, 1.0, 1.0, 42), scale(0.5))
    updates, _ = private.update(grads, private.init(model), model)
    return assert_type(apply_updates(best, updates), Model)
