"""`update` in compiled code: the checks cost nothing, and states fit into loops."""

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from support.transforms import over_rules

from contrib_core import apply_updates, Extra, in_precision


def compiled(fn: Callable[..., Any], *args: Any) -> str:
    """The compiled program, without the names that point to its source."""
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

    # The name is part of the compiled program.
    def update(grads, state, params):
        return in_precision(opt, params).step(grads, state, params, Extra())

    ours = compiled(opt.update, params, state, params)
    bare = compiled(update, params, state, params)
    assert ours == bare
    assert "fusion" in ours


@over_rules
def test_parameters_and_fresh_state_can_be_donated(opt):
    """Donation works at the first step, without a warning about unusable buffers."""

    def step(params, state, grads):
        updates, state = opt.update(grads, state, params)
        return apply_updates(params, updates), state

    grads = {"a": jnp.ones((8, 4)), "b": jnp.ones(8)}
    params = jax.tree.map(lambda x: 2 * x, grads)
    expected, _ = jax.jit(step)(params, opt.init(params), grads)
    donating = jax.jit(step, donate_argnums=(0, 1))
    state = opt.init(params)
    # XLA does not donate buffers that a step only writes, such as DoG's flag.
    donated = jax.tree.leaves(eqx.filter((params, state), eqx.is_inexact_array))
    moved, new_state = donating(params, state, grads)
    assert all(leaf.is_deleted() for leaf in donated)
    assert eqx.tree_equal(moved, expected)
    donating(moved, new_state, grads)


@over_rules
def test_init_runs_under_jit_and_on_shapes_alone(opt):
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
def test_states_fit_into_loops(opt):
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
