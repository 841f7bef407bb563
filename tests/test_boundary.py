"""The boundary: what `init` and `update` accept, refuse and guarantee, whatever the
rule; and that it costs nothing in compiled code."""

import functools as ft
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jaxtyping import Array

from contrib_algos import Adam, adam, dog, Lion, prodigy, sgd
from contrib_core import (
    AbstractState,
    AbstractTransform,
    add_decayed_weights,
    apply_updates,
    as_transform,
    bucketed,
    chain,
    Extra,
    in_precision,
    masked,
    P,
    Scalar,
    scale,
    to_optax,
    Tree,
    tree,
)
from contrib_wrappers import (
    average,
    master_weights,
    sam,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
    split_real_and_imaginary,
)


KEY = jax.random.key(0)
RULES: dict[str, AbstractTransform] = {
    "dog": dog(),
    "prodigy": prodigy(),
    "schedule_free_adamw": schedule_free_adamw(),
    "adam": adam(0.1),
}
over_rules = pytest.mark.parametrize("opt", RULES.values(), ids=RULES)


def mlp() -> eqx.nn.MLP:
    return eqx.nn.MLP(2, 1, 4, 1, key=KEY)


class Mixed(eqx.Module):
    """A model with every kind of leaf."""

    weight: Array
    count: Array
    flag: bool
    number: int
    name: str = eqx.field(static=True)
    function: Callable[[Array], Array]
    nothing: None
    numpy: np.ndarray

    def __call__(self, x: Array) -> Array:
        return self.function(self.weight * x) + self.numpy


def mixed() -> Mixed:
    return Mixed(
        weight=jnp.ones(3),
        count=jnp.array(7),
        flag=True,
        number=3,
        name="mixed",
        function=jnp.tanh,
        nothing=None,
        numpy=np.full(3, 2.0, np.float32),
    )


def loss(model: Any, x: Array) -> Array:
    return jnp.sum(model(x) ** 2)


# What is accepted


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
def test_numpy_leaves_are_as_jax_leaves(opt):
    params = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    as_jax = jax.tree.map(jnp.asarray, params)
    actual = opt.update(params, opt.init(params), params)
    expected = opt.update(as_jax, opt.init(as_jax), as_jax)
    assert eqx.tree_equal(actual, expected)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(actual))


def test_numpy_arrays_may_be_changed_in_place_afterwards():
    """Also those that lie where JAX on CPU could use their memory as its own, which is
    at every 64th byte."""
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


# What is refused, and how


class Polyak(AbstractTransform[None]):
    """Needs the loss."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"value", "params"})

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return tree.scale(-extra.value, grads), None


class Lookahead(AbstractTransform[None]):
    """Steps along the gradient at another point: twice the parameters."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"grad_fn", "params"})

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return extra.grad_fn(tree.scale(2, params), 0), None


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
    # And the advice works.
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


class DriftState(AbstractState[P]):
    """State of `Drift`."""

    mean: P
    level: Scalar | None


class Drift(AbstractTransform[DriftState[Tree]]):
    """Remembers whatever `drift` makes of its state."""

    drift: Callable[[DriftState[Tree]], Any]

    def start(self, params: Tree) -> DriftState[Tree]:
        return DriftState(params, jnp.zeros((), jnp.float32))

    def step(
        self, grads: Tree, state: DriftState[Tree], params: Tree, extra: Extra
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
        # Not a scalar array, which the type of the field would refuse before.
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


# Extras in other coordinates


def raw_grad_fn(model: Any, i: Any) -> Any:
    """What a user passes: of whole models, callables and all."""
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
def test_what_grad_fn_returns_is_checked_as_gradients_are(returned, what):
    x = jnp.arange(3.0)
    opt = sam(sgd(0.1), sgd(0.1), opaque_mode=True)
    with pytest.raises(ValueError, match=rf"^SAM\(.*\).update, `grad_fn`: .*{what}"):
        opt.update(x, opt.init(x), x, grad_fn=lambda params, i: returned(params))


# Masks


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


def test_what_a_mask_leaves_out_has_no_state():
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


# What counts as a transform


@pytest.mark.parametrize(
    "wrong, message",
    [
        (Adam, r"Adam is a class: pass an instance, `Adam\(\)`"),
        (Lion, r"Lion is a class"),
        (adam, "is not a transform; call it"),
        (optax.adam, "is not a transform; call it"),
        (0.1, "is not a transform; a transform has `init` and `update`"),
        ("adam", "is not a transform; a transform has `init` and `update`"),
        (None, "is not a transform"),
    ],
)
def test_what_is_not_a_transform_is_refused(wrong, message):
    with pytest.raises(TypeError, match=message):
        as_transform(wrong)


@pytest.mark.parametrize(
    "accepts",
    [
        chain,
        lambda t: chain(sgd(0.1), t),
        lambda t: masked(t, True),
        split_real_and_imaginary,
        master_weights,
        lambda t: schedule_free(t, 0.1),
        to_optax,
    ],
)
def test_classes_are_refused_wherever_a_transform_is_taken(accepts):
    with pytest.raises(TypeError, match=r"Adam is a class: pass an instance"):
        accepts(Adam)


def test_our_own_transforms_stay_what_they_are():
    opt = adam(0.1)
    assert as_transform(opt) is opt


# What it costs


def compiled(fn: Callable[..., Any], *args: Any) -> str:
    """The compiled program without the names that only tell where it came from."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    assert text is not None
    text = re.sub(r", metadata=\{[^}]*\}", "", text)
    tables = "FileNames|FunctionNames|FileLocations|StackFrames"
    text = re.sub(rf"\n\n({tables})\n.*?(?=\n\n)", "", text, flags=re.DOTALL)
    return re.sub(r"^HloModule [^,]*, ", "", text)


@over_rules
def test_compiled_update_is_the_bare_step(opt):
    params = {"a": jnp.ones((8, 4)), "b": jnp.ones(8)}
    state = opt.init(params)

    # Of the same name, which compiled programs bear.
    def update(grads, state, params):
        return in_precision(opt, params).step(grads, state, params, Extra())

    ours = compiled(opt.update, params, state, params)
    bare = compiled(update, params, state, params)
    assert ours == bare
    assert "fusion" in ours


@over_rules
def test_parameters_and_fresh_state_can_be_donated(opt):
    """At the very first step, and without a warning that a buffer was not usable."""

    def step(params, state, grads):
        updates, state = opt.update(grads, state, params)
        return apply_updates(params, updates), state

    grads = {"a": jnp.ones((8, 4)), "b": jnp.ones(8)}
    params = jax.tree.map(lambda x: 2 * x, grads)
    expected, _ = jax.jit(step)(params, opt.init(params), grads)
    donating = jax.jit(step, donate_argnums=(0, 1))
    state = opt.init(params)
    # Of what the step reads: DoG's flag, for one, it only writes.
    donated = jax.tree.leaves(eqx.filter((params, state), eqx.is_inexact_array))
    moved, new_state = donating(params, state, grads)
    assert all(leaf.is_deleted() for leaf in donated)
    assert eqx.tree_equal(moved, expected)
    donating(moved, new_state, grads)


@over_rules
def test_init_under_jit_and_shapes_alone(opt):
    params = {"a": jnp.ones((8, 4)), "b": jnp.ones(8)}
    state = opt.init(params)
    jitted = jax.jit(opt.init)(params)
    assert eqx.tree_equal(state, jitted, rtol=1e-6)
    shapes = eqx.filter_eval_shape(opt.init, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


@over_rules
def test_inputs_are_left_as_they_were(opt):
    params = {"a": jnp.arange(3.0)}
    grads = {"a": jnp.ones(3)}
    state = opt.init(params)
    before = jax.tree.map(np.array, (params, grads, state))
    opt.update(grads, state, params)
    assert eqx.tree_equal(jax.tree.map(np.array, (params, grads, state)), before)


@over_rules
def test_state_is_fit_for_loops(opt):
    params = {"a": jnp.arange(3.0), "b": jnp.ones(2, jnp.bfloat16)}

    def body(carry):
        params, state = carry
        updates, state = opt.update(params, state, params)
        return apply_updates(params, updates), state

    start = params, opt.init(params)
    looped = lax.fori_loop(0, 3, lambda _, carry: body(carry), start)
    stepped = start
    for _ in range(3):
        stepped = jax.jit(body)(stepped)
    assert eqx.tree_equal(looped, stepped, rtol=1e-6)


def test_a_mask_function_is_of_the_parameters():
    """Their dtypes, not those of the gradients, decide."""
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    grads = {"a": jnp.ones(2), "b": jnp.ones(2)}
    opt = masked(adam(0.5), lambda p: jax.tree.map(lambda x: x.dtype == "bfloat16", p))
    updates, _ = opt.update(grads, opt.init(params), params)
    np.testing.assert_allclose(np.asarray(updates["a"], np.float32), -0.5)
    np.testing.assert_array_equal(updates["b"], grads["b"])


@pytest.mark.parametrize("opt", [dog(), prodigy(), sgd(0.1, 0.9)], ids=type)
def test_wide_gradients_do_not_widen_the_state(x64, opt):
    params = jnp.ones(3, jnp.float32)
    updates, _ = opt.update(np.ones(3), opt.init(params), params)
    assert updates.dtype == jnp.float32


class NeedsCurvature(AbstractTransform[None]):
    """Needs something that only its author knows."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"curvature"})

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return tree.scale(extra.given["curvature"], grads), None


def test_needs_of_any_name():
    opt = NeedsCurvature()
    updates, _ = opt.update(jnp.ones(2), None, curvature=3.0)
    np.testing.assert_array_equal(updates, [3, 3])
    with pytest.raises(ValueError, match=r"needs `curvature`: .*curvature=curvature"):
        opt.update(jnp.ones(2), None)


def test_a_mask_may_select_nothing():
    params = jnp.ones(2)
    for inner in (optax.lion(0.1), adam(0.1)):
        opt = masked(inner, False)
        state = opt.init(params)
        updates, new_state = opt.update(params, state, params)
        np.testing.assert_array_equal(updates, params)
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
def test_foreign_states_are_named(make, make_state, where, unchecked: None):
    opt = make(0.1)
    message = f"`state` is that of other parameters or.*({where}).*opt.init"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        opt.update(OTHER, make_state(opt), OTHER)


def test_other_errors_of_a_step_are_what_they_are():
    class Broken(AbstractTransform[None]):
        def start(self, params):
            return None

        def step(self, grads, state, params, extra):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Broken().update(OTHER, None, OTHER)
