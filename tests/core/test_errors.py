"""`update` refuses wrong calls with errors that show the right one."""

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from support.models import loss, mlp
from support.transforms import Lookahead, Polyak

from contrib_algos import adam, dog, prodigy, sgd
from contrib_core import (
    AbstractState,
    AbstractTransform,
    add_decayed_weights,
    chain,
    Extra,
    masked,
    P,
    Scalar,
    scale,
    Tree,
)
from contrib_wrappers import (
    master_weights,
    schedule_free,
    schedule_free_sgd,
    split_real_and_imaginary,
)


def test_a_missing_gradient_names_the_leaf_and_the_filter():
    model = mlp()
    opt = adam(0.1)
    state = opt.init(model)
    spec = jax.tree.map(eqx.is_inexact_array, model)
    spec = eqx.tree_at(lambda m: m.layers[1].bias, spec, False)
    trained, frozen = eqx.partition(model, spec)
    grads = jax.grad(lambda p: loss(eqx.combine(p, frozen), jnp.ones(2)))(trained)
    with pytest.raises(
        ValueError,
        match=r"parameter at `\.layers\[1\]\.bias` \(float32\[1\]\) has no gradient.*"
        r"eqx\.filter_grad\(loss\)\(model\).*eqx\.filter\(model, spec\)",
    ):
        opt.update(grads, state, model)
    # The advice works.
    updates, _ = opt.update(grads, opt.init(trained), trained)
    assert updates.layers[1].bias is None and updates.layers[0].bias is not None


def test_a_gradient_of_a_python_float_says_what_to_do():
    params = {"a": jnp.ones(2), "scale": 3.0}
    grads = jax.tree.map(jnp.asarray, params)
    opt = sgd(0.1)
    with pytest.raises(
        ValueError, match=r"gradient at `\['scale'\]`.*`jnp.asarray\(x\)`"
    ):
        opt.update(grads, opt.init(params), params)
    params = {"a": jnp.ones(2), "scale": jnp.asarray(3.0)}
    updates, _ = opt.update(grads, opt.init(params), params)
    assert updates["scale"].shape == ()


PARAMS = {"a": jnp.ones(2), "b": {"c": jnp.ones((2, 3)), "d": jnp.ones(())}}

MISFITS: dict[str, tuple[Any, str]] = {
    "missing": (
        {"a": jnp.ones(2), "b": {"c": jnp.ones((2, 3))}},
        r"differ in structure at `\['b'\]\['d'\]`.*opt\.update\(grads, state, params\)",
    ),
    "additional": (
        PARAMS | {"e": jnp.ones(1)},
        r"differ in structure at `\['e'\]`",
    ),
    "node type": (
        [jnp.ones(2), {"c": jnp.ones((2, 3)), "d": jnp.ones(())}],
        r"differ in structure at `\['a'\]`",
    ),
    "shape": (
        {"a": jnp.ones(2), "b": {"c": jnp.ones((3, 2)), "d": jnp.ones(1)}},
        r"at `\['b'\]\['c'\]` the gradient has shape \(3, 2\), the parameter \(2, 3\)",
    ),
    "complex": (
        {"a": jnp.ones(2, jnp.complex64), "b": PARAMS["b"]},
        r"at `\['a'\]` the gradient is complex64, the parameter float32",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_gradients_that_do_not_fit_are_refused(name):
    grads, message = MISFITS[name]
    opt = schedule_free(adam(0.1), 0.1)
    who = re.escape("ScheduleFree(Chain(Adam, Scale)).update: ")
    with pytest.raises(ValueError, match=who + ".*" + message):
        opt.update(grads, opt.init(PARAMS), PARAMS)


def test_gradients_of_one_bare_array_that_do_not_fit_are_refused():
    opt = dog()
    with pytest.raises(ValueError, match=r"DoG\.update: at the only leaf the gradient"):
        opt.update(jnp.ones(2), opt.init(jnp.ones(3)), jnp.ones(3))


@pytest.mark.parametrize(
    "opt",
    [
        dog(),
        prodigy(),
        schedule_free_sgd(),
        add_decayed_weights(0.1),
        master_weights(sgd(0.1)),
        masked(dog(), True),
        split_real_and_imaginary(dog()),
        chain(sgd(0.1), dog()),
    ],
)
def test_missing_params_show_the_call(opt):
    params = jnp.ones(2)
    with pytest.raises(
        ValueError, match=r"needs `params`: call `opt\.update\(grads, state, params\)`"
    ):
        opt.update(params, opt.init(params))


@pytest.mark.parametrize("wrap", [lambda t: t, master_weights, lambda t: chain(t, t)])
def test_missing_extras_show_the_call(wrap):
    params = jnp.ones(2)
    opt = wrap(Polyak())
    with pytest.raises(
        ValueError,
        match=r"Polyak.*\.update needs `value`: call "
        r"`opt\.update\(grads, state, params, value=loss\)`",
    ):
        opt.update(params, opt.init(params), params)
    opt = wrap(Lookahead())
    with pytest.raises(
        ValueError, match=r"needs `grad_fn`: call .*params, grad_fn=grad_fn\)"
    ):
        opt.update(params, opt.init(params), params, value=1.0)


@pytest.mark.parametrize("value", [jnp.ones(1), jnp.ones((2, 2)), 1j, jnp.array(1j)])
def test_a_value_that_is_not_one_real_number_is_refused(value):
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="Polyak.update: `value` must be one real"):
        Polyak().update(params, None, params, value=value)


class DriftState(AbstractState):
    """State of `Drift`."""

    mean: P
    level: Scalar | None


class Drift(AbstractTransform[DriftState]):
    """Its next state is `drift(state)`."""

    drift: Callable[[DriftState], Any]

    def start(self, params: Tree) -> DriftState:
        return DriftState(params, jnp.zeros((), jnp.float32))

    def step(
        self, grads: Tree, state: DriftState, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        return grads, self.drift(state)


DRIFTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "dtype": (
        lambda s: DriftState({"w": s.mean["w"].astype(jnp.bfloat16)}, s.level),
        r"drifts at `\.mean\['w'\]`, from float32\[2\] to bfloat16\[2\]",
    ),
    "weak type": (
        lambda s: DriftState(s.mean, jnp.asarray(1.0)),
        r"drifts at `\.level`, from float32\[\] to float32\[\], weakly typed",
    ),
    "number": (
        # A float in place of the scalar would fail the type of the field first.
        lambda s: DriftState({"w": 1.0}, s.level),
        r"drifts at `\.mean\['w'\]`, from float32\[2\] to float",
    ),
    "shape": (
        lambda s: DriftState({"w": s.mean["w"][:1]}, s.level),
        r"drifts at `\.mean\['w'\]`, from float32\[2\] to float32\[1\]",
    ),
    "structure": (
        lambda s: DriftState(s.mean, None),
        r"the new state differs from the old at `\.level`",
    ),
    "node type": (
        lambda s: (s.mean, s.level),
        r"the new state differs from the old at",
    ),
}


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: chain(t, scale(1.0))])
@pytest.mark.parametrize("name", DRIFTS)
def test_a_state_that_drifts_is_refused(name, wrap):
    drift, message = DRIFTS[name]
    params = {"w": jnp.ones(2)}
    opt = wrap(Drift(drift))
    state = opt.init(params)
    chained = isinstance(state, tuple)
    message = message.replace(r"at `\.", r"at `\[0\]\.") if chained else message
    with pytest.raises(ValueError, match=r"Drift.*\.update: .*" + message):
        jax.jit(opt.update)(params, state, params)
    steady = wrap(Drift(lambda s: s))
    _, new_state = jax.jit(steady.update)(params, state, params)
    assert eqx.tree_equal(new_state, state)


# States of others

OTHER = {"a": jnp.ones(3), "b": {"c": jnp.ones((2, 2))}}


@pytest.mark.parametrize(
    "make_state, where",
    [
        (lambda opt: None, "exp_avg|b1"),
        (lambda opt: sgd(0.1, momentum=0.9).init(OTHER), "exp_avg|b1"),
        (lambda opt: opt.init({"a": OTHER["a"]}), "'b'"),
        (lambda opt: opt.init(OTHER | {"a": jnp.ones(4)}), r"'a'"),
    ],
)
@pytest.mark.parametrize("make", [adam, lambda rate: schedule_free(adam(rate), rate)])
def test_a_state_of_other_parameters_or_transforms_is_named(
    make, make_state, where, unchecked: None
):
    opt = make(0.1)
    message = f"`state` belongs to other parameters or.*({where}).*opt.init"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        opt.update(OTHER, make_state(opt), OTHER)


def test_other_errors_of_a_step_are_raised_unchanged():
    class Broken(AbstractTransform[None]):
        def start(self, params):
            return None

        def step(self, grads, state, params, extra):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Broken().update(OTHER, None, OTHER)
