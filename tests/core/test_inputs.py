"""`init` and `update` of every rule accept models, NumPy arrays and any extras."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.models import loss, mixed, mlp
from support.transforms import over_rules, Polyak, RULES

from contrib_algos import dog, prodigy, sgd
from contrib_core import (
    AbstractTransform,
    apply_updates,
    as_transform,
    chain,
    Extra,
    RealLike,
    Tree,
    tree,
)
from contrib_core.claims import claim, ISOMETRIES, Laws, Needs


@over_rules
def test_a_raw_model_trains_and_a_second_step_does_not_retrace(opt):
    model, x = mlp(), jnp.ones(2)
    num_traces = 0

    @eqx.filter_jit
    def step(model, state):
        nonlocal num_traces
        num_traces += 1
        value, grads = eqx.filter_value_and_grad(loss)(model, x)
        updates, state = opt.update(grads, state, model, value=value)
        return eqx.apply_updates(model, updates), state, value

    state = opt.init(model)
    for _ in range(3):
        new_model, state, _ = step(model, state)
        assert jax.tree.structure(new_model) == jax.tree.structure(model)
        assert not eqx.tree_equal(new_model, model)
        model = new_model
    assert num_traces == 1
    assert model.activation is mlp().activation


@over_rules
def test_leaves_that_are_not_trainable_are_set_aside(opt):
    model = mixed()
    state = opt.init(model)
    grads = eqx.filter_grad(loss)(model, jnp.ones(3))
    updates, state = opt.update(grads, state, model)
    assert updates.count is updates.flag is updates.number is None
    assert updates.function is updates.nothing is None
    assert isinstance(updates.numpy, jax.Array)
    for moved in (eqx.apply_updates(model, updates), apply_updates(model, updates)):
        assert jax.tree.structure(moved) == jax.tree.structure(model)
        assert moved.function is model.function and moved.number == 3
        assert not np.array_equal(moved.weight, model.weight)
        assert not np.array_equal(moved.numpy, model.numpy)
    evaluated = opt.eval_params(state, model)
    assert evaluated.function is model.function and evaluated.flag is True


@over_rules
def test_numpy_leaves_behave_like_jax_leaves(opt):
    params = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    as_jax = jax.tree.map(jnp.asarray, params)
    actual = opt.update(params, opt.init(params), params)
    expected = opt.update(as_jax, opt.init(as_jax), as_jax)
    assert eqx.tree_equal(actual, expected)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(actual))


def test_numpy_arrays_may_be_changed_in_place_afterwards():
    """JAX on a CPU could use the memory of arrays that start at a 64th byte as its
    own."""
    memory = np.ones(64 + 16, np.float32)
    views = [memory[i : i + 64] for i in range(16)]
    states = [dog().init(view) for view in views]
    identity = chain()
    updates = [identity.update(view, identity.init(view))[0] for view in views]
    memory[:] = 5
    for state, update in zip(states, updates, strict=True):
        np.testing.assert_array_equal(state.init_params, jnp.ones(64))
        np.testing.assert_array_equal(update, jnp.ones(64))


def test_unknown_extras_are_tolerated():
    params = jnp.ones(3)
    for opt in RULES.values():
        plain = opt.update(params, opt.init(params), params)
        extras = opt.update(
            params,
            opt.init(params),
            params,
            value=1.0,
            grad_fn=lambda x, i: x,
            key=jax.random.key(1),
            batch_size=32,
            note="hello",
        )
        assert eqx.tree_equal(plain, extras)


@pytest.mark.parametrize("value", [1.5, 2, np.float64(1.5), jnp.bfloat16(1.5)])
def test_the_value_arrives_as_a_scalar_in_the_accumulator_dtype(value):
    params = jnp.ones(3, jnp.bfloat16)
    opt = Polyak()
    updates, _ = opt.update(params, None, params, value=value)
    expected = jnp.full(3, -float(value), jnp.bfloat16)
    np.testing.assert_array_equal(updates, expected)


@pytest.mark.usefixtures("x64")
@over_rules
def test_updates_have_the_dtypes_of_the_parameters(opt):
    dtypes = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")
    params = {dtype: jnp.ones(2, dtype) for dtype in dtypes}
    # Gradients in other precisions, as loss scaling or accumulation leaves them.
    wide = {
        name: x.astype("complex128" if jnp.iscomplexobj(x) else "float64")
        for name, x in params.items()
    }
    updates, _ = opt.update(wide, opt.init(params), params)
    for dtype in dtypes:
        assert updates[dtype].dtype == dtype
        assert updates[dtype].shape == (2,)


def test_updates_without_params_have_the_dtypes_of_the_gradients():
    grads = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    opt = sgd(jnp.asarray(0.1), 0.9)
    updates, _ = opt.update(grads, opt.init(grads))
    assert updates["a"].dtype == jnp.bfloat16 and updates["b"].dtype == jnp.float32


@pytest.mark.parametrize("opt", [dog(), prodigy(), sgd(0.1, 0.9)], ids=type)
def test_wide_gradients_do_not_widen_the_state(x64, opt):
    params = jnp.ones(3, jnp.float32)
    updates, _ = opt.update(np.ones(3), opt.init(params), params)
    assert updates.dtype == jnp.float32


class UsesCurvature(AbstractTransform[None]):
    """Uses an extra that only its author knows."""

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return tree.scale(extra.given["curvature"], grads), None


def test_an_extra_of_any_name_reaches_the_step():
    updates, _ = UsesCurvature().update(jnp.ones(2), None, curvature=3.0)
    np.testing.assert_array_equal(updates, [3, 3])


class Misspelt(AbstractTransform[None]):
    """Names needs and laws that are given to it."""

    named: Any
    claimed: Any

    @property
    def needs(self) -> Needs:
        return frozenset(self.named)

    @property
    def laws(self) -> Laws:
        return frozenset(self.claimed)

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return grads, None


def test_unknown_needs_and_laws_are_refused_at_construction():
    Misspelt(["params", "value"], ["rotation"])
    with pytest.raises(ValueError, match=r"Misspelt: 'parms' is none of \('params', "):
        Misspelt(["parms"], [])
    with pytest.raises(ValueError, match="Misspelt: 'rotations' is none of .*'rotat"):
        Misspelt([], ["rotation", "rotations"])


class Looking(AbstractTransform[None]):
    """Its claims depend on the value of a hyperparameter, which may be traced."""

    eps: RealLike = 0.0

    @property
    def laws(self) -> Laws:
        return ISOMETRIES if self.eps == 0 else claim("translation")

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return tree.scale(self.eps, grads), None


def test_a_transform_whose_claims_look_at_a_traced_number_can_be_swept():
    def first(eps: Any) -> Any:
        return Looking(eps).update(jnp.ones(2), None)[0]

    swept = eqx.filter_vmap(first)(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(swept, [[1, 1], [2, 2]])


def test_an_extra_that_is_none_reaches_optax():
    def update(updates: Any, state: Any, params: Any = None, *, extra: Any) -> Any:
        return (updates if extra is None else 2 * updates), state

    untyped: Any = optax.GradientTransformationExtraArgs
    opt = as_transform(untyped(lambda _: (), update))
    updates, _ = opt.update(jnp.ones(2), (), extra=None)
    np.testing.assert_array_equal(updates, [1, 1])
    with pytest.raises(ValueError, match="needs `extra`: call `opt.update.*extra=extr"):
        opt.update(jnp.ones(2), ())
