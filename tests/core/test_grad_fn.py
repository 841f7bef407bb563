"""`grad_fn` of the user's model, as transforms in other coordinates see it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.models import loss, mlp
from support.transforms import Lookahead

from contrib_algos import sgd
from contrib_core import chain, masked, scale
from contrib_wrappers import (
    average,
    bucketed,
    master_weights,
    sam,
    split_real_and_imaginary,
)


def raw_grad_fn(model: Any, i: Any) -> Any:
    """The gradient function of a user: it takes whole models with their callables."""
    del i
    assert callable(model.activation)
    return eqx.filter_grad(loss)(model, jnp.ones(2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: masked(t, True),
        split_real_and_imaginary,
        master_weights,
        lambda t: chain(scale(1.0), t),
        lambda t: bucketed(t, assume_partition=True),
        average,
        lambda t: average(master_weights(split_real_and_imaginary(masked(t, True)))),
    ],
    ids=[
        *("bare", "masked", "split", "master_weights", "chain"),
        *("bucketed", "average", "all"),
    ],
)
def test_grad_fn_of_a_raw_model_reaches_every_rule(wrap):
    model = mlp()
    opt = wrap(Lookahead())
    grads = raw_grad_fn(model, 0)
    updates, _ = opt.update(grads, opt.init(model), model, grad_fn=raw_grad_fn)
    double = jax.tree.map(lambda x: 2 * x if eqx.is_array(x) else x, model)
    expected = raw_grad_fn(double, 0)
    assert eqx.tree_equal(updates, expected, rtol=1e-5, atol=1e-6)


def test_grad_fn_is_translated_where_coordinates_differ():
    target = {"a": jnp.array([1 + 2j]), "b": jnp.array([3.0])}
    params = {"a": jnp.array([-1 + 1j]), "b": jnp.array([5.0])}

    def grad_fn(params, i):
        assert params["a"].dtype == jnp.complex64
        return jax.tree.map(lambda x, t: x - t + i, params, target)

    split = split_real_and_imaginary(Lookahead())
    updates, _ = split.update(params, split.init(params), params, grad_fn=grad_fn)
    np.testing.assert_allclose(updates["a"], [-3 + 0j])
    np.testing.assert_allclose(updates["b"], [7.0])
    # Behind a mask, `grad_fn` sees the leaves left out where they are.
    part = masked(Lookahead(), {"a": False, "b": True})
    updates, _ = part.update(params, part.init(params), params, grad_fn=grad_fn)
    np.testing.assert_allclose(updates["a"], params["a"])
    np.testing.assert_allclose(updates["b"], [7.0])


def test_grad_fn_of_narrow_parameters_gets_narrow_ones_from_master_weights():
    params = jnp.array([1.0, 2.0], jnp.bfloat16)
    seen = []

    def grad_fn(params, i):
        seen.append(params.dtype)
        return -params

    opt = master_weights(Lookahead())
    updates, _ = opt.update(params, opt.init(params), params, grad_fn=grad_fn)
    assert seen == [jnp.bfloat16]
    np.testing.assert_array_equal(updates, jnp.array([-2.0, -4.0], jnp.bfloat16))


@pytest.mark.parametrize(
    "returned, what",
    [
        (lambda p: jnp.ones(()), r"the gradient has shape \(\), the parameter \(3,\)"),
        (lambda p: jnp.ones(4), r"the gradient has shape \(4,\)"),
        (lambda p: lax.complex(p, p), "either both are complex or neither is"),
        (lambda p: (jnp.ones(()), p), "gradients and parameters differ in structure"),
    ],
    ids=["shape", "longer", "complex", "value-and-grad"],
)
def test_results_of_grad_fn_are_checked_like_gradients(returned, what):
    x = jnp.arange(3.0)
    opt = sam(sgd(0.1), sgd(0.1), opaque_mode=True)
    with pytest.raises(ValueError, match=rf"^SAM\(.*\).update, `grad_fn`: .*{what}"):
        opt.update(x, opt.init(x), x, grad_fn=lambda params, i: returned(params))
