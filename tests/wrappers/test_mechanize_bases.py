"""Mechanic around other transforms, and inside of them."""

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array
from optax import contrib as peer
from support.descent import descend, last, sum_of_squares, twice
from support.mechanic import over_bases, over_forms, START
from support.transforms import OwnsIterates

from contrib_algos import dog, momo, sgd
from contrib_core import (
    AbstractTransform,
    chain,
    Extra,
    masked,
    name_of,
    scale,
    Tree,
    tree,
)
from contrib_core.claims import Needs
from contrib_wrappers import (
    master_weights,
    mechanize,
    schedule_free,
    split_real_and_imaginary,
)


# Around and inside of other transforms

WRAPPERS: dict[str, Callable[[AbstractTransform], AbstractTransform]] = {
    "bare": lambda t: t,
    "chain": lambda t: chain(scale(1.0), t),
    "masked": lambda t: masked(t, True),
    "split": split_real_and_imaginary,
    "master_weights": master_weights,
    "schedule_free": lambda t: schedule_free(t, 1.0, base_at="z"),
}


@pytest.mark.one_in(5)
@over_bases
@over_forms
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_training_reaches_the_minimum(
    wrapper: str, store_delta: bool, base: AbstractTransform
):
    opt = WRAPPERS[wrapper](mechanize(base, store_delta=store_delta))
    dtype = {"split": "complex64", "master_weights": "bfloat16"}.get(wrapper, "float32")
    params = {"a": START.astype(dtype), "b": -jnp.ones((), dtype)}
    x, state = last(descend(opt, params, lambda x, i: x, 500))
    point = opt.eval_params(state, x)
    assert tree.norm(point) < 0.2 * tree.norm(params)
    assert opt.metrics(state)["mechanize/step_size"] > 1e-3


@over_bases
def test_raw_models_train(base: AbstractTransform):
    model = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (32, 2))
    opt = mechanize(base)

    def loss(model: Any) -> Array:
        outputs = jax.vmap(model)(inputs)[:, 0]
        return jnp.mean((outputs - jnp.sin(inputs[:, 0])) ** 2)

    @eqx.filter_jit
    def step(model: Any, state: Any) -> tuple[Any, Any]:
        updates, state = opt.update(eqx.filter_grad(loss)(model), state, model)
        return eqx.apply_updates(model, updates), state

    first, state = loss(model), opt.init(model)
    for _ in range(300):
        model, state = step(model, state)
    assert loss(opt.eval_params(state, model)) < 0.3 * first


class Recording(AbstractTransform[Any]):
    """Steps by `value` times the gradient and remembers its arguments. The model is
    evaluated at twice the parameters."""

    @property
    def needs(self) -> Needs:
        return frozenset({"value", "grad_fn", "key"})

    def start(self, params: Tree) -> Any:
        return jnp.zeros(()), params, params, jax.random.key(0)

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        seen = extra.value, params, extra.grad_fn(params), extra.key
        return tree.scale(-extra.value, grads), seen

    def eval_point(self, state: Any, params: Tree) -> Tree:
        return tree.scale(2, params)

    def metrics(self, state: Any) -> dict[str, Array]:
        return {"mechanize/step_size": state[0], "recording/value": state[0]}


@over_forms
def test_the_base_receives_every_extra(store_delta: bool):
    opt = mechanize(Recording(), s_init=0.5, num_betas=1, store_delta=store_delta)
    assert opt.needs == {"params", "value", "grad_fn", "key"} and opt.owns_iterates
    key = jax.random.key(1)
    updates, state = opt.update(
        jnp.ones(3),
        opt.init(START),
        START,
        value=3.0,
        grad_fn=lambda x: 7 * x,
        key=key,
    )
    np.testing.assert_allclose(updates, -1.5 * jnp.ones(3), rtol=1e-6)
    value, params, grads, seen_key = state.base_optimizer_state
    assert value == 3 and seen_key == key
    np.testing.assert_array_equal(params, START)
    np.testing.assert_array_equal(grads, 7 * START)
    np.testing.assert_array_equal(opt.eval_params(state, START), 2 * START)
    metrics = {name: float(x) for name, x in opt.metrics(state).items()}
    assert metrics == {
        "mechanize/step_size": pytest.approx(0.5),
        "mechanize/reward": 0,
        "base/mechanize/step_size": 3,
        "recording/value": 3,
    }


def test_polyak_steps_and_distances_work_as_bases():
    def gap(x: Array, i: Any) -> Array:
        return x - 0.5

    opt = mechanize(dog(), store_delta=True)
    x, state = last(descend(opt, START, gap, 500))
    assert np.abs(x - 0.5).max() < 0.1
    # The base sees the trained parameters.
    distances = opt.metrics(state)["dog/distance"], jnp.linalg.norm(x - START)
    assert distances[0] >= 0.99 * distances[1]

    opt, x = mechanize(momo(1.0)), START
    state, step = opt.init(x), jax.jit(opt.update)
    for _ in range(300):
        updates, state = step(gap(x, 0), state, x, value=jnp.sum((x - 0.5) ** 2) / 2)
        x = x + updates
    assert np.abs(x - 0.5).max() < 0.1


@pytest.mark.parametrize(
    "base", [OwnsIterates(), chain(scale(1.0), OwnsIterates()), mechanize(sgd(1.0))]
)
def test_bases_with_points_of_their_own_are_refused(base: AbstractTransform):
    name = re.escape(name_of(base))
    with pytest.raises(ValueError, match=rf"Mechanize\({name}\).*base_at="):
        mechanize(base)


def test_an_extra_that_a_base_of_optax_requires_is_named():
    opt = mechanize(peer.momo())
    with pytest.raises(ValueError, match="needs `value`: call .*params, value=loss"):
        opt.update(START, opt.init(START), START)


def test_bases_of_optax_train():
    opt = mechanize(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    assert opt.base_optimizer.needs == frozenset()
    x, _ = last(descend(opt, START, twice, 400))
    assert sum_of_squares(x) < 0.1
