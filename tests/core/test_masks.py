"""Masks: their forms, what they leave out, and which are refused."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array
from support.models import loss, mlp

from contrib_algos import adam
from contrib_core import add_decayed_weights, masked, scale


class Net(eqx.Module):
    """A callable model, whose masks are callable too."""

    first: Any
    second: Any

    def __call__(self, x: Array) -> Array:
        raise AssertionError("A tree was called.")


NET = Net(jnp.ones(2), {"w": jnp.ones(3), "b": jnp.ones(())})


def first_only(params: Any) -> Any:
    return Net(True, jax.tree.map(lambda _: False, params.second))


@pytest.mark.parametrize(
    "mask",
    [
        Net(True, False),
        Net(True, {"w": False, "b": False}),
        Net(np.bool_(True), np.bool_(False)),
        first_only,
        lambda params: Net(True, False),
        ft.partial(lambda flag, params: Net(flag, False), True),
    ],
    ids=["prefix", "full", "numpy", "function", "lambda", "partial"],
)
def test_forms_of_masks(mask):
    opt = masked(scale(10.0), mask)
    updates, _ = opt.update(NET, opt.init(NET), NET)
    np.testing.assert_array_equal(updates.first, 10 * jnp.ones(2))
    np.testing.assert_array_equal(updates.second["w"], jnp.ones(3))
    np.testing.assert_array_equal(updates.second["b"], 1.0)
    decayed = add_decayed_weights(0.5, mask)
    updates, _ = decayed.update(NET, decayed.init(NET), NET)
    np.testing.assert_array_equal(updates.first, 1.5 * jnp.ones(2))
    np.testing.assert_array_equal(updates.second["w"], jnp.ones(3))


@pytest.mark.parametrize("mask, factor", [(True, 10.0), (False, 1.0)])
def test_a_mask_of_one_bool_is_for_all_leaves(mask, factor):
    opt = masked(scale(10.0), mask)
    updates, _ = opt.update(NET, opt.init(NET), NET)
    assert eqx.tree_equal(updates, jax.tree.map(lambda x: factor * x, NET))


def test_leaves_outside_a_mask_have_no_state():
    state = masked(adam(0.1), Net(True, False)).init(NET)
    assert len(jax.tree.leaves(state)) == 3  # Two moments of `first`, and the count.


def test_a_raw_model_may_be_masked():
    model = mlp()
    mask = jax.tree.map(lambda _: False, eqx.filter(model, eqx.is_inexact_array))
    mask = eqx.tree_at(lambda m: m.layers[0].weight, mask, True)
    opt = masked(scale(10.0), mask)
    grads = eqx.filter_grad(loss)(model, jnp.ones(2))
    updates, _ = opt.update(grads, opt.init(model), model)
    np.testing.assert_array_equal(updates.layers[0].weight, 10 * grads.layers[0].weight)
    np.testing.assert_array_equal(updates.layers[1].weight, grads.layers[1].weight)


@pytest.mark.parametrize(
    "mask, message",
    [
        (Net(True, {"w": True}), r"differ at `\.second\['b'\]`"),
        ({"first": True}, "must be a prefix of the parameters"),
        (Net(1, False), r"mask at `\.first` must be a Python bool, not 1"),
        (Net("yes", False), r"mask at `\.first` must be a Python bool, not 'yes'"),
        (lambda params: params, r"mask at `\.first` must be a Python bool, not Array"),
    ],
    ids=["missing", "misfit", "int", "string", "arrays"],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match="masked: .*" + message):
        masked(scale(1.0), mask).init(NET)


def test_a_traced_mask_is_refused():
    @jax.jit
    def init(flag):
        return masked(scale(1.0), Net(flag, False)).init(NET)

    with pytest.raises(ValueError, match="must be a Python bool, not .*Tracer"):
        init(True)


def test_a_mask_function_is_called_with_the_parameters():
    """The dtypes of the parameters decide, not those of the gradients."""
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    grads = {"a": jnp.ones(2), "b": jnp.ones(2)}
    opt = masked(adam(0.5), lambda p: jax.tree.map(lambda x: x.dtype == "bfloat16", p))
    updates, _ = opt.update(grads, opt.init(params), params)
    np.testing.assert_allclose(np.asarray(updates["a"], np.float32), -0.5)
    np.testing.assert_array_equal(updates["b"], grads["b"])


def test_a_mask_may_select_nothing():
    params = jnp.ones(2)
    for inner in (optax.lion(0.1), adam(0.1)):
        opt = masked(inner, False)
        state = opt.init(params)
        updates, new_state = opt.update(params, state, params)
        np.testing.assert_array_equal(updates, params)
        assert eqx.tree_equal(new_state, state)
