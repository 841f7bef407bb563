"""A rule for each leaf: as if there were no others."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from contrib_algos import adam, DoG, dog, momo, prodigy, sgd
from contrib_core import (
    AbstractState,
    AbstractTransform,
    apply_updates,
    Extra,
    Scalar,
    scale,
    Tree,
    tree,
)
from contrib_core.claims import Needs
from contrib_laws import assert_lawful
from contrib_wrappers import (
    average,
    layerwise,
    master_weights,
    schedule_free,
    split_real_and_imaginary,
)


PARAMS: dict[str, Any] = {
    "a": jnp.array([1.0, -2.0, 0.5]),
    "b": jnp.array([[30.0, 4.0], [-5.0, 60.0]]),
    "c": jnp.array(0.01),
    "none": None,
    "z": jnp.array([1 + 2j, 3 - 1j]),
}


def descend(opt: Any, params: Any, num_steps: int = 20, **extra: Any) -> Any:
    """Parameters, state and evaluation point, with gradients that grow with a leaf."""

    def step(carry, i):
        params, state = carry
        grads = jax.tree.map(lambda x: 2 * x + 1, params)
        updates, state = opt.update(grads, state, params, **extra)
        return (apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        start = params, opt.init(params)
        (end, state), _ = lax.scan(step, start, jnp.arange(num_steps))
        return end, state, opt.eval_params(state, end)

    return run(params)


INNER = {
    "dog": dog(reps_rel=1e-3, weight_decay=0.1),
    "prodigy": prodigy(),
    "adam": adam(0.1),
    "schedule_free": schedule_free(sgd(0.1), 0.1),
    "average": average(DoG(reps_rel=1e-2)),
    "optax": optax.clip_by_global_norm(0.1),
    "masters": master_weights(dog()),
    "split": split_real_and_imaginary(dog(reps_rel=1e-3)),
    "layerwise": layerwise(dog(reps_rel=1e-3)),
}


@pytest.mark.parametrize("name", INNER)
def test_each_leaf_is_alone(name):
    params, state, point = descend(layerwise(INNER[name]), PARAMS)
    assert params["none"] is None and state.inner_states["none"] is None
    inner = layerwise(INNER[name]).inner
    for key, leaf in PARAMS.items():
        if leaf is not None:
            alone = descend(inner, leaf)
            found = params[key], state.inner_states[key].inner_state, point[key]
            # XLA fuses and rounds these differently.
            assert eqx.tree_equal(found, alone, rtol=1e-5, atol=1e-6)


def test_without_layerwise_leaves_influence_each_other():
    """Otherwise the test above would prove nothing."""
    together, _, _ = descend(dog(reps_rel=1e-3), PARAMS)
    alone, _, _ = descend(layerwise(dog(reps_rel=1e-3)), PARAMS)
    assert not np.allclose(together["a"], alone["a"], rtol=1e-2)


# LDoG


def ldog(leaves: Any, rel: float, eps: float, decay: float, lr: float) -> Any:
    """A hundred steps with the equations of DoG in NumPy, each leaf by itself."""
    ends = []
    for i, start in enumerate(leaves):
        x, dist, total = start, rel * (1 + np.linalg.norm(start)), 0.0
        for t in range(100):
            g = (i + 1) * x + math.sin(t) + decay * x
            dist, total = max(dist, np.linalg.norm(x - start)), total + np.sum(g**2)
            x = x - lr * dist / np.sqrt(total + eps) * g
        ends.append(x)
    return ends


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay, lr", [(0.0, 1.0), (0.1, 0.5)])
def test_layer_wise_dog(decay, lr):
    """The distance of each leaf is its own; decay and learning rate are outside."""
    rng = np.random.RandomState(0)
    leaves = [rng.randn(5), 10 * rng.randn(3, 2), 0.1 * rng.randn(1)]
    expected = ldog(leaves, 1e-3, 1e-6, decay, lr)
    opt = layerwise(dog(lr, 1e-3, 1e-6, weight_decay=decay or None))
    params = [jnp.asarray(x) for x in leaves]
    state = opt.init(params)
    update = jax.jit(opt.update)
    for t in range(100):
        grads = [(i + 1) * x + math.sin(t) for i, x in enumerate(params)]
        updates, state = update(grads, state, params)
        params = apply_updates(params, updates)
    for found, x, start in zip(params, expected, leaves, strict=True):
        np.testing.assert_allclose(found, x, rtol=0, atol=1e-12 * abs(start).max())
        assert not np.allclose(x, start, rtol=1e-2)


# Extras


class Look(AbstractTransform[None]):
    """Looks at the value, at the gradient a step ahead, and draws noise."""

    length: Any = 0.25

    @property
    def needs(self) -> Needs:
        return frozenset({"params", "value", "grad_fn", "key"})

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        ahead = extra.grad_fn(tree.axpy(-self.length, grads, params), 7)
        noise = tree.map(
            lambda x: jax.random.normal(extra.key, x.shape, x.dtype), ahead
        )
        return tree.axpy(extra.value, ahead, tree.scale(1e-3, noise)), None


def coupled(params: dict[str, Any]) -> Any:
    return jnp.sum(params["a"] ** 2) * jnp.sum(params["b"] ** 3)


def look(opt: Any, params: dict[str, Any]) -> Any:
    calls = []

    def grad_fn(params: Any, i: int) -> Any:
        calls.append(i)
        return jax.grad(coupled)(params)

    updates, _ = opt.update(
        jax.grad(coupled)(params),
        opt.init(params),
        params,
        value=jnp.asarray(3.0),
        grad_fn=grad_fn,
        key=jax.random.key(0),
    )
    assert set(calls) == {7}
    return updates


@pytest.mark.parametrize("length", [0.25, jnp.asarray(0.25)])
def test_gradients_elsewhere_move_one_leaf_and_hold_the_others(length):
    a, b = jnp.array([0.5, 1.0]), jnp.array([1.0, 0.5])
    updates = look(layerwise(Look(length)), {"a": a, "b": b})
    grads = jax.grad(coupled)({"a": a, "b": b})
    for name, leaf in (("a", a), ("b", b)):
        moved = {"a": a, "b": b} | {name: leaf - 0.25 * grads[name]}
        ahead = jax.grad(coupled)(moved)[name]
        np.testing.assert_allclose(updates[name], 3 * ahead, rtol=0, atol=5e-3)
        both = {"a": a - 0.25 * grads["a"], "b": b - 0.25 * grads["b"]}
        assert not np.allclose(updates[name], 3 * jax.grad(coupled)(both)[name], 0.01)


def test_noise_of_leaves_is_not_the_same():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    updates = look(layerwise(Look(0.0)), params)
    noise = {k: updates[k] - 3 * g for k, g in jax.grad(coupled)(params).items()}
    assert not np.allclose(noise["a"], noise["b"], atol=1e-5)
    assert np.abs(noise["a"]).max() > 1e-5


def test_the_value_is_that_of_all():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    found, state, _ = descend(layerwise(momo(1.0)), params, 3, value=jnp.asarray(2.0))
    for name, leaf in params.items():
        alone, inner, _ = descend(momo(1.0), leaf, 3, value=jnp.asarray(2.0))
        np.testing.assert_allclose(found[name], alone, rtol=1e-6)
    assert "value" in layerwise(momo(1.0)).needs


class Precision(AbstractState):
    value: Scalar
    length: Scalar


class Record(AbstractTransform[Precision]):
    """Remembers the value and a hyperparameter, in the dtypes that it is given."""

    length: Any

    @property
    def needs(self) -> Needs:
        return frozenset({"value"})

    def start(self, params: Tree) -> Precision:
        return Precision(tree.scalar(0, params), jnp.asarray(self.length))

    def step(
        self, grads: Tree, state: Precision, params: Tree, extra: Extra
    ) -> tuple[Tree, Precision]:
        return tree.scale(extra.value * self.length, grads), Precision(
            extra.value, jnp.asarray(self.length)
        )


@pytest.mark.usefixtures("x64")
def test_each_leaf_has_its_own_precision():
    params = {
        "narrow": jnp.ones(2, jnp.bfloat16),
        "single": jnp.ones(2, jnp.float32),
        "double": jnp.ones(2, jnp.float64),
    }
    opt = layerwise(Record(jnp.asarray(0.5)))
    updates, state = opt.update(params, opt.init(params), params, value=2.0)
    for name, dtype in (("narrow", "float32"), ("double", "float64")):
        own = state.inner_states[name].inner_state
        assert own.value.dtype == own.length.dtype == dtype
    assert {k: u.dtype for k, u in updates.items()} == {
        k: p.dtype for k, p in params.items()
    }


def test_metrics_are_named_by_the_paths_of_leaves():
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    opt = layerwise(dog(0.5))
    state = opt.init(model)
    metrics = opt.metrics(state)
    assert set(metrics) == {
        f"layers[{i}].{leaf}/dog/{quantity}"
        for i in range(2)
        for leaf in ("weight", "bias")
        for quantity in ("distance", "step_size")
    }
    norm = jnp.linalg.norm(model.layers[1].weight)
    np.testing.assert_allclose(
        metrics["layers[1].weight/dog/distance"], 1e-6 * (1 + norm), rtol=1e-6
    )


def test_metrics_of_other_trees():
    def names(opt: Any, params: Any) -> set[str]:
        return set(opt.metrics(opt.init(params)))

    opt = layerwise(prodigy())
    quantities = {"prodigy/distance", "prodigy/step_size"}
    assert names(opt, jnp.ones(3)) == quantities
    assert names(opt, {}) == names(layerwise(scale(1.0)), jnp.ones(3)) == set()
    assert names(opt, [jnp.ones(1), None, {"w": jnp.ones(1)}]) == {
        f"{path}/{q}" for path in ("[0]", "[2]['w']") for q in quantities
    }
    assert names(layerwise(opt), {"a": jnp.ones(1)}) == {
        f"['a']/{q}" for q in quantities
    }


# As a wrapper


def test_trees_without_leaves_are_accepted():
    for params in ({}, {"none": None}, []):
        opt = layerwise(dog())
        updates, state = opt.update(params, opt.init(params), params)
        assert updates == params and not jax.tree.leaves(state)


def test_raw_model():
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    opt = layerwise(adam(0.1))
    state = opt.init(model)
    grads = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    updates, state = opt.update(grads, state, model)
    expected, _ = adam(0.1).update(grads, adam(0.1).init(model), model)
    assert eqx.tree_equal(updates, expected)
    assert opt.eval_params(state, model).activation is model.activation


def test_without_params():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    opt = layerwise(adam(0.1))
    updates, _ = opt.update(params, opt.init(params))
    assert eqx.tree_equal(updates, opt.update(params, opt.init(params), params)[0])
    with pytest.raises(ValueError, match=r"Layerwise\(DoG\).update needs `params`"):
        opt = layerwise(DoG())
        opt.update(params, opt.init(params))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "opt, shift, factor",
    [
        (layerwise(DoG(eps=0.0)), 0.0, 2.0**20),
        (layerwise(DoG(init_learning_rate=1e-2)), 64.0, 1.0),
        (layerwise(prodigy(eps=0.0)), 64.0, 2.0**20),
    ],
)
def test_where_all_leaves_start_and_the_unit_of_the_loss_do_not_matter(
    opt, shift, factor
):
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[30.0], [5.0]])}
    assert opt.laws >= ({"translation"} if shift else {"gradient_scale"})

    def end(shift: float, factor: float) -> Any:
        x = jax.tree.map(lambda p: p + shift, params)
        state = opt.init(x)
        for _ in range(10):
            grads = jax.tree.map(lambda x: factor * (x - shift + 1), x)
            updates, state = opt.update(grads, state, x)
            x = apply_updates(x, updates)
        return jax.tree.map(lambda x, p: x - shift - p, x, params)

    expected, found = end(0.0, 1.0), end(shift, factor)
    for name, moved in expected.items():
        assert np.abs(moved).max() > 0
        # First steps are 1e-6 of the parameters, which are rounded at 1e-14.
        np.testing.assert_allclose(found[name], moved, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "opt, more",
    [
        (layerwise(DoG()), set()),
        # Entries of these do not claim to be independent of each other.
        (layerwise(adam(0.1)), {"permutation", "partition", "neutral"}),
    ],
)
def test_claims_are_true_and_complete(opt, more):
    assert_lawful(opt, declared=opt.laws | more, laws=["algebra", "wrapper"])
